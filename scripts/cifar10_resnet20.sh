#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 in an image folder: dense training, MCQ and uniform at 50 % channel sparsity under one schedule, and their table.
# usage: scripts/cifar10_resnet20.sh FOLDER [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# About 55 minutes on one CPU core. The row `dense + same recovery epochs` is trained in the MCQ run; uniform recovers in the same way.
set -euo pipefail
root=${1:?usage: $0 FOLDER [key=value ...]}
shift
common=(model=resnet20 dataset=imagefolder "dataset.root=$root" training=cifar training.epochs=20
        schedule.sparsity=0.5 schedule.steps=10 schedule.period=2 "schedule.save_at=[0.25]" search.samples=1024
        recovery.epochs=1 recovery.final_epochs=4 recovery.batch_size=128
        recovery.optimizer.lr=0.05 recovery.clip_norm=null)
rlprune prune "${common[@]}" agent=mcq "$@"
rlprune prune "${common[@]}" agent=uniform recovery.control=false "$@"
rlprune report runs='outputs/prune/*imagefolder*'
