"""Every preset of a paper's table, whole but tiny: all that it promises is in the table, beside all that the paper prints."""

import inspect
import json
import math
import re
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from rlprune.config import conf_dir, register
from rlprune.files import read_json
from rlprune.grid import read_grid
from rlprune.report.layouts import KINDS, read_layout, table_names
from rlprune.report.paper import printed_numbers
from rlprune.report.paper_table import HEADINGS
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
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("ant", "bee", "cat"):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(24 if split == "train" else 8):
                Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")


# -- the whole of it -------------------------------------------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "_small" in name else pytest.mark.papers) for name in PRESETS if "rlp_fig1" not in name]
)
def test_a_preset_runs_whole_and_its_table_holds_all_of_it(rlprune, name):
    if "scratch" in name:
        code, _, err = rlprune(*started(name.replace("_scratch", "")), "agent=mcq,uniform")
        assert code == 0, err.splitlines()[-1]
    code, _, err = rlprune(*started(name))
    assert code == 0, err.splitlines()[-1]
    cells = [cell for cell in cells_of(name) if cell.all_values["seed"] == "0"]
    found = {path.parent.name for path in Path("outputs", name).glob("*/result.json")}
    assert found == {on_digits(cell.name) for cell in cells}
    if "rlpruner_fig1" in name:
        runs = f"outputs/{name}"
        assert (
            rlprune("sensitivity", f"run={runs}/mcq_seed-0", f"paths.run={runs}/sensitivity_mcq_seed-0", "debug=smoke", "device=cpu")[0]
            == 0
        )
    table = name.replace("_scratch", "")
    code, out, err = rlprune("report", f"table={table}", "plots=false")
    assert code == 0, err.splitlines()[-1]
    check_table(table, out, cells)
    if "scratch" in name:  # each level is compared with its own
        assert all(f"sparsity {level} %: highest is" in out for level in (40, 60, 80))
    missing = next((line for line in out.splitlines() if line.startswith("- not run: ")), "")
    assert "_seed-0" not in missing or name.startswith("fprl") or name.removesuffix("_small") == "rlpruner_table4"


def on_digits(name):
    return re.sub("cifar100?", "digits", name)


def check_table(table, out, cells):
    layout, text = read_layout(table), " ".join(out.split())
    numbers = pd.read_csv(next(Path("outputs/report").glob("*/paper.csv")))
    here = numbers[numbers["source"] == "here"]
    assert "failed" not in text
    assert set(here["n"]) <= {1} or layout.kind in ("layers", "sensitivity")
    for key, value in {item for cell in cells for item in cell.all_values.items()}:  # every value of every axis
        if key in ("seed", "dataset", "like", "agent.run") or layout.kind == "sensitivity":
            continue
        word = value if "." not in key or key == "model.name" else f"{key.rpartition('.')[2]}={value}"
        assert any(word in line for line in out.splitlines() if line.startswith("|")), (key, value)
    printed = [entry for entry in read_published() if entry.source in layout.published]
    assert bool(printed) == bool(layout.published)
    paper = numbers[numbers["source"] == "paper"]
    for entry in printed:  # every published row, with every number
        wanted = {name: printed_numbers(entry)[name] for name in layout.cells or ("top1",) if not math.isnan(printed_numbers(entry)[name])}
        own = paper[paper["row"].str.contains(entry.method, regex=False)]
        own = own[own["level"] == entry.sparsity] if layout.levels else own
        texts = [[f"{line.mean:.2f}" for line in own[own["number"] == name].itertuples()] for name in wanted]
        assert all(f"{value:.2f}" in found for value, found in zip(wanted.values(), texts, strict=True)), entry
    if layout.kind in ("levels", "scratch"):
        assert set(paper["level"].astype(float)) == set(layout.levels) == {float(level) for level in here["level"]}
        assert len(paper[paper["number"] == "top1"]) == len(printed)
    if layout.kind == "sensitivity":
        assert set(numbers["number"]) == {"dense", "pruned"}
        assert set(numbers["row"]) == {"features.0", "features.4"}
    if table.startswith("rlal_table"):  # what was trained and pruned at once has the dense network of the others, not itself
        dense = here[here["number"] == "dense"].set_index(["block", "row"])["mean"]
        assert dense.groupby("block").nunique().eq(1).all()
        top1 = [json.loads(path.read_text())["rows"][0] for path in Path("outputs", table).glob("*uniform_seed-0/result.json")]
        assert set(dense.round(6)) == {round(100 * row["top1"], 6) for row in top1}
        assert {row["name"] for row in top1} <= {"dense", "published"}
    if layout.kind == "list":
        rows = {(line.split("|")[1].strip(), line.split("|")[2].strip()) for line in out.splitlines() if "| here " in line}
        assert len(rows) >= len({on_digits(cell.name) for cell in cells})


