#!/usr/bin/env bash
# RLAL, Figure 2: the best reward by epoch: episodes.png (panels a to c) and embeddings.png (d to i) in the runs' folder.
# usage: scripts/rlal_fig2.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
runs=$(folder rlal_fig2)
run prune rlal_fig2
here=$(dirname "$0")
python "$here/rewards_figure.py" "$runs/episodes.png" agent.episodes "$runs"/resnet56_*_epoch_embeddings-true_*_seed-0 || status=$?
python "$here/rewards_figure.py" "$runs/embeddings.png" agent.epoch_embeddings "$runs"/*_episodes-10_seed-0 || status=$?
report rlal_fig2
