#!/usr/bin/env bash
# RL-Pruner, Table 3: how much MCQ explores, and how that decays.
# usage: scripts/rlpruner_table3.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlpruner_table3
report rlpruner_table3
