#!/usr/bin/env bash
# RLAL, Table 1: ResNet-56 and MobileNetV2 on CIFAR-10.
# usage: scripts/rlal_table1.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlal_table1
report rlal_table1
