import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import last_line, metrics
from torch import nn

import rlprune as package
from rlprune.checkpoint import load_tensors
from rlprune.config import build, shipped
from rlprune.errors import UserError
from rlprune.graph import prune, trace
from rlprune.models.resnet import CifarResNet
from rlprune.training.progress import Saver
from rlprune.training.scratch import draw_weights

SMOKE = ("debug=smoke", "device=cpu", "precision=fp32")
SMALL = ("model.depth=8", "model.width=0.5", "dataset.image_size=16")
EXAMPLE = torch.zeros(2, 3, 32, 32)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The folder of a finished run; tests copy it."""
    from rlprune import cli

    folder = tmp_path_factory.mktemp("pruned")
    line = ("prune", *SMOKE, *SMALL, "agent=global", "criterion=l1", "dense_seed=3", "schedule.save_at=[0.25]")
    assert cli.main([*line, f"paths.outputs={folder}/outputs", f"paths.run={folder}/run"]) == 0
    return folder / "run"


@pytest.fixture
def run(pruned, tmp_path):
    return shutil.copytree(pruned, tmp_path / "run").relative_to(tmp_path)


def result(folder):
    return json.loads(Path(folder, "result.json").read_text())


def plan(folder):
    return json.loads(Path(folder, "plan.json").read_text())


def weights(folder):
    return load_tensors(Path(folder, "pruned/weights.safetensors"))[0]


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- first weights ---------------------------------------------------------------------------------------------------------------------


def cut(network, share, ignore=()):
    """A network whose groups keep so much of their units."""
    graph = trace(network, EXAMPLE, ignore=ignore, prove=False)
    keep = {group.name: np.arange(max(1, round(share * group.num_units))) for group in graph.groups}
    return prune(network, graph, keep)


def spread(tensor, expected):
    """Standard deviations off, over what chance allows; below 1 is what the rule says."""
    return abs(float(tensor.detach().std()) / expected - 1) * math.sqrt(tensor.numel()) / 5


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "mobilenetv2", "googlenet"])
def test_shipped_families_are_drawn_by_their_own_rule_at_the_small_widths(name):
    wide = build(shipped("model", name, {"width": 0.5}), "model", in_channels=3, num_classes=10)
    small = cut(wide, 0.25)
    convolutions = [module for module in small.modules() if isinstance(module, nn.Conv2d) and module.weight.numel() > 500]
    expected = [math.sqrt(2 / (module.out_channels * module.kernel_size[0] * module.kernel_size[1])) for module in convolutions]
    assert (
        max(spread(module.weight, value) for module, value in zip(convolutions, expected, strict=True)) > 5
    )  # a quarter is half the scale
    assert draw_weights(small, wide) == []
    for module, value in zip(convolutions, expected, strict=True):
        assert spread(module.weight, value) < 1
        assert module.bias is None or not module.bias.any()
    for module in small.modules():
        if isinstance(module, nn.Linear):  # torch's rule: uniform within ± 1 / sqrt(inputs)
            assert spread(module.weight, 1 / math.sqrt(3 * module.in_features)) < 1
            assert float(module.weight.detach().abs().max()) <= 1 / math.sqrt(module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert not module.bias.any()


class Blocks(nn.Module):
    """Layers that others draw otherwise: a constant, a rule of its own, a parameter without a rule, and one that loses nothing."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.scale = nn.Parameter(torch.rand(64, 1, 1))
        self.second = Scaled(64, 64)
        self.last = nn.Linear(64, 10)
        self.other = nn.Linear(10, 10)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.first.bias)
        nn.init.constant_(self.other.weight, 0.5)

    def forward(self, images):
        x = self.second(self.norm(self.first(images)) * self.scale).relu()
        return self.other(self.last(x.mean((2, 3))))


