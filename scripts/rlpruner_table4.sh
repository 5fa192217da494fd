#!/usr/bin/env bash
# RL-Pruner, Table 4: compressed networks, and the same architectures trained from scratch.
# usage: scripts/rlpruner_table4.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlpruner_table4
only seed device precision channels_last compile debug 'training*' 'paths.*'
run train rlpruner_table4_scratch
report rlpruner_table4
