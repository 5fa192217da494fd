#!/usr/bin/env bash
# RLP on CIFAR-10 in an image folder, in what a CPU can do: VGG-16 with one linear layer and ResNet-18, both at an eighth of their widths;
# a policy for every layer, an epoch of fine-tuning behind each (ResNet-18: behind every second) and two at the end, the paper's four drop
# bounds. Then VGG-16's layers one by one, for the figure of kept and pruned channels, and beside each run two with the same widths and the
# same fine-tuning, whose units were drawn at random or have the largest L1 norms.
# usage: scripts/cifar10_rlp.sh FOLDER vgg16|resnet18 [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# A run that was killed goes on where it was, and one that is done is passed over: start the same line again.
set -euo pipefail
root=${1:?usage: $0 FOLDER vgg16|resnet18 [key=value ...]}
model=${2:?usage: $0 FOLDER vgg16|resnet18 [key=value ...]}
shift 2
folder=outputs/cifar10_rlp
case $model in
  vgg16) network=(model=vgg16 model.classifier=slim model.width=0.125 training.epochs=16) steps=() ;;
  resnet18) network=(model=resnet18 model.width=0.125 training.epochs=16) steps=(schedule.steps=6) ;; # two channel groups a step
  *) echo "$0: $model: vgg16 or resnet18" >&2; exit 2 ;;
esac
common=("${network[@]}" dataset=imagefolder "dataset.root=$root" training=cifar dense_seed=0 recovery=finetune
  recovery.final_epochs=2 recovery.batch_size=128 recovery.optimizer.lr=0.02 recovery.control=false resume=true)
for bound in 1 3 2 0.5; do
  control=$([ "$bound" = 1 ] && echo true || echo false) # the same epochs for all bounds
  rlprune prune "${common[@]}" "${steps[@]}" agent=reinforce "agent.drop_bound=$bound" "recovery.control=$control" "paths.run=$folder/$model-$bound" "$@"
done
if [ "$model" = vgg16 ]; then
  for layer in 0 3 7 10 14 17 20 24 27 30 34 37 40; do
    rlprune prune "${common[@]}" agent=reinforce agent.drop_bound=3 agent.mode=individual "agent.layer=features.$layer" recovery=none \
      "paths.run=$folder/layer-$layer" "$@"
  done
  python scripts/channels_figure.py "$folder/channels.png" --individual "$folder"/layer-* --entire "$folder/vgg16-3"
fi
for bound in 1 3 2 0.5; do
  run=$folder/$model-$bound
  for criterion in random l1; do
    rlprune prune "${common[@]}" agent=like "agent.run=$run" schedule=layers "${steps[@]}" "criterion=$criterion" "paths.run=$run-$criterion" "$@"
  done
done
python scripts/rlp_table.py "$folder/$model"-*
