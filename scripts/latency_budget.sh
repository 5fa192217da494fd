#!/usr/bin/env bash
# A bound on latency against bounds on MACs, at the same measured latency: ResNet-56 (option A), VGG-16 at a quarter and MobileNetV2 at half of
# their widths on CIFAR-10 in an image folder, mcq, 200 distinct candidates on 512 images, one epoch of recovery; then the table.
# usage: scripts/latency_budget.sh FOLDER CHECKPOINT [key=value ...]     FOLDER holds train/<class>/ and test/<class>/, CHECKPOINT is ResNet-56's
# NETWORKS="vgg16" takes some of the networks, VGG16=FILE and MOBILENETV2=FILE are dense weights; without them the networks are trained.
# A run that was killed goes on where it was, and one that is done is passed over: start the same line again.
set -euo pipefail
root=${1:?usage: $0 FOLDER CHECKPOINT [key=value ...]}
weights=${2:?usage: $0 FOLDER CHECKPOINT [key=value ...]}
shift 2
out=outputs/latency_budget
run() { # NETWORK NAME [key=value ...]
  local network=$1 name=$2
  shift 2
  local model=()
  case $network in
    resnet56) model=(model=resnet56 model.shortcut=A "checkpoint=$weights") ;;
    vgg16) model=(model=vgg16 model.classifier=slim model.width=0.25 training.epochs=16 ${VGG16:+"checkpoint=$VGG16"}) ;;
    mobilenetv2) model=(model=mobilenetv2 model.width=0.5 training.epochs=4 ${MOBILENETV2:+"checkpoint=$MOBILENETV2"}) ;;
    *) echo "$network: choose from resnet56 vgg16 mobilenetv2" >&2 && exit 2 ;;
  esac
  rlprune prune dataset=imagefolder "dataset.root=$root" training=cifar agent=mcq criterion=taylor seed=0 "${model[@]}" \
    schedule.steps=5 schedule.period=5 search.max_candidates=40 search.samples=512 recovery.epochs=1 recovery.final_epochs=1 \
    recovery.control=false "paths.run=$out/$network-$name" resume=true "$@"
}
for network in ${NETWORKS:-vgg16 resnet56 mobilenetv2}; do
  run "$network" latency-0.5 budget.latency=0.5 "$@"
  for macs in 0.5 0.35; do # the bound on latency binds nobody here: it is there to be predicted and measured
    run "$network" "macs-$macs" "budget.macs=$macs" budget.latency=0.99 "$@"
  done
done
python "$(dirname "$0")/latency_table.py" "$out"
