#!/usr/bin/env bash
# FPRL, Figure 3: the pruning rates of VGG-16's layers; the picture is the report's.
# usage: scripts/fprl_fig3.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune fprl_fig3
report fprl_fig3
