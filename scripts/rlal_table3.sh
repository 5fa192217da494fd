#!/usr/bin/env bash
# RLAL, Table 3: with and without epoch embeddings and soft regularization.
# usage: scripts/rlal_table3.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlal_table3
report rlal_table3
