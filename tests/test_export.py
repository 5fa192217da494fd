import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nets
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import last_line
from torch import nn

import rlprune as package
from rlprune.config import build, shipped
from rlprune.data.digits import Digits
from rlprune.errors import UserError
from rlprune.export.check import compare
from rlprune.export.export import file_bytes
from rlprune.export.fold import fold_norms
from rlprune.export.onnx import export_onnx
from rlprune.files import Terminated, tidy_on_sigterm, write_atomically
from rlprune.training.merged import FOLDABLE, mergeable

IMAGES = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SMALL = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(2))
PLAIN = {"opset": None, "dynamic_batch": True, "metadata": {}}


def run_file(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["scores"], {"images": images.numpy()})[0])


class Tiny(nn.Module):
    """A network that takes milliseconds; what it does with its last features is given."""

    def __init__(self, last=None):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.last = last if last is not None else nn.Identity()

    def forward(self, x):
        return self.head(self.last(self.norm(self.conv(x)).relu()).mean((2, 3)))


class Do(nn.Module):
    """A layer that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# -- every family ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "width", "dynamic"),  # a free batch size costs torch some seconds more
    [
        ("resnet20", 0.5, True), ("resnet50", 0.125, False), ("vgg11", 0.125, True), ("densenet121", 0.25, False),
        ("googlenet", 0.125, False), ("mobilenetv2", 0.25, False), ("mobilenetv3_small", 0.5, False), ("shufflenetv2", 0.25, True),
    ],
)  # fmt: skip
@torch.no_grad()
def test_a_pruned_network_is_a_smaller_file_with_torchs_scores(tmp_path, model, width, dynamic):
    dense = nets.randomised(build(shipped("model", model, {"width": width}), "model", in_channels=3, num_classes=10)).eval()
    graph = package.trace(dense, IMAGES[:2], prove=False)
    pruned = package.prune(dense, graph, {group.name: range(0, group.num_units, 2) for group in graph.groups}).eval()
    export_onnx(pruned, IMAGES[:2], tmp_path / "pruned.onnx", **PLAIN | {"dynamic_batch": dynamic})
    fixed = {**PLAIN, "dynamic_batch": False}  # traced in a fraction of the time, a file of the same tensors
    before = file_bytes(dense, IMAGES[:2], "onnx", fold_bn=False, folder=tmp_path, **fixed)
    assert (tmp_path / "pruned.onnx").stat().st_size < before
    assert {path.name for path in tmp_path.iterdir()} == {"pruned.onnx"}  # one file, whatever it weighs
    for images in (IMAGES, IMAGES[:1]) if dynamic else (IMAGES[:2], IMAGES[4:6]):
        wanted = pruned(images)
        assert (run_file(tmp_path / "pruned.onnx", images) - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))


# -- files -----------------------------------------------------------------------------------------------------------------------------


def test_a_file_carries_what_its_user_needs_and_nothing_of_this_machine(tmp_path):
    network = nets.randomised(Tiny())
    report = package.export_network(network, SMALL[:2], tmp_path / "new/tiny.onnx", images=SMALL, metadata={"class_names": '["a"]'})
    model = onnx.load(report.path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"class_names": '["a"]'}
    (images,), (scores,) = model.graph.input, model.graph.output
    assert (images.name, [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]) == ("images", ["batch", 3, 8, 8])
    assert (scores.name, [d.dim_param or d.dim_value for d in scores.type.tensor_type.shape.dim]) == ("scores", ["batch", 4])
    text = report.path.read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in text
    assert b"stack_trace" not in text
    assert (report.file_bytes, report.params, report.folded) == (len(text), sum(p.numel() for p in network.parameters()), 0)
    assert (report.check.images, report.check.agreement) == (7, 1.0)
    assert report.check.difference <= 1e-4
    assert network.training  # it is as it was
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_torch_export_files_are_read_without_rlprune(tmp_path):
    network = nets.randomised(Tiny())
    report = package.export_network(network, SMALL[:2], tmp_path / "tiny.pt2", "torch_export", images=SMALL, metadata={"mean": "[1]"})
    assert report.check.difference <= 1e-6
    torch.save(SMALL, tmp_path / "images.pt")
    torch.save(network.eval()(SMALL).detach(), tmp_path / "scores.pt")
    code = """
