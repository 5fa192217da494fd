"""A segmentation network made half as large, with a training step, a loss and a metric of one's own.

Pictures are made here: a square or a disc on noise, 64×64 pixels; a network says of each pixel which of the two it shows, or neither.
`python scripts/examples/segmentation.py`: about two minutes on one core.
"""

import torch
import torch.nn.functional as F
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import rlprune

CLASSES = 3  # background, square, disc


def pictures(count, *, seed, side=64):
    """Images (N, 3, side, side) and the class of every pixel (N, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 3, side, side, generator=generator)
    masks = torch.zeros(count, side, side, dtype=torch.long)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for image, mask in zip(images, masks, strict=True):
        y, x = torch.randint(side // 4, 3 * side // 4, (2,), generator=generator)
        radius = torch.randint(side // 8, side // 4, (1,), generator=generator)
        kind = int(torch.randint(1, CLASSES, (1,), generator=generator))
        far = (rows - y).abs().maximum((columns - x).abs()) if kind == 1 else ((rows - y) ** 2 + (columns - x) ** 2).sqrt()
        mask[far <= radius] = kind
        image[:, far <= radius] += 1.0
    return images, masks


def loss(outputs, masks):
    """Cross-entropy of every pixel; the network returns a dict."""
    return F.cross_entropy(outputs["out"], masks)


def training_step(network, batch, teacher):
    """The loss of the masks, and the dense network's opinion of every pixel."""
    images, masks = batch
    outputs = network(images)
    with torch.no_grad():
        wanted = F.softmax(teacher(images)["out"], dim=1)
    return 0.5 * loss(outputs, masks) + 0.5 * F.cross_entropy(outputs["out"], wanted)


def mean_iou(network, batches):
    """Intersection over union of each class, over all pictures, and their mean."""
    confusion = torch.zeros(CLASSES, CLASSES)
    for images, masks in batches:
        found = network(images)["out"].argmax(dim=1)
        confusion += torch.bincount((CLASSES * masks + found).flatten().cpu(), minlength=CLASSES**2).view(CLASSES, CLASSES)
    both = confusion.diag()
    return (both / (confusion.sum(0) + confusion.sum(1) - both).clamp(min=1)).mean()


def make_network():
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 is for trainings of more than some hundred steps
    return network


def train(network, data, *, epochs, batch_size=16):
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    images, masks = data
    for _ in range(epochs):
        for chunk in torch.randperm(len(images)).split(batch_size):
            optimizer.zero_grad()
            loss(network(images[chunk]), masks[chunk]).backward()
            optimizer.step()


def main(*, count=192, epochs=15, side=64, **arguments):
    """Train a dense network, and compress it: both, with what `rlprune.compress` has returned."""
    torch.manual_seed(0)
    network, data = make_network(), pictures(count, seed=0, side=side)
    train(network, data, epochs=epochs)
    result = rlprune.compress(
        network,
        data,
        val_data=pictures(count // 4, seed=1, side=side),
        loss=loss,
        training_step=training_step,
        recovery={"batch_size": 16, "epochs": 1, "final_epochs": 2},
        **{"metric": mean_iou, "agent": "mcq", "macs": 0.5, "steps": 4, "settings": {"agent.stages": 2}, **arguments},
    )
    return network, result


if __name__ == "__main__":
    _, compressed = main()
    print(compressed.report)
    compressed.save("outputs/segmentation")
