#!/usr/bin/env bash
# RLP, Figure 1: VGG-16's layers pruned one by one, and the entire network: channels.png in the runs' folder.
# usage: scripts/rlp_fig1.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
runs=$(folder rlp_fig1)
run prune rlp_fig1
python "$(dirname "$0")/channels_figure.py" "$runs/channels.png" --individual "$runs"/reinforce_layer-*_seed-0 --entire "$runs"/reinforce_mode-entire_seed-0 ||
  status=$?
report rlp_fig1