import sys, torch
more = {"rlprune.json": ""}
network = torch.export.load("tiny.pt2", extra_files=more).module()
assert more["rlprune.json"] == '{"mean": "[1]"}', more
torch.testing.assert_close(network(torch.load("images.pt")), torch.load("scores.pt"))
assert "rlprune" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(Path(__file__).parent).encode() not in report.path.read_bytes()


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", "onnx"), ("torch_export", "pt2")])
def test_a_fixed_batch_is_the_examples(tmp_path, kind, suffix):
    path = tmp_path / f"tiny.{suffix}"
    report = package.export_network(nets.randomised(Tiny()), SMALL[:3], path, kind, dynamic_batch=False, images=SMALL)
    assert report.check.images == 9  # three batches; the first images come twice
    if kind == "onnx":
        with pytest.raises(Exception, match="Got: 7 Expected: 3"):
            run_file(path, SMALL)


@pytest.mark.parametrize("opset", [18, 21])
def test_the_operator_set_is_the_one_that_was_asked_for(tmp_path, opset):
    export_onnx(Tiny(), SMALL[:1], tmp_path / "tiny.onnx", opset=opset, dynamic_batch=True, metadata={})
    assert {entry.domain: entry.version for entry in onnx.load(tmp_path / "tiny.onnx").opset_import}[""] == opset


def test_the_exporter_prints_nothing(tmp_path, capfd, recwarn):
    package.export_network(Tiny(), SMALL[:2], tmp_path / "tiny.onnx")
    package.export_network(Tiny(), SMALL[:2], tmp_path / "tiny.pt2", "torch_export")
    assert capfd.readouterr() == ("", "")
    assert list(recwarn) == []


def test_equal_tensors_do_not_make_the_dense_file_look_small(tmp_path):
    network = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(4)], nn.Flatten(), nn.Linear(192, 4))
    for layer in network[:4]:
        nn.init.ones_(layer.weight)
    export_onnx(network, SMALL[:2], tmp_path / "equal.onnx", **PLAIN)
    measured = file_bytes(network, SMALL[:2], "onnx", fold_bn=False, folder=tmp_path, **PLAIN)
    assert measured >= 4 * sum(parameter.numel() for parameter in network.parameters())
    assert torch.equal(network[0].weight, torch.ones(3, 3, 3, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["equal.onnx"]


# -- folding ---------------------------------------------------------------------------------------------------------------------------


class Folds(nn.Module):
    """Batch norms behind layers of every kind; the last has no layer to go into."""

    def __init__(self):
        super().__init__()
        self.plain, self.n0 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.grouped, self.n1 = nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d(4, affine=False)
        self.transposed, self.n2 = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)
        self.wide, self.n3 = nn.ConvTranspose2d(6, 2, 2, bias=False), nn.BatchNorm2d(2)
        self.line, self.n4 = nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5)
        self.linear, self.n5 = nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)
        self.last = nn.BatchNorm1d(7)

    def forward(self, x):
        x = self.n1(self.grouped(self.n0(self.plain(x)).relu())).relu()
        x = self.n3(self.wide(self.n2(self.transposed(x)).relu())).relu()
        x = self.n4(self.line(x.flatten(2))).relu().mean(2)
        return self.last(self.n5(self.linear(x)).relu())


@torch.no_grad()
def test_folding_changes_no_output_for_layers_of_any_kind():
    network = nets.randomised(Folds()).double().eval()
    images = SMALL.double()
    wanted = network(images)
    small, count = fold_norms(network, images[:2])
    assert count == 6
    assert [name for name, module in small.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)] == ["last"]
    torch.testing.assert_close(small(images), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(network(images), wanted)
    single, _ = fold_norms(nets.randomised(Folds()), SMALL[:2])
    assert {tensor.dtype for tensor in single.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2", "googlenet", "densenet121"])
@torch.no_grad()
def test_folding_changes_no_output_of_shipped_networks(model):
    network = nets.randomised(build(shipped("model", model, {"width": 0.25}), "model", in_channels=3, num_classes=10)).double().eval()
    small, count = fold_norms(network, IMAGES[:2].double())
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in each.modules()) for each in (network, small)]
    assert norms[0] - norms[1] == count > 0
    assert norms[1] == 0 or model == "densenet121"  # whose norms come before the convolutions, and read several
    torch.testing.assert_close(small(IMAGES.double()), network(IMAGES.double()), rtol=1e-10, atol=1e-10)