class Scaled(nn.Conv2d):
    """Starts with a hundredth."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, padding=1)

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=0.01)
        nn.init.ones_(self.bias)


def test_ones_own_modules_are_drawn_by_reset_parameters_where_they_have_it():
    wide = Blocks()
    small = cut(wide, 0.25, ignore=["last"])
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    assert draw_weights(small, wide) == ["scale"]
    assert (small.first.weight.shape, small.second.weight.shape) == ((16, 3, 3, 3), (16, 16, 3, 3))
    assert spread(small.second.weight, 0.01) < 1
    assert spread(small.last.weight, 1 / math.sqrt(3 * 16)) < 1
    assert float(small.last.bias.detach().abs().max()) > 1 / math.sqrt(64)  # of the small fan, though no bias went
    assert not torch.equal(small.first.weight, before["first.weight"])
    for name in ("norm.weight", "first.bias", "second.bias", "other.weight", "other.bias", "scale"):
        assert torch.equal(small.state_dict()[name], before[name]), name


def test_a_rule_that_fails_is_named():
    wide = Blocks()
    small = cut(wide, 0.5)
    small.second.reset_parameters = lambda: 1 / 0
    with pytest.raises(UserError, match=r"model: second\.reset_parameters\(\) fails \(ZeroDivisionError: division by zero\)"):
        draw_weights(small, wide)


# -- the command -----------------------------------------------------------------------------------------------------------------------


def test_the_architecture_is_the_runs_and_the_weights_are_not(rlprune, run):
    line = ("train", *SMOKE, f"like={run}")
    code, out, err = rlprune(*line, "paths.run=first")
    assert code == 0, err
    done, theirs = result("first"), result(run)
    (row,), theirs_row = done["rows"], theirs["rows"][-1]
    assert row["name"] == "from scratch"
    assert "| from scratch | " in out
    for key in ("level", "params", "macs", "sparsity", "n"):
        assert row[key] == theirs_row[key]
    told = f"{theirs_row['name']}, top-1 {100 * theirs_row['top1']:.2f} ± {100 * theirs_row['standard_error']:.2f} %; from scratch is "
    assert f"{run}, by its own result.json: {told}{100 * (row['top1'] - theirs_row['top1']):+.2f} against it" in out
    assert done["like"] == str(run)
    assert (done["command"], done["like_agent"], done["like_seed"], done["like_level"]) == ("train", "global", 0, 0.5)
    assert (done["like_targets"], done["like_row"]["top1"]) == (theirs["targets"], theirs_row["top1"])
    assert (done["seed"], done["dense_seed"], done["epochs"], len(done["losses"])) == (0, 3, 1, 1)
    assert "dense" not in done
    shapes = {name: tensor.shape for name, tensor in package.load(run).state_dict().items()}
    assert {name: tensor.shape for name, tensor in package.load("first").state_dict().items()} == shapes
    assert plan("first/pruned")["keep"] == plan(run / "pruned")["keep"]
    assert not Path("outputs/dense").exists()
    assert not Path("first/checkpoint").exists()

    for path in run.rglob("*.safetensors"):  # nothing but the plan is needed
        path.unlink()
    (run / "result.json").unlink()
    assert rlprune(*line, "paths.run=second")[0] == 0
    assert equal(weights("first"), weights("second"))
    assert (result("second")["like_row"], result("second")["like_targets"]) == (None, None)
    assert rlprune(*line, "seed=1", "paths.run=third")[0] == 0
    other = result("third")
    assert (other["seed"], other["dense_seed"], other["splits"]) == (1, 3, done["splits"])
    assert not equal(weights("first"), weights("third"))


def test_its_result_is_an_artefact_as_any(rlprune, run):
    assert rlprune("train", *SMOKE, f"like={run}/pruned-0.25", "paths.run=first")[0] == 0
    (row,) = result("first")["rows"]
    assert (row["level"], result("first")["like_row"]["name"]) == (0.25, "recovered 25 %")
    assert row["params"] == plan(run / "pruned-0.25")["params"]
    code, out, err = rlprune("evaluate", "run=first", "device=cpu", "precision=fp32", "paths.run=again")
    assert (code, "| from scratch | " in out) == (0, True), err
    again = result("again")["rows"][0]
    for key in ("top1", "n", "params", "macs", "sparsity"):
        assert again[key] == row[key]
    line = ("prune", *SMOKE, *SMALL, "agent=like", "agent.run=first", "recovery=none", "criterion=l1", "paths.run=like")
    assert rlprune(*line)[0] == 0
    sizes = [{name: len(units) for name, units in plan(f"{name}/pruned")["keep"].items()} for name in ("first", "like")]
    assert sizes[0] == sizes[1]
    assert rlprune("train", *SMOKE, "like=first", "paths.run=second")[0] == 0
    assert equal(weights("first"), weights("second"))
    assert (result("second")["like_agent"], result("second")["like_level"]) == ("global", 0.25)
    assert result("second")["like_targets"] == result(run)["targets"]


def test_equal_compute_is_as_many_macs(rlprune, run):
    kept = plan(run / "pruned")["macs"] / result(run)["rows"][0]["macs"]
    code, out, _ = rlprune("train", *SMOKE, f"like={run}", "training.epochs=2", "equal_compute=true", "paths.run=first")
    epochs = math.floor(2 / kept + 0.5)
    assert (code, epochs > 2) == (0, True)
    assert f"2 epochs of the dense network, which has {1 / kept:.2f}× the MACs, are {epochs}\n" in out
    assert (result("first")["epochs"], len(result("first")["losses"]), result("first")["equal_compute"]) == (epochs, epochs, True)


def test_milestones_move_with_the_epochs():
    from rlprune.commands.like import _lengthen

    config = SimpleNamespace(training=SimpleNamespace(epochs=120, lr_milestones=[60, 90]))
    _lengthen(config, 2.017)
    assert (config.training.epochs, config.training.lr_milestones) == (242, [121, 182])


def test_a_killed_training_goes_on_to_the_same_weights(rlprune, run, monkeypatch):
    line = ("train", *SMOKE, f"like={run}", "training.epochs=3", "training.save_minutes=0", "training.ema=0.9")
    assert rlprune(*line, "paths.run=whole")[0] == 0
    saved = []

    def save(saver, progress):
        save_if_due(saver, progress)
        saved.append(progress.steps)
        if len(saved) == 6:
            raise KeyboardInterrupt

    save_if_due = Saver.save_if_due
    monkeypatch.setattr("rlprune.training.progress.SHARE", 1e9)
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "save_if_due", save)
        assert rlprune(*line, "paths.run=killed")[0] == 130
    assert not Path("killed/pruned").exists()
    code, out, _ = rlprune(*line, "resume=killed")
    assert (code, "going on behind epoch 1, batch 2" in out) == (0, True)
    assert equal(weights("killed"), weights("whole"))
    assert Path("killed/pruned/plan.json").read_text() == Path("whole/pruned/plan.json").read_text()
    assert metrics(result("killed")) == metrics(result("whole"))
    assert "that run is done" in rlprune(*line, "resume=killed")[2]


def test_data_sets_may_be_named_again(rlprune, run):
    code, _, err = rlprune("train", *SMOKE, f"like={run}", "dataset=digits", "dataset.image_size=16", "dataset.crop=2")
    assert code == 0, err
    (folder,) = Path("outputs/train").glob("*_from_scratch")  # not by the model that the line would choose
    assert plan(folder / "pruned")["origin"]["dataset_settings"]["crop"] == 2
    assert plan(folder / "pruned")["origin"]["mean"] == plan(run / "pruned")["origin"]["mean"]


def test_a_network_of_ones_own_is_named_again(rlprune, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    Path("like_nets.py").write_text(
        "from rlprune.models.resnet import CifarResNet\n\n\ndef net(num_classes):\n"
        "    return CifarResNet(depth=8, width=0.5, shortcut='B', in_channels=3, num_classes=num_classes)\n"
    )
    own = ("model=custom", "model.target=like_nets.net")
    assert rlprune("prune", *SMOKE, "agent=uniform", *own, "paths.run=run")[0] == 0
    code, _, err = rlprune("train", *SMOKE, "like=run")
    assert (code, len(last_line(err))) == (2, 1)
    assert "name the network again: model=custom model.target=like_nets.net beside the folder" in err
    assert rlprune("train", *SMOKE, "like=run", *own, "paths.run=first")[0] == 0
    assert rlprune("evaluate", "run=first", "device=cpu", "precision=fp32", *own, "paths.run=again")[0] == 0
    assert result("again")["rows"][0]["top1"] == result("first")["rows"][0]["top1"]
    assert isinstance(package.load("first", CifarResNet(depth=8, width=0.5, shortcut="B", in_channels=3, num_classes=10)), CifarResNet)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("like=gone",), "like=gone: has no pruned/plan.json; name the folder of a finished `rlprune prune`"),
        (("like=damaged",), "damaged/plan.json: is not valid JSON"),
        (
            ("like=newer",),
            "newer/plan.json: was written by a newer version (format 99, this one reads up to 2); pip install",
        ),
        (("like=garbled",), "garbled/plan.json: is not as it was written (its hash differs); copy the whole folder again"),
        (("like=run", "checkpoint=w.pt"), "checkpoint=w.pt: goes not with like, which trains from scratch; leave one of them out"),
        (("like=run", "model.width=0.25"), "model.width: like takes the run's model; name model=NAME as well, or leave it out"),
        (("like=run", "dataset.crop=2"), "dataset.crop: like takes the run's dataset; name dataset=NAME as well, or leave it out"),
        (("like=run", "model=vgg11"), "run/pruned/plan.json: "),
        (("like=run", "dense_seed=4"), "dense_seed=4: like takes the run's search split, of dense_seed=3; leave it out"),
        (("like=run", "dataset=cifar100", "dataset.root=nowhere"), "nowhere"),
        (("like=run", "training.optimizer.lr=1e30"), "no longer finite"),
        (("equal_compute=true",), "equal_compute=true: goes with like=RUN alone"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(rlprune, run, line, message):
    for name, text in (
        ("damaged", "{"),
        ("newer", json.dumps(plan(run / "pruned") | {"format": 99})),
        ("garbled", json.dumps(plan(run / "pruned") | {"origin": 3})),
    ):
        Path(name).mkdir()
        Path(name, "plan.json").write_text(text)
    code, _, err = rlprune("train", *SMOKE, *line)
    lines = last_line(err)
    assert (code, len(lines)) == (2, 1), err
    assert message in lines[0]
    assert not Path("outputs/dense").exists()


def test_another_number_of_classes_is_refused(rlprune, run):
    from PIL import Image

    for split in ("train", "test"):
        for name in "ab":
            Path("data", split, name).mkdir(parents=True)
            for index in range(20):
                Image.new("RGB", (32, 32), (index, 0, 0)).save(Path("data", split, name, f"{index}.png"))
    code, _, err = rlprune("train", *SMOKE, f"like={run}", "dataset=imagefolder", "dataset.root=data", "dataset.image_size=16")
    assert (code, last_line(err)) == (2, ["rlprune train: dataset: its 2 classes are not the network's 10; use its own data set"])
