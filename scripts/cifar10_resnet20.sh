#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 in an image folder: MCQ and its baselines at 25, 50 and 75 % of the channels, three seeds on one dense network,
# one schedule, one recovery; then their table with differences paired by seed.
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
judged=(search.recover_batches=32) # candidates are rewarded for what a brief recovery makes of them
for seed in 0 1 2; do
  run uniform "$seed" agent=uniform "$@" # and the dense network's control
  run global "$seed" agent=global recovery.control=false "$@"
  run mcq_as_published "$seed" agent=mcq recovery.control=false "$@"
  run random_search "$seed" agent=random_search agent.candidates=20 "${judged[@]}" recovery.control=false "$@"
  run mcq "$seed" agent=mcq agent.stages=4 agent.sample_num=5 "${judged[@]}" recovery.control=false "$@"
done
python "$(dirname "$0")/paired.py" "$out"
