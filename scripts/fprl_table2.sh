#!/usr/bin/env bash
# FPRL, Table 2: minimum weight against activation Taylor on four networks and two data sets.
# usage: scripts/fprl_table2.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune fprl_table2
report fprl_table2
