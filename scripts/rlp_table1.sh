#!/usr/bin/env bash
# RLP, Table 1: VGG-16 and ResNet-18 under four drop bounds.
# usage: scripts/rlp_table1.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlp_table1
report rlp_table1
