#!/usr/bin/env bash
# RL-Pruner, Table 2: VGG-19 on CIFAR-100 and ResNet-56 on CIFAR-10, beside other methods.
# usage: scripts/rlpruner_table2.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlpruner_table2
report rlpruner_table2