@pytest.mark.usefixtures("_small")
def test_holes_are_shown_with_their_errors(rlprune):
    code, _, err = rlprune(*started("rlal_table1_small"), "agent=uniform,mcq", "recovery.final_epochs=1", "search.samples=1000")
    assert code == 0, err.splitlines()[-1]
    failing = ("seed=1", "agent=uniform", "schedule.min_keep=20")  # nothing may go
    assert rlprune(*started("rlal_table1_small"), *failing)[0] == 2
    code, out, err = rlprune("report", "table=rlal_table1_small", "plots=false")
    assert (code, "Traceback" in err) == (0, False)
    rows = {tuple(cell.strip() for cell in line.split("|")[1:4]): line for line in out.splitlines() if "| here " in line}
    assert rows["resnet56", "uniform", "here"].rstrip(" |").endswith("1 of 3")
    assert rows["resnet56", "rlal", "here"].rstrip(" |").endswith("0 of 3")
    assert rows["resnet56", "rlal", "here"].count("—") == 4
    assert ("resnet56", "mcq", "here") in rows  # an agent that the paper's table has not
    assert "- resnet56_uniform_seed-1: failed: schedule: nothing may go; lower schedule.min_keep" in out
    assert "not run: resnet56_rlal_seed-0, resnet56_rlal_seed-1, resnet56_rlal_seed-2," in out


@pytest.mark.usefixtures("_small")
def test_a_grid_of_which_nothing_ended_well_is_a_table_of_holes(rlprune):
    assert rlprune(*started("rlpruner_table3_small"), "schedule.min_keep=20")[0] == 2
    code, out, _ = rlprune("report", "table=rlpruner_table3_small")
    assert code == 0
    assert "— " in out
    assert "failed: schedule: nothing may go" in out
    assert "no run of it is finished" in out
    assert "73.46" in out  # what the paper prints is there all the same


@pytest.mark.usefixtures("_small")
def test_seeds_make_a_mean_and_published_rows_stand_above_what_does_the_same(rlprune):
    line = ("agent=mcq,uniform", "model=vgg19", "seed=0,1")
    code, _, err = rlprune(*[word for word in started("rlpruner_table2_small") if not word.startswith("seed")], *line)
    assert code == 0, err.splitlines()[-1]
    code, out, _ = rlprune("report", "table=rlpruner_table2_small", "plots=false")
    assert code == 0
    numbers = pd.read_csv(next(Path("outputs/report").glob("*/paper.csv"))).set_index(["block", "row", "source", "level", "number"])
    found = [
        json.loads((Path("outputs/rlpruner_table2_small") / f"vgg19_digits_mcq_seed-{seed}/result.json").read_text()) for seed in (0, 1)
    ]
    at_half = [next(row for row in result["rows"][::-1] if row["level"] == 0.5) for result in found]
    line = numbers.loc["vgg19", "mcq", "here", 50, "top1"]
    assert line["mean"] == pytest.approx(100 * sum(row["top1"] for row in at_half) / 2)
    assert line["n"] == 2
    gone = [100 * (1 - row["macs"] / result["rows"][0]["macs"]) for row, result in zip(at_half, found, strict=True)]
    assert numbers.loc["vgg19", "mcq", "here", 50, "macs"]["mean"] == pytest.approx(sum(gone) / 2)
    rows = [line.split("|")[2].strip() for line in out.splitlines() if line.startswith("| vgg19")]
    assert rows.index("mcq") == rows.index("RL-Pruner [2]") + 1
    assert rows.index("depgraph") == rows.index("DepGraph [1]") + 1
    assert "vgg19 (width=0.125) on digits" in out  # which is said, as it is not the paper's


@pytest.mark.no_cover
def test_individual_layers_beside_the_entire_network(rlprune, monkeypatch):
    for name in ("plot_accuracy", "plot_layers", "plot_channels", "plot_episodes"):
        monkeypatch.setattr(f"rlprune.results.finish.{name}", lambda *_: None)
    small = ("dataset=digits", "dataset.limit=40", "model.width=0.0625", "agent.updates=1", "agent.samples=2", "recovery=none")
    code, _, err = rlprune("prune", "experiment=rlp_fig1_small", *SMOKE, *small, "schedule.steps=1")
    assert code == 0, err.splitlines()[-1]
    code, out, _ = rlprune("report", "table=rlp_fig1_small", "plots=false")
    assert code == 0
    check_table("rlp_fig1_small", out.replace("one by one", "layer=" + " layer=".join(layers())), [])
    lines = [line for line in out.splitlines() if line.startswith("| vgg16")]
    assert [line.split("|")[2].strip().split("+")[0] for line in lines][:13] == layers()
    assert not any("—" in line for line in lines[:13])


