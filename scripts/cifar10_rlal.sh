#!/usr/bin/env bash
# RLAL on CIFAR-10 in an image folder, from scratch to half of the MACs, in what a CPU can do; beside it, for the same number of epochs, the
# network trained dense, the dense network pruned by AMC and fine-tuned, and uniformly narrower layers trained from scratch; then the
# ablation of Table 3, candidates without new batch-norm statistics, random policies, and (resnet20) 5 and 15 episodes an epoch, a row of Figure 2.
# usage: scripts/cifar10_rlal.sh FOLDER resnet20|resnet56 [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# A run that was killed goes on where it was, and one that is done is passed over: start the same line again.
# In a twentieth of the paper's epochs its β would hardly move a weight, so that β is ten times as large.
set -euo pipefail
root=${1:?usage: $0 FOLDER resnet20|resnet56 [key=value ...]}
model=${2:?usage: $0 FOLDER resnet20|resnet56 [key=value ...]}
shift 2
case $model in
  resnet20) epochs=12 final=3 ;;
  resnet56) epochs=8 final=2 ;;
  *) echo "$0: $model: choose resnet20 or resnet56" >&2 && exit 2 ;;
esac
out=outputs/cifar10_rlal/$model
recipe=(training=cifar training.clip_norm=null training.optimizer.lr=0.2)
finetune=(recovery=finetune "recovery.final_epochs=$final" recovery.batch_size=128 recovery.clip_norm=null recovery.optimizer.lr=0.05)
scratch=(recovery=finetune "recovery.final_epochs=$((epochs + final))" recovery.batch_size=128 recovery.clip_norm=null recovery.optimizer.lr=0.2)
run() { # NAME [key=value ...]
  local name=$1
  shift
  rlprune prune "model=$model" dataset=imagefolder "dataset.root=$root" "${recipe[@]}" budget.macs=0.5 "paths.run=$out/$name" resume=true \
    recovery.control=false "$@"
}
rlal=(agent=rlal agent.beta=0.001 "training.epochs=$epochs" "${finetune[@]}")
looks=(search.samples=2048 search.recalibrate_bn=512) # at a candidate, as RLAL's
run rlal "${rlal[@]}" recovery.control=true "$@"
run uniform agent=uniform criterion=random schedule=oneshot training.epochs=0 "${scratch[@]}" "$@" # which units go says nothing before training
run amc agent=amc criterion=l1 agent.episodes=200 agent.warmup=50 "${looks[@]}" "training.epochs=$epochs" "${finetune[@]}" "$@"
if [[ $model == resnet20 ]]; then
  run no_embeddings "${rlal[@]}" agent.epoch_embeddings=false "$@"
  run no_embeddings_no_lasso "${rlal[@]}" agent.epoch_embeddings=false agent.soft_regularization=false "$@"
  run no_statistics "${rlal[@]}" search.recalibrate_bn=0 "$@" # as in the paper
  run random "${rlal[@]}" "agent.warmup_epochs=$epochs" "$@"
  run 5_episodes "${rlal[@]}" agent.episodes=5 "$@"
  run 15_episodes "${rlal[@]}" agent.episodes=15 "$@"
fi
python "$(dirname "$0")/rlal_table.py" "$out"
