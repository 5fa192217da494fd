#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 in an image folder: dense training, MCQ and uniform at 25 and 50 % channel sparsity under one schedule, and their table.
# usage: scripts/cifar10_resnet20.sh FOLDER [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# About 70 minutes on one CPU core. The row `dense + same recovery epochs` is trained in the MCQ run; uniform recovers in the same way.
set -euo pipefail
root=${1:?usage: $0 FOLDER [key=value ...]}
shift
rlprune prune experiment=cifar10_resnet20 "dataset.root=$root" agent=mcq "$@"
rlprune prune experiment=cifar10_resnet20 "dataset.root=$root" agent=uniform recovery.control=false "$@"
rlprune report runs='outputs/prune/*resnet20_imagefolder*'
