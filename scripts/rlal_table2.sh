#!/usr/bin/env bash
# RLAL, Table 2: ResNet-18, ResNet-34 and MobileNetV2 on ImageNet, which you supply: dataset.root=DIR with train/ and val/.
# usage: scripts/rlal_table2.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlal_table2
report rlal_table2
