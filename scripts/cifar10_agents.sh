#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 in an image folder at half of its MACs: every agent and baseline, three seeds on one dense network, the same criterion,
# the same recovery, and 400 distinct candidates a search; then the report on them.
# usage: scripts/cifar10_agents.sh FOLDER [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# Searches step by step measure 80 candidates in each of five steps, those by episodes 400 in one; nothing recovers before the end.
# A run that was killed goes on where it was, and one that is done is passed over: start the same line again.
set -euo pipefail
root=${1:?usage: $0 FOLDER [key=value ...]}
shift
out=outputs/cifar10_agents
steps=(schedule.steps=5 schedule.period=5 search.max_candidates=80)
oneshot=(schedule.steps=1 schedule.period=1 search.max_candidates=400)
run() { # NAME SEED [key=value ...]
  local name=$1 seed=$2
  shift 2
  rlprune prune experiment=cifar10_resnet20 "dataset.root=$root" dense_seed=0 "seed=$seed" "paths.run=$out/$name-$seed" resume=true \
    criterion=taylor schedule.sparsity=null 'schedule.save_at=[]' budget.macs=0.5 recovery.control=false "$@"
}
for seed in 0 1 2; do
  run uniform "$seed" agent=uniform "${steps[@]}" "recovery.control=$([[ $seed == 0 ]] && echo true || echo false)" "$@" # the same for all
  run global "$seed" agent=global "${steps[@]}" "$@"
  run random_search "$seed" agent=random_search "${steps[@]}" "$@"
  run mcq "$seed" agent=mcq "${steps[@]}" "$@"
  run ddpg "$seed" agent=ddpg agent.finetune_batches=0 "${oneshot[@]}" "$@"
  run amc "$seed" agent=amc "${oneshot[@]}" "$@"
  run random_rates "$seed" agent=random_rates "${oneshot[@]}" "$@"
  run random_oneshot "$seed" agent=random_search agent.candidates=500 "${oneshot[@]}" "$@"
  run depgraph "$seed" agent=depgraph "${steps[@]}" "$@"
done
rlprune report "runs=$out/*"
