"""Every preset of a paper's table, whole but tiny: all that it promises is in the table, beside all that the paper prints."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import nn

from rlprune.config import conf_dir, register
from rlprune.grid import read_grid
from rlprune.report.paper import read_layout
from rlprune.results.published import read_published

PRESETS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml") if "_table" in path.stem or "_fig" in path.stem)
SMOKE = ("debug=smoke", "device=cpu", "precision=fp32", "channels_last=false", "seed=0", "search.execution=sliced")
DIGITS = ("dataset=digits", "dataset.limit=64", "dataset.image_size=8")
STAND_INS = [
    "vgg.VGG", "resnet.CifarResNet", "resnet.ResNet", "densenet.DenseNet", "googlenet.GoogLeNet", "mobilenetv2.MobileNetV2",
    "mobilenetv3.MobileNetV3", "torchvision.torchvision_network",
]  # fmt: skip


class Small(nn.Sequential):
    """Stands in for the networks of the tables, which take long even when they are narrow."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.features = nn.Sequential(*self.block(in_channels, 10), nn.MaxPool2d(2), *self.block(10, 20))
        self.linear = nn.Linear(20, num_classes)

    @staticmethod
    def block(inputs, outputs):
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    def forward(self, x):
        return self.linear(self.features(x).mean((2, 3)))


@pytest.fixture
def _small(monkeypatch):
    """Every network of the zoo is Small; its settings are checked and kept all the same. No plots, and no time is taken."""
    for place in STAND_INS:
        module, _, name = f"rlprune.models.{place}".rpartition(".")
        original = getattr(import_module(module), name)

        def make(num_classes, in_channels, **_):
            return Small(num_classes, in_channels)

        make.__signature__ = inspect.signature(original)
        make.__annotations__ = (original.__init__ if inspect.isclass(original) else original).__annotations__
        monkeypatch.setattr(f"{module}.{name}", make)
    for name in ("plot_accuracy", "plot_training", "plot_layers", "plot_channels", "plot_episodes"):
        monkeypatch.setattr(f"rlprune.results.finish.{name}", lambda *_: None)
    monkeypatch.setattr("rlprune.results.finish.latency_ms", lambda *_: 1.0)


def composed(name):
    register()
    GlobalHydra.instance().clear()
    command = "train" if "scratch" in name else "prune"
    with initialize_config_dir(config_dir=str(conf_dir().resolve()), version_base="1.3"):
        return compose(command, [f"experiment={name}"], return_hydra_config=True)


def cells_of(name):
    return read_grid(OmegaConf.to_container(composed(name).grid, resolve=False))


def started(name):
    """The command line of a preset, for tiny data."""
    if "scratch" in name:
        return "train", f"experiment={name}", "debug=smoke", "device=cpu", "precision=fp32", "channels_last=false", "seed=0"
    if name.startswith("rlal_table2"):
        pictures(Path("data"))
        data = ("dataset.root=data", "dataset.image_size=16", "dataset.resize=16", "dataset.limit=64")
    else:
        data = DIGITS
    agent = ("schedule.steps=1",) if name.startswith("rlal") else ()
    return "prune", f"experiment={name}", *SMOKE, *data, *agent


def pictures(root):
    """Three classes of eight pictures a split, in folders as ImageNet has them."""
    from torchvision.io import write_png

    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for label in ("ant", "bee", "cat"):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(24 if split == "train" else 8):
                write_png(torch.randint(0, 255, (3, 16, 16), generator=generator, dtype=torch.uint8), str(folder / f"{number}.png"))


# -- the whole of it -------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", [name for name in PRESETS if "rlp_fig1" not in name])
def test_a_preset_runs_whole_and_its_table_holds_all_of_it(rlprune, name):
    if "scratch" in name:
        code, _, err = rlprune(*started(name.replace("_scratch", "")), "agent=mcq,uniform")
        assert code == 0, err.splitlines()[-1]
    code, _, err = rlprune(*started(name))
    assert code == 0, err.splitlines()[-1]
    cells = [cell for cell in cells_of(name) if cell.all_values["seed"] == "0"]
    found = {path.parent.name for path in Path("outputs", name).glob("*/result.json")}
    assert found == {on_digits(cell.name) for cell in cells}
    table = name.replace("_scratch", "")
    code, out, err = rlprune("report", f"table={table}", "plots=false")
    assert code == 0, err.splitlines()[-1]
    check_table(table, out, cells)


def on_digits(name):
    return re.sub("cifar100?", "digits", name)


def check_table(table, out, cells):
    layout, text = read_layout(table), " ".join(out.split())
    numbers = pd.read_csv(next(Path("outputs/report").glob("*/paper.csv")))
    here = numbers[numbers["source"] == "here"]
    assert "failed" not in text
    assert set(here["n"]) <= {1} or layout.kind in ("layers", "sensitivity")
    for key, value in {item for cell in cells for item in cell.all_values.items()}:  # every value of every axis
        if key in ("seed", "dataset", "like", "agent.run"):
            continue
        word = value if "." not in key or key == "model.name" else f"{key.rpartition('.')[2]}={value}"
        assert any(word in line for line in out.splitlines() if line.startswith("|")), (key, value)
    printed = [entry for entry in read_published() if entry.source in layout.published]
    assert bool(printed) == bool(layout.published)
    paper = numbers[numbers["source"] == "paper"]
    for entry in printed:  # every published row
        lines = [line for line in out.splitlines() if line.startswith("|") and "| paper " in line]
        assert any(f"{entry.top1 if entry.top1 is not None else entry.delta:.2f}".replace("-", "−") in line for line in lines), entry
    if layout.kind in ("levels", "scratch"):
        assert set(paper["level"].astype(float)) == set(layout.levels) == {float(level) for level in here["level"]}
        assert len(paper[paper["number"] == "top1"]) == len(printed)
    if layout.kind == "list":
        rows = {(line.split("|")[1].strip(), line.split("|")[2].strip()) for line in out.splitlines() if "| here " in line}
        assert len(rows) >= len({on_digits(cell.name) for cell in cells})
