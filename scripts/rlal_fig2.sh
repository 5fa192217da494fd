#!/usr/bin/env bash
# RLAL, Figure 2: the best reward by epoch: episodes.png (panels a to c) and embeddings.png (d to i) in the runs' folder, of the lowest seed.
# usage: scripts/rlal_fig2.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
runs=$(folder rlal_fig2)
run prune rlal_fig2
here=$(dirname "$0")
seed=$(printf '%s\n' "$runs"/*_seed-* | sed 's/.*_seed-//' | sort -n | head -n 1)
python "$here/rewards_figure.py" "$runs/episodes.png" agent.episodes "$runs"/resnet56_*_epoch_embeddings-true_*_seed-"$seed" || status=$?
python "$here/rewards_figure.py" "$runs/embeddings.png" agent.epoch_embeddings "$runs"/*_episodes-10_seed-"$seed" || status=$?
report rlal_fig2