def test_a_norm_that_reads_the_features_along_another_axis_is_left():
    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm(self.linear(x[:, 0])).flatten(1)  # (n, 8 rows, 8 features): the norm is one of rows

    assert mergeable(Across(), SMALL[:2], FOLDABLE) == ()


def test_folded_files_have_torchs_scores(tmp_path):
    for name, kind in (("a.onnx", "onnx"), ("a.pt2", "torch_export")):
        report = package.export_network(nets.randomised(Folds()), SMALL[:2], tmp_path / name, kind, fold_bn=True, images=SMALL)
        assert report.folded == 6
        assert report.check.difference <= 1e-4
    operators = [node.target for node in torch.export.load(tmp_path / "a.pt2").graph.nodes if "batch_norm" in str(node.target)]
    assert len(operators) == 1


def test_what_an_example_of_zeros_hides_is_not_folded(tmp_path):
    class TwoReaders(Tiny):
        def forward(self, x):
            y = self.conv(x)
            return self.head((self.norm(y) + y).mean((2, 3)))

    network = nets.randomised(TwoReaders())
    nn.init.zeros_(network.conv.bias)
    report = package.export_network(network, torch.zeros(2, 3, 8, 8), tmp_path / "a.pt2", "torch_export", fold_bn=True)
    assert (report.folded, report.check.images) == (0, 7)
    assert report.check.difference <= 1e-5


def test_a_network_that_asks_its_norms_for_more_than_calls_keeps_them():
    class Asks(Tiny):
        def forward(self, x):
            return super().forward(x) * self.norm.eps / self.norm.eps

    with pytest.raises(UserError, match=r"fold_bn=true: the network cannot run without its batch norms .*eps.*; leave them in"):
        fold_norms(nets.randomised(Asks()), SMALL[:2])


# -- what cannot be exported -----------------------------------------------------------------------------------------------------------


