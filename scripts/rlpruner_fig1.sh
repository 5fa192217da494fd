#!/usr/bin/env bash
# RL-Pruner, Figure 1: what each layer costs alone, on the dense and on a pruned network; the picture is the report's.
# usage: scripts/rlpruner_fig1.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
runs=$(folder rlpruner_fig1)
run prune rlpruner_fig1
only device precision channels_last debug 'paths.*'
for pruned in "$runs"/mcq_*; do
  rlprune sensitivity "run=$pruned" "paths.run=$runs/sensitivity_${pruned##*/}" resume=true ${settings[@]+"${settings[@]}"} || status=$?
done
report rlpruner_fig1
