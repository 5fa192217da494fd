"""What a data set holds, for people: sizes, class balance, and a sheet of its pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw

from rlprune.data.base import Images, Pictures
from rlprune.data.batches import Batches
from rlprune.files import write_atomically
from rlprune.seeding import derive_seed
from rlprune.setup import Setup

ROWS = 20  # classes at most
COLUMNS = 5  # pictures as they are, and as many as training sees them
TILE = 64  # pixels a side, at least
MOST = 160  # and at most
LABEL = 14


def class_table(setup: Setup) -> pd.DataFrame:
    """Training and search images of every class, and the class's share of both."""
    names, splits = setup.splits.class_names, setup.splits
    train, search = (torch.bincount(images.labels.cpu(), minlength=len(names)) for images in (splits.train, splits.search))
    share = 100 * (train + search).double() / int(train.sum() + search.sum())
    return pd.DataFrame(
        {"class": names, "train": train.tolist(), "search": search.tolist(), "share %": [f"{value:.2f}" for value in share.tolist()]}
    )


def summary(setup: Setup) -> str:
    """One line: sizes of images and splits, classes, balance, normalisation. The test split is counted, not opened."""
    splits, (channels, height, width) = setup.splits, setup.origin.shape
    counts = torch.bincount(torch.cat([splits.train.labels.cpu(), splits.search.labels.cpu()]), minlength=len(splits.class_names))
    place = "in memory" if isinstance(splits.train, Images) else "on disk"
    tests = setup.dataset.count_test()
    tests = tests if setup.dataset.limit is None else min(tests, setup.dataset.limit)
    numbers = "; ".join(
        f"{name} {', '.join(f'{value:.4f}' for value in values)}"
        for name, values in (("mean", splits.normalization.mean), ("std", splits.normalization.std))
    )
    smallest, largest = int(counts.min()), int(counts.max())
    balance = f"{smallest} images each" if smallest == largest else f"{smallest} to {largest} images, {largest / max(1, smallest):.1f} to 1"
    return (
        f"{channels}×{height}×{width} pixels; {len(splits.train)} training ({place}), {len(splits.search)} search, {tests} test images; "
        f"{len(splits.class_names)} classes of {balance}; {numbers}"
    )


def draw_sheet(path: Path, setup: Setup, *, randaugment: int | None, seed: int) -> None:
    """A row for each of the first 20 classes: five training images as they are, and the same ones as training varies them."""
    splits = setup.splits
    chosen = [
        np.flatnonzero(splits.train.labels.cpu().numpy() == label)[:COLUMNS].tolist() for label in range(min(ROWS, len(splits.class_names)))
    ]
    shown = np.array([index for row in chosen for index in row])
    images = splits.train.subset(shown)
    plain, varied = images.load().pixels, _varied(images, setup, randaugment, seed)
    tile = min(MOST, max(TILE, *plain.shape[2:]))
    sheet = Image.new("RGB", ((2 * COLUMNS + 1) * tile - tile // 2, len(chosen) * (tile + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    start = 0
    for row, (name, places) in enumerate(zip(splits.class_names, chosen, strict=False)):
        top = row * (tile + LABEL)
        pen.text((2, top), f"{name}: as they are"[: tile * COLUMNS // 7], fill="black", font_size=12)
        pen.text(((2 * COLUMNS + 1) * tile // 2 + 2, top), "as training varies them", fill="grey", font_size=12)
        for column in range(len(places)):
            for pixels, left in ((plain, column * tile), (varied, (2 * (COLUMNS + column) + 1) * tile // 2)):
                sheet.paste(_picture(pixels[start + column]).resize((tile, tile), Image.Resampling.NEAREST), (left, top + LABEL))
        start += len(places)
    write_atomically(path, lambda temporary: sheet.save(temporary))


def _varied(images: Pictures, setup: Setup, randaugment: int | None, seed: int) -> torch.Tensor:
    """The same images, augmented, in their order; uint8."""
    splits = setup.splits
    cpu = torch.device("cpu")
    batches = Batches(
        images,
        batch_size=len(images),
        normalization=splits.normalization,
        augmentation=replace(splits.augmentation, randaugment=randaugment),
        num_classes=len(splits.class_names),
        seed=derive_seed(seed, "sheet"),
        device=cpu,
    )
    return batches.augmented(np.arange(len(images)))


def _picture(pixels: torch.Tensor) -> Image.Image:
    """(C, H, W) → an RGB picture; of other than three channels the first is shown."""
    values = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
