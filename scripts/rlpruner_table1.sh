#!/usr/bin/env bash
# RL-Pruner, Table 1: five networks on CIFAR-100 under three rewards.
# usage: scripts/rlpruner_table1.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlpruner_table1
report rlpruner_table1
