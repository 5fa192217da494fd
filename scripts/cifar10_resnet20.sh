#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 in an image folder: MCQ and its baselines at 25, 50 and 75 % of the channels, three seeds on one dense network,
# one schedule, one recovery; then the report on them.
# usage: scripts/cifar10_resnet20.sh FOLDER [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# A run that was killed goes on where it was, and one that is done is passed over: start the same line again.
set -euo pipefail
root=${1:?usage: $0 FOLDER [key=value ...]}
shift
out=outputs/cifar10_resnet20
run() { # NAME SEED [key=value ...]
  local name=$1 seed=$2
  shift 2
  rlprune prune experiment=cifar10_resnet20 "dataset.root=$root" dense_seed=0 "seed=$seed" "paths.run=$out/$name-$seed" resume=true "$@"
}
for seed in 0 1 2; do
  run uniform "$seed" agent=uniform "recovery.control=$([[ $seed == 0 ]] && echo true || echo false)" "$@" # the control is the same for all
  for agent in global mcq random_search; do
    run "$agent" "$seed" "agent=$agent" recovery.control=false "$@"
  done
done
rlprune report "runs=$out/*"
