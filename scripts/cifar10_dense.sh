#!/usr/bin/env bash
# Dense networks on CIFAR-10 in an image folder, in what a CPU can do: ResNet-20, MobileNetV2 at half width, VGG-16 with a slim classifier.
# usage: scripts/cifar10_dense.sh FOLDER [key=value ...]     FOLDER holds train/<class>/ and test/<class>/
# With weights of others: rlprune evaluate model=resnet56 model.shortcut=A checkpoint=FILE dataset=imagefolder dataset.root=FOLDER \
#   'dataset.mean=[0.485,0.456,0.406]' 'dataset.std=[0.229,0.224,0.225]'
set -euo pipefail
root=${1:?usage: $0 FOLDER [key=value ...]}
shift
data=(dataset=imagefolder "dataset.root=$root" training=cifar)
rlprune train model=resnet20 "${data[@]}" training.epochs=24 training.optimizer.lr=0.2 training.clip_norm=null "$@"
rlprune train model=mobilenetv2 model.width=0.5 "${data[@]}" training.epochs=10 "$@"
rlprune train model=vgg16 model.classifier=slim "${data[@]}" training.epochs=8 "$@"
