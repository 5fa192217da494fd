#!/usr/bin/env bash
# One search with one process a worker, with two, and with two of Ray: ResNet-56 (option A), mcq, CIFAR-10 in an image folder, 5 steps of 40
# distinct candidates on 1,024 images, no recovery; then whether they came to the same, and how long each took.
# usage: OMP_NUM_THREADS=1 scripts/parallel_search.sh FOLDER CHECKPOINT [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# A run that was killed goes on where it was, and one that is done is passed over: start the same line again.
set -euo pipefail
root=${1:?usage: $0 FOLDER CHECKPOINT [key=value ...]}
weights=${2:?usage: $0 FOLDER CHECKPOINT [key=value ...]}
shift 2
out=outputs/parallel_search
run() { # NAME [key=value ...]
  local name=$1
  shift
  rlprune prune dataset=imagefolder "dataset.root=$root" training=cifar agent=mcq criterion=taylor recovery=none seed=0 \
    model=resnet56 model.shortcut=A "checkpoint=$weights" search.execution=sliced search.samples=1024 \
    schedule.steps=5 schedule.period=5 search.max_candidates=40 "paths.run=$out/$name" resume=true "$@"
}
run workers-1 evaluator.workers=1 "$@"
run workers-2 evaluator.workers=2 "$@"
run ray-2 evaluator=ray evaluator.workers=2 "$@"
run this-process "$@"
python "$(dirname "$0")/parallel_table.py" "$out"
