#!/usr/bin/env bash
# ResNet-56 (option A) on CIFAR-10 in an image folder at half of its MACs: agents and baselines, three seeds on one dense network, the same
# criterion, one epoch of recovery, and 200 distinct candidates a search on 512 images; then the report on them.
# usage: scripts/cifar10_resnet56.sh FOLDER CHECKPOINT [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# A run that was killed goes on where it was, and one that is done is passed over: start the same line again.
set -euo pipefail
root=${1:?usage: $0 FOLDER CHECKPOINT [key=value ...]}
weights=${2:?usage: $0 FOLDER CHECKPOINT [key=value ...]}
shift 2
out=outputs/cifar10_resnet56
steps=(schedule.steps=5 schedule.period=5 search.max_candidates=40)
oneshot=(schedule.steps=1 schedule.period=1 search.max_candidates=200)
run() { # NAME SEED [key=value ...]
  local name=$1 seed=$2
  shift 2
  rlprune prune experiment=cifar10_resnet20 model=resnet56 model.shortcut=A "checkpoint=$weights" "dataset.root=$root" dense_seed=0 \
    "seed=$seed" "paths.run=$out/$name-$seed" resume=true criterion=taylor schedule.sparsity=null 'schedule.save_at=[]' budget.macs=0.5 \
    recovery.control=false recovery.epochs=1 recovery.final_epochs=1 search.samples=512 "$@"
}
for seed in 0 1 2; do
  run uniform "$seed" agent=uniform "${steps[@]}" "recovery.control=$([[ $seed == 0 ]] && echo true || echo false)" "$@" # the same for all
  run global "$seed" agent=global "${steps[@]}" "$@"
  run mcq "$seed" agent=mcq "${steps[@]}" "$@"
  run random_search "$seed" agent=random_search "${steps[@]}" "$@"
  run amc "$seed" agent=amc "${oneshot[@]}" "$@"
done
rlprune report "runs=$out/*"