def test_sigterm_leaves_no_temporary_file(tmp_path):
    def end(temporary):
        temporary.write_text("half a network")
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated, match="SIGTERM"), tidy_on_sigterm():
        write_atomically(tmp_path / "net.onnx", end)
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_target_that_cannot_be_is_told_before_the_network_is_looked_at(tmp_path):
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(UserError, match=r"out=.*net\.onnx: is a folder; name a file, out=.*net\.onnx/pruned\.onnx"):
        package.export_network(None, None, tmp_path / "net.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out=.*file/deep/net\.onnx: cannot be written, .*file: Not a directory; name another file"):
        package.export_network(None, None, tmp_path / "file/deep/net.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "net.onnx"]


@pytest.mark.parametrize(
    ("last", "settings", "message"),
    [
        (torch.special.bessel_j0, {}, r"format=onnx: ONNX has no operator for prims\.bessel_j0 \(in last\.0\); replace it"),
        (lambda x: x.reshape(2, 6, 6, 6), {}, r"dynamic_batch=true: the network takes 2 images and no other number"),
        (lambda x: x if x.sum() > 0 else -x, {}, r"torch\.export cannot follow it at .*test_export\.py:\d+ \(GuardOnDataDependent"),
        (lambda x: 1 / 0, {}, r"cannot run on the example inputs.*division by zero"),
        (lambda x: x, {"opset": 9}, r"opset=9: must be in 18\.\.\d+ \(onnx .*\), or null for torch's default"),
        (lambda x: x, {"opset": 99}, r"opset=99: must be in 18"),
        (lambda x: x, {"opset": 20, "format": "torch_export"}, "opset=20: goes with format=onnx alone"),
        (lambda x: x, {"format": "tflite"}, "format=tflite: unknown; choose one of onnx, torch_export"),
        (lambda x: x, {"format": "torch_export"}, r"out=.*net\.onnx: must end in \.pt2, as format=torch_export is written"),
        (lambda x: x, {"tolerance": 1e-30}, r"net\.onnx: its scores differ from torch's by up to .* where 1\.00e-30 is allowed"),
        (lambda x: x * float("nan"), {}, "its scores differ from torch's by up to nan"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_line_and_leaves_no_file(tmp_path, last, settings, message):
    path = tmp_path / "net.onnx"
    path.write_text("an older file")
    with pytest.raises(UserError, match=message) as raised:
        package.export_network(nets.randomised(Tiny(nn.Sequential(Do(last)))), SMALL[:2], path, images=SMALL, **settings)
    assert "\n" not in str(raised.value)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("net.onnx", "an older file")]


def test_networks_with_other_outputs_are_refused(tmp_path):
    network = nn.Sequential(Tiny(), Do(lambda x: {"scores": x}))
    with pytest.raises(UserError, match="network: returns a dict, not one tensor; wrap it in a module that returns its scores"):
        package.export_network(network, SMALL[:2], tmp_path / "net.onnx")


@pytest.mark.parametrize("package_name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, package_name):
    monkeypatch.setitem(sys.modules, package_name, None)
    with pytest.raises(UserError, match=rf"^format=onnx: needs {package_name}; pip install 'rlprune\[onnx\]'$"):
        export_onnx(Tiny(), SMALL[:2], tmp_path / "net.onnx", **PLAIN)


def test_weights_beyond_one_file_are_refused_before_they_are_traced(tmp_path):
    with torch.device("meta"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2_900_000))
    with pytest.raises(UserError, match=r"format=onnx: weights of 2\.2 GB; a file holds 2 GB; use format=torch_export"):
        export_onnx(network, SMALL[:2].to("meta"), tmp_path / "net.onnx", **PLAIN)


def test_the_comparison_sees_what_differs():
    def off(images):
        return images.flatten(1) + torch.arange(7.0)[: len(images), None].flip(0) * (len(images) == 1)

    right = compare(lambda images: images.flatten(1), lambda images: images.flatten(1), SMALL, batch=None)
    assert (right.difference, right.agreement, right.images) == (0.0, 1.0, 7)
    sizes = []
    compare(lambda images: sizes.append(len(images)) or images.flatten(1), lambda images: images.flatten(1), SMALL, batch=None)
    assert sizes == [1, 5, 1]
    turned = compare(lambda images: -images.flatten(1), lambda images: images.flatten(1), SMALL, batch=7)
    assert turned.difference == pytest.approx(2 * float(SMALL.abs().max()))
    assert turned.agreement == 0.0
    with pytest.raises(UserError, match=r"returns scores of shape \(2, 192\) for 1 images, torch \(1, 192\)"):
        compare(lambda images: SMALL[:2].flatten(1), lambda images: images.flatten(1), SMALL, batch=None)


# -- the command -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of a network of one's own, tiny; its module can be imported."""
    from rlprune import cli

    folder = tmp_path_factory.mktemp("finished")
    line = ["prune", "debug=smoke", "device=cpu", "model.width=0.25", "agent=global", "criterion=l1", "schedule.save_at=[0.25]"]
    assert cli.main([*line, f"paths.outputs={folder}/outputs", f"paths.run={folder}/run"]) == 0
    return folder / "run"


def test_the_command_leaves_a_checked_file_and_reads_no_test_image(rlprune, finished, monkeypatch):
    monkeypatch.setattr(Digits, "read_test", lambda self: pytest.fail("the test split was read"))
    code, out, err = rlprune("export", f"run={finished}", "paths.run=here")
    assert (code, [line for line in last_line(err) if "dense: its file" not in line]) == (0, [])
    path, told = finished / "export/pruned.onnx", json.loads(Path("here/result.json").read_text())
    assert f"wrote {path}" in out
    assert "32 images: scores differ from torch's by at most" in out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert table[0] == ["network", "file bytes", "parameters", "MACs"]
    assert [row[:2] for row in table[1:]] == [["dense", f"{told['dense_file_bytes']:,}"], ["pruned", f"{path.stat().st_size:,}"]]
    assert told["file_bytes"] < told["dense_file_bytes"]
    assert (told["command"], told["images"], told["file"]) == ("export", 32, str(path))
    plan = json.loads((finished / "pruned/plan.json").read_text())
    network, preprocess = package.load(finished), package.load_preprocessing(finished)
    known = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert known["plan_sha256"] == plan["sha256"] == told["plan_sha256"]
    assert json.loads(known["class_names"]) == list(map(str, range(10)))
    assert tuple(json.loads(known["mean"])) == preprocess.mean
    assert tuple(json.loads(known["std"])) == preprocess.std
    assert json.loads(known["image_size"]) == [32, 32]
    images = preprocess(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(run_file(path, images), network(images), rtol=1e-4, atol=1e-4)


def test_a_level_alone_goes_where_it_is_told(rlprune, finished, tmp_path):
    line = ("dense=false", "format=torch_export", "fold_bn=true", "images=3")
    assert rlprune("export", f"run={finished}/pruned-0.25", *line)[0] == 0
    assert (finished / "export/pruned-0.25.pt2").is_file()
    (tmp_path / "alone").mkdir()
    for path in (finished / "pruned-0.25").iterdir():
        (tmp_path / "alone" / path.name).write_bytes(path.read_bytes())
    assert rlprune("export", "run=alone", *line)[0] == 0
    assert Path("alone/export/pruned.pt2").is_file()
    code, out, _ = rlprune("export", "run=alone/plan.json", "out=deep/er/net.onnx", "format=onnx", "dynamic_batch=false", *line[:1])
    assert (code, Path("deep/er/net.onnx").is_file(), "dense" in out) == (0, True, False)


def test_without_its_data_set_a_network_is_compared_on_noise(rlprune, finished, monkeypatch):
    monkeypatch.setattr(Digits, "read_train", lambda self: pytest.fail("the data set was read"))
    code, out, err = rlprune("export", f"run={finished}", "images=0", "dense=false", "dynamic_batch=false", "out=net.onnx")
    assert code == 0, err
    assert Path("net.onnx").is_file()
    assert "scores differ from torch's by at most" in out


def test_networks_of_ones_own_are_named_again(rlprune, monkeypatch, tmp_path):
    Path("export_nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ("model=custom", "model.target=export_nets.net")
    assert rlprune("prune", "debug=smoke", "device=cpu", "agent=global", "criterion=l1", "paths.run=run", *own)[0] == 0
    code, _, err = rlprune("export", "run=run")
    assert (code, len(last_line(err))) == (2, 1)
    assert "name the network again: model=custom model.target=export_nets.net beside the folder" in err
    assert rlprune("export", "run=run", *own)[0] == 0
    session = onnxruntime.InferenceSession("run/export/pruned.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": np.zeros((4, 3, 32, 32), np.float32)})[0].shape == (4, 10)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((), "run: name a run folder, run=outputs/prune/RUN, or an artefact folder in it"),
        (("run=/nowhere",), "run=/nowhere: has no pruned/plan.json; name the folder of a finished `rlprune prune`"),
        (("run=RUN", "format=tflite"), "format=tflite: unknown; choose one of onnx, torch_export"),
        (("run=RUN", "opset=9"), "opset=9: must be in 18.."),
        (("run=RUN", "opset=new"), "opset=new: must be of type integer"),
        (("run=RUN", "images=-1"), "images=-1: must be ≥ 1, or 0 where the data set is not there"),
        (("run=RUN", "tolerance=0"), "tolerance=0.0: must be > 0"),
        (("run=RUN", "out=net.pb"), "out=net.pb: must end in .onnx, as format=onnx is written"),
        (("run=RUN", "device=cuda"), "device=cuda: networks are exported as the run left them, in float32, on the CPU; leave it out"),
        (("run=RUN", "precision=bf16"), "precision=bf16: networks are exported as the run left them"),
        (("run=RUN", "checkpoint=w.pt"), "checkpoint=w.pt: networks are exported as the run left them"),
        (("run=RUN", "tolerance=1e-30", "dense=false"), "by up to"),
        (("run=RUN", "dataset=cifar100", "dataset.root=nowhere"), "nowhere"),
        (("run=RUN", "model=vgg11"), "pruned/plan.json: "),
        (("run=RUN", "out=/proc/nowhere/net.onnx"), "out=/proc/nowhere/net.onnx: cannot be written, /proc: "),
        (("run=RUN", "out=/etc/hostname/net.onnx"), "out=/etc/hostname/net.onnx: cannot be written, /etc/hostname: Not a directory"),
        (
            ("run=RUN", "dataset.limit=10"),
            "dataset: its search split would be empty, as every class keeps an image to train on; raise dataset.limit",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(rlprune, finished, line, message):
    code, _, err = rlprune("export", *(word.replace("RUN", str(finished)) for word in line), "paths.run=here")
    assert (code, len(last_line(err))) == (2, 1), err
    assert message in last_line(err)[0]
    assert not list(Path().rglob("*.onnx"))
    assert not list(finished.rglob(".*"))
