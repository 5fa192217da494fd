#!/usr/bin/env bash
# What MCQ's settings do: ResNet-20 on CIFAR-10 in an image folder, 75 % of the channels in 6 steps, one epoch of recovery at each level.
# One seed that the comparison does not use; read on the search split alone. About an hour on one CPU core.
# usage: scripts/cifar10_mcq_ablation.sh FOLDER [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
set -euo pipefail
root=${1:?usage: $0 FOLDER [key=value ...]}
shift
out=outputs/cifar10_mcq_ablation
more=("$@")
run() { # NAME [key=value ...]
  local name=$1
  shift
  rlprune prune experiment=cifar10_resnet20 "dataset.root=$root" dense_seed=0 seed=10 schedule.steps=6 schedule.period=2 \
    recovery.final_epochs=1 recovery.control=false "paths.run=$out/$name" resume=true agent=mcq "$@" ${more[@]+"${more[@]}"}
}
run as_published
run reset_drop agent.reset_drop=0.1
run noise_0.2 agent.noise_std=0.2
run small_steps agent.step_size=0.05 agent.clip=0.05
run no_exploration agent.epsilon=0
run samples_256 search.samples=256
run recalibrate_bn search.recalibrate_bn=512
run recover_batches search.recover_batches=16 agent.stages=4 agent.sample_num=5
run ranking agent.ranking=mean
run uniform agent=uniform
python "$(dirname "$0")/search_split.py" "$out"/*
