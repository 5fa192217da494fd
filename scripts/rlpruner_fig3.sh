#!/usr/bin/env bash
# RL-Pruner, Figure 3: each layer's sparsity over the steps under three rewards; the picture is the report's.
# usage: scripts/rlpruner_fig3.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlpruner_fig3
report rlpruner_fig3
