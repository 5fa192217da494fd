#!/usr/bin/env bash
# FPRL on CIFAR-10 in an image folder, in what a CPU can do: VGG-16 with one linear layer at a quarter of its width; DDPG decides how much goes,
# with activation Taylor and with the minimum weight (L1) as criterion, the same episodes and the same retraining.
# usage: scripts/cifar10_fprl.sh FOLDER [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# A run that was killed goes on where it was, and one that is done is passed over: start the same line again.
set -euo pipefail
root=${1:?usage: $0 FOLDER [key=value ...]}
shift
for seed in 0 1; do
  for criterion in activation_taylor l1; do
    rlprune prune model=vgg16 model.classifier=slim model.width=0.25 dataset=imagefolder "dataset.root=$root" training=cifar training.epochs=16 \
      dense_seed=0 "seed=$seed" agent=ddpg "criterion=$criterion" schedule=free agent.episodes=40 agent.finetune_batches=4 search.samples=1024 \
      recovery=finetune recovery.final_epochs=4 recovery.batch_size=128 recovery.optimizer.lr=0.05 recovery.control=false \
      "paths.run=outputs/cifar10_fprl/$criterion-$seed" resume=true "$@"
  done
done
rlprune report runs='outputs/cifar10_fprl/*'