def layers():
    return [cell.all_values["agent.layer"] for cell in cells_of("rlp_fig1_small") if "agent.layer" in cell.all_values]


@pytest.fixture
def _two(rlprune, _small):
    """Two finished runs of a table."""
    line = [*started("rlal_table1_small")[:-1], "schedule.steps=1", "agent=uniform", "model=resnet56"]
    assert rlprune(*line)[0] == 0
    assert rlprune(*line, "recovery.final_epochs=2,3")[0] == 0


@pytest.mark.usefixtures("_two")
def test_other_settings_are_rows_of_their_own_and_a_copy_is_no_seed(rlprune):
    folder = Path("outputs/rlal_table1_small")
    shutil.copytree(folder / "resnet56_uniform_seed-0", folder / "copy")
    code, out, _ = rlprune("report", "table=rlal_table1_small", "plots=false")
    assert code == 0
    cells = [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if "| uniform" in line]
    assert [(row[2], row[-2]) for row in cells if row[3] == "here"] == [
        ("uniform (final_epochs=1)", "1 of 3"),
        ("uniform (final_epochs=2)", "1"),
        ("uniform (final_epochs=3)", "1"),
    ]
    assert "repeats" in out


@pytest.mark.usefixtures("_two")
@pytest.mark.parametrize("change", [{"macs": 0}, {"macs": None}, {"params": "x"}, {"level": "half"}])
def test_a_garbled_result_is_named_and_left_out(rlprune, change):
    path = Path("outputs/rlal_table1_small/resnet56_uniform_seed-0/result.json")
    result = read_json(path)
    result["rows"][-1] |= change
    result["rows"][0] |= {"macs": 0} if change == {"macs": 0} else {}
    path.write_text(json.dumps(result))
    code, out, err = rlprune("report", "table=rlal_table1_small", "plots=false")
    assert (code, "Traceback" in err) == (0, False)
    assert "resnet56_uniform_seed-0: not readable: result.json lacks or garbles" in out
    assert "delete that folder and start its line again" in out


# -- layouts ---------------------------------------------------------------------------------------------------------------------------


def test_every_layout_has_its_presets_and_its_rows():
    sources = {entry.source for entry in read_published()}
    for name in table_names():
        for table in (name, f"{name}_small"):
            layout = read_layout(table)
            assert layout.kind in KINDS
            assert set(layout.runs) <= set(PRESETS)
            assert set(layout.published) <= sources
            assert set(layout.cells) <= set(HEADINGS)
            assert (layout.kind == "levels") <= bool(layout.levels)
            assert (Path(__file__).parent.parent / "scripts" / f"{name}.sh").is_file()
    assert {name.removesuffix("_small").removesuffix("_scratch") for name in PRESETS} == set(table_names())
    assert {source for source in sources if "Table" in source} == {
        source for name in table_names() for source in read_layout(name).published
    }


def test_levels_of_a_preset_are_the_columns_of_its_table():
    for name in PRESETS:
        layout = read_layout(name.replace("_scratch", ""))
        if layout.kind == "levels" or name.startswith("rlpruner_table4_small"):
            schedule = composed(name).schedule
            assert [*(100 * level for level in schedule.save_at), 100 * schedule.sparsity] == pytest.approx(list(layout.levels))


def test_what_the_paper_misprints_is_marked():
    notes = [(entry.source, entry.method, entry.note) for entry in read_published() if (entry.note or "").startswith("anomaly")]
    assert {source for source, *_ in notes} >= {"RL-Pruner, Table 2", "RL-Pruner, Table 3", "RLAL, Table 1", "FPRL, Table 2"}
    assert ("RLAL, Table 1", "HRank", "anomaly: the paper prints a delta of -0.09") in notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("table=rlpruner_table9",), "table=rlpruner_table9: no such table (did you mean rlpruner_table4?)"),
        (("table=rlpruner_table2_smal",), "did you mean rlpruner_table2_small?"),
        (("table=",), "table=: no such table"),
        (("table=rlal_table3", "select={seed: 0}"), "select={'seed': 0}: goes not with table"),
        (("table=rlal_table3", "runs=nothing/*"), "runs=nothing/*: no run matches; leave it out for those of experiment=rlal_table3"),
    ],
)
def test_a_table_that_is_none(rlprune, line, message):
    code, _, err = rlprune("report", *line)
    assert (code, message in err, "Traceback" in err) == (2, True, False), err


def test_runs_of_another_kind_do_not_disturb_a_table(rlprune):
    Path("outputs/rlal_table3/odd").mkdir(parents=True)
    (Path("outputs/rlal_table3/odd") / "result.json").write_text("{")
    code, out, _ = rlprune("report", "table=rlal_table3")
    assert (code, "odd: not readable" in out) == (0, True)
