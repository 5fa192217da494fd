import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import last_line
from nets import randomised
from PIL import Image
from torch import nn

import rlprune as package
from rlprune.checkpoint import load_tensors, save_tensors
from rlprune.data.base import Normalization
from rlprune.data.files import Geometry, ImageFiles
from rlprune.errors import UserError
from rlprune.graph import prune, trace
from rlprune.plan import FORMAT, hash_entries, hash_file, read_sealed
from rlprune.results.artefact import load_architecture, load_artefact, load_levels, save_artefact
from rlprune.results.origin import Origin

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
FACTS = {"sparsity": 0.5, "macs": 1, "params": 1, "seed": 0, "dense_seed": 0}
FILES = ("plan.json", "weights.safetensors", "before_recovery.safetensors")


def origin(**changes):
    values = {
        "model": "resnet20", "model_settings": {"width": 0.25, "shortcut": "B"}, "dataset": "cifar10", "dataset_settings": {"crop": 4},
        "in_channels": 3, "image_size": (16, 16), "class_names": tuple("abcd"), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
    }  # fmt: skip
    return Origin(**(values | changes))


def save(folder, made, dense):
    """The artefact of a network that lost half of every group, and the network itself."""
    graph = trace(dense, torch.zeros(1, made.in_channels, *made.image_size), prove=False)
    keep = {group.name: np.arange(0, group.num_units, 2) for group in graph.groups}
    before, after = prune(dense, graph, keep).eval(), randomised(prune(dense, graph, keep)).eval()
    save_artefact(folder, before=before, after=after, origin=made, keep=keep, ignore=[], facts=FACTS)
    return after


@pytest.fixture
def network(tmp_path):
    return save(tmp_path / "run/pruned", origin(), randomised(origin().build()))


@pytest.fixture
def folder(network, tmp_path):
    return tmp_path / "run/pruned"


def change(folder, *, seal=True, **entries):
    """Other entries in the plan, whose hash is made to fit unless it is not to."""
    plan = json.loads((folder / "plan.json").read_text())
    plan |= entries
    plan["sha256"] = hash_entries(plan) if seal else plan["sha256"]
    (folder / "plan.json").write_text(json.dumps(plan))


def equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- whole -----------------------------------------------------------------------------------------------------------------------------


def test_a_loaded_network_is_the_saved_one_bit_for_bit_however_it_is_named(network, folder, monkeypatch):
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    for path in (folder, folder.parent, folder / "plan.json", folder.parent / "link", "~/pruned", "~", str(folder)):
        loaded = package.load(path)
        assert equal(loaded, network)
        assert not loaded.training
        assert torch.equal(loaded(EXAMPLE), network(EXAMPLE))


def test_a_plan_tells_its_hash_that_of_every_file_and_who_wrote_it(folder):
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["format"] == FORMAT == 2
    assert plan["hashes"] == {name: hash_file(folder / name) for name in FILES[1:]}
    assert plan["sha256"] == hash_entries({key: plan[key] for key in reversed(plan)})  # whatever their order
    assert set(plan["versions"]) == {"rlprune", "torch", "torchvision", "python"}
    assert plan["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert plan["origin"]["mean"] == [0.1, 0.2, 0.3]


def test_loading_brings_no_training_code_no_pickle_and_no_config_machinery(folder):
    code = f"""
import pickle, sys
def no(*_, **__): raise AssertionError("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = no
import rlprune
network = rlprune.load({str(folder)!r})
ours = ("training", "search", "agents", "rl", "criteria", "rewards", "trackers", "report", "commands", "config", "skeleton", "data")
others = ("hydra", "omegaconf", "matplotlib", "pandas", "sklearn", "onnx", "timm")
bad = [name for name in sys.modules if name.split(".")[0] in others or (name.split(".") + [""])[1] in ours and name.startswith("rlprune.")]
assert not bad, bad
print(sum(p.numel() for p in network.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(parameter.numel() for parameter in package.load(folder).parameters())


class Own(nn.Module):
    """A network that rlprune does not ship."""

    def __init__(self, channels=8):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Linear(channels, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_networks_of_ones_own_are_given_and_never_named_by_a_file(tmp_path):
    saved = save(tmp_path, origin(model="custom", model_settings={"target": "os.system", "kwargs": {"command": "false"}}), Own())
    with pytest.raises(UserError, match=r"code is never taken from a file.*rlprune\.load\(FOLDER, model=NETWORK\)"):
        package.load(tmp_path)
    assert equal(package.load(tmp_path, model=Own()), saved)
    with pytest.raises(UserError, match=r"plan\.json: group 'conv': kept units must lie in 0\.\.3"):
        package.load(tmp_path, model=Own(4))


# -- damaged ---------------------------------------------------------------------------------------------------------------------------


def damages(data):
    """One byte changed, cut short, emptied, and longer."""
    middle = len(data) // 2
    yield data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    yield from (data[:-7], data[:middle], b"", data + b"\0")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_in_one_line_before_its_tensors_are_read(folder, name, monkeypatch):
    path, read = folder / name, []
    monkeypatch.setattr("rlprune.results.artefact.load_tensors", lambda path: read.append(path) or load_tensors(path))
    for damaged in damages(path.read_bytes()):
        whole = path.read_bytes()
        path.write_bytes(damaged)
        with pytest.raises(UserError) as raised:
            package.load(folder)
        assert str(raised.value).startswith(f"{path}: ")
        assert "\n" not in str(raised.value)
        if name != "plan.json":
            assert "is truncated or was changed (its hash is not the one in plan.json); copy the whole folder again" in str(raised.value)
        path.write_bytes(whole)
    assert read == []


def test_a_changed_plan_is_told_by_its_hash_wherever_it_is_read(folder, rlprune):
    change(folder, seal=False, sparsity=0.25)
    message = "plan.json: is not as it was written (its hash differs); copy the whole folder again"
    for line in (("evaluate", f"run={folder}"), ("train", f"like={folder}"), ("prune", "agent=like", f"agent.run={folder}")):
        code, _, err = rlprune(*line)
        assert (code, len(last_line(err))) == (2, 1)
        assert message in last_line(err)[0]
    with pytest.raises(UserError, match="its hash differs"):
        package.load_preprocessing(folder)


def test_weights_of_another_run_are_refused(folder, tmp_path):
    save(tmp_path / "other", origin(), origin().build())
    (folder / "weights.safetensors").write_bytes((tmp_path / "other/weights.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"weights\.safetensors: is truncated or was changed"):
        package.load(folder)


def test_files_may_be_left_behind_but_not_the_weights(network, folder):
    (folder / "before_recovery.safetensors").unlink()
    assert equal(package.load(folder), network)
    artefact = load_artefact(folder)
    with pytest.raises(UserError, match=r"before_recovery\.safetensors: cannot be read \(No such file or directory\)"):
        load_levels(folder, artefact.dense, artefact.graph)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors: cannot be read .*copy the whole folder again"):
        package.load(folder)
    (folder / "plan.json").unlink()
    with pytest.raises(UserError, match=r"path=.*has no pruned/plan\.json"):
        package.load(folder)


def test_every_level_is_read_again(network, folder):
    artefact = load_artefact(folder)
    before, after = load_levels(folder, artefact.dense, artefact.graph)
    assert equal(after, network)
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in load_tensors(folder / FILES[2])[0].items())


GROUP = "conv1"
NESTED = {"_target_": "os.system", "command": "false"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"keep": {GROUP: [0, 1, 99]}}, r"group 'conv1': kept units must lie in 0\.\.3"),
        ({"keep": {GROUP: [0, 0]}}, "keep has an impossible value"),
        ({"keep": {GROUP: [-1]}}, "keep has an impossible value"),
        ({"keep": {GROUP: []}}, "keep has an impossible value"),
        ({"keep": {GROUP: [0.0]}}, "keep has an impossible value"),
        ({"keep": {GROUP: [True]}}, "keep has an impossible value"),
        ({"keep": {GROUP: [[0]]}}, "keep has an impossible value"),
        ({"keep": {GROUP: "0"}}, "keep has an impossible value"),
        ({"keep": {GROUP: [10**30]}}, "is garbled"),
        ({"keep": [1]}, "keep has an impossible value"),
        ({"keep": {"nope": [0]}}, "the graph has no such group"),
        ({"keep": {}}, r"weights\.safetensors: holds weights of another architecture"),  # no group is named: all are whole
        ({"ignore": "conv1"}, "ignore has an impossible value"),
        ({"ignore": [1]}, "ignore has an impossible value"),
        ({"ignore": ["["]}, r"plan\.json: "),
        ({"hashes": {}}, "hashes has an impossible value"),
        ({"hashes": {"weights.safetensors": "", "../../etc/passwd": ""}}, "hashes has an impossible value"),
        ({"hashes": {"weights.safetensors": 3}}, "hashes has an impossible value"),
        ({"sparsity": None}, "sparsity has an impossible value"),
        ({"seed": True}, "seed has an impossible value"),
        ({"origin": None}, "is garbled"),
        ({"origin": []}, "is garbled"),
        *(({"origin": {key: value}}, f"origin: {key} has an impossible value") for key, value in (
            ("in_channels", 3.0), ("in_channels", 0), ("in_channels", 10**9), ("image_size", [16]), ("image_size", [16, 10**6]),
            ("class_names", "abcd"), ("class_names", []), ("class_names", [1, 2, 3, 4]), ("mean", [0.1]), ("mean", ["a", "b", "c"]),
            ("mean", None), ("std", [0.1, 0, 0.1]), ("std", [True, True, True]), ("model", 3), ("model_settings", []),
            ("dataset_settings", "x"),
        )),
        ({"origin": {"model": "../../etc"}}, "is not shipped with this version"),
        ({"origin": {"model": "resnet21"}}, "is not shipped with this version"),
        ({"origin": {"model_settings": {"_target_": "os.system"}}}, "model._target_: is no setting of model=resnet20"),
        ({"origin": {"model_settings": {"width": NESTED}}}, r"model\.width=.*must be a finite number"),
        ({"origin": {"model_settings": {"width": -1}}}, r"model\.width=-1\.0: must be > 0"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_are_one_line_even_under_a_hash_that_fits(folder, entries, message):
    if isinstance(entries.get("origin"), dict):
        entries = {"origin": json.loads((folder / "plan.json").read_text())["origin"] | entries["origin"]}
    change(folder, **entries)
    with pytest.raises(UserError, match=message) as raised:
        package.load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["origin", "keep", "ignore", "hashes", "seed", "sparsity"])
def test_missing_entries_are_named(folder, missing):
    plan = json.loads((folder / "plan.json").read_text())
    del plan[missing]
    (folder / "plan.json").write_text(json.dumps(plan | {"sha256": hash_entries(plan)}))
    with pytest.raises(UserError, match=f"lacks '{missing}'; the file is damaged"):
        package.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not valid JSON"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("3", "should hold a JSON object"),
        ("\udcff", "not valid JSON"),
        ('{"format": 2, "deep": ' + "[" * 900 + "]" * 900 + "}", "its hash differs"),
        ('{"format": 2, "origin": NaN}', "its hash differs"),
        ('{"format": 2}', "its hash differs"),
        ('{"format": 3}', r"written by a newer version \(format 3, this one reads up to 2\); pip install --upgrade rlprune"),
        *(
            (f'{{"format": {value}}}', f"has format {shown}, this version reads 1 to 2")
            for value, shown in (("true", "True"), ("0", "0"), ("-1", "-1"), ("2.0", "2.0"), ("null", "None"), ('"2"', "2"))
        ),
    ],
)  # fmt: skip
def test_what_is_no_plan_of_a_known_format_is_one_line(folder, text, message):
    (folder / "plan.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        package.load(folder)


# -- the first format ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def first(folder):
    """The same artefact as earlier versions have written it."""
    plan = json.loads((folder / "plan.json").read_text())
    plan["weights_sha256"] = plan["hashes"]["weights.safetensors"]
    plan = {key: value for key, value in plan.items() if key not in ("hashes", "versions", "sha256")} | {"format": 1}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def test_the_first_format_is_still_read(network, first):
    assert equal(package.load(first), network)
    artefact = load_architecture(first)
    assert equal(load_levels(first, artefact.dense, artefact.graph)[1], network)
    assert package.load_preprocessing(first).class_names == tuple("abcd")
    assert read_sealed(first / "plan.json")["hashes"] == {"weights.safetensors": hash_file(first / "weights.safetensors")}


def test_the_first_format_knows_the_hash_of_its_weights(first):
    tensors, _ = load_tensors(first / "weights.safetensors")
    save_tensors(first / "weights.safetensors", {name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(UserError, match=r"weights\.safetensors: is truncated or was changed"):
        package.load(first)
    change(first, weights_sha256=None)
    with pytest.raises(UserError, match="hashes has an impossible value"):
        package.load(first)


# -- preprocessing ---------------------------------------------------------------------------------------------------------------------


def pictures(folder):
    """Files of several modes and sizes."""
    generator = np.random.default_rng(0)

    def noise(*shape):
        return generator.integers(0, 256, shape, dtype=np.uint8)

    folder.mkdir()
    Image.fromarray(noise(16, 16, 3)).save(folder / "exact.png")
    Image.fromarray(noise(40, 23, 3)).save(folder / "tall.png")
    Image.fromarray(noise(9, 30)).save(folder / "grey.png")
    Image.fromarray(noise(20, 20, 4)).save(folder / "alpha.png")
    Image.fromarray(noise(20, 31, 3)).quantize(16).save(folder / "palette.png")
    Image.fromarray(noise(18, 18).astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(noise(33, 17, 3)).save(folder / "photo.jpg", quality=80)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(("dataset", "resize"), [("imagefolder", None), ("imagenet", 20), ("cifar10", None)])
def test_preprocessing_is_what_the_pipeline_feeds_the_network(tmp_path, dataset, resize):
    made = origin(dataset=dataset, dataset_settings={"resize": resize} if dataset != "cifar10" else {}, mean=(0.481, 0.2, 1 / 3))
    save(tmp_path / "pruned", made, randomised(made.build()))
    preprocess = package.load_preprocessing(tmp_path)
    paths = pictures(tmp_path / "pictures")
    files = ImageFiles(paths, torch.zeros(len(paths), dtype=torch.long), Geometry(16, resize), 0)
    wanted = Normalization(made.mean, made.std)(files.load().pixels)
    assert torch.equal(preprocess([Image.open(path) for path in paths]), wanted)
    assert torch.equal(preprocess(Image.open(paths[1])), wanted[1:2])
    assert torch.equal(preprocess(files.load().pixels), wanted)
    assert torch.equal(preprocess(files.load().pixels[3]), wanted[3:4])
    assert (preprocess.class_names, preprocess.mean, preprocess.std, preprocess.image_size) == (
        made.class_names, made.mean, made.std, (16, 16)
    )  # fmt: skip
    assert wanted.shape == (len(paths), 3, 16, 16)
    with pytest.raises(AttributeError):
        preprocess.mean = (0.0,) * 3


def test_preprocessing_of_built_in_images_is_theirs(rlprune):
    assert rlprune("prune", "debug=smoke", "model.width=0.25", "device=cpu", "agent=global", "criterion=l1", "paths.run=run")[0] == 0
    from rlprune.config import shipped
    from rlprune.data.base import split
    from rlprune.shipped import make_shipped

    plan = json.loads(Path("run/pruned/plan.json").read_text())
    assert shipped("dataset", "digits", plan["origin"]["dataset_settings"])["limit"] == 160
    splits = split(make_shipped("dataset", "digits", plan["origin"]["dataset_settings"]), plan["dense_seed"])
    images, preprocess = splits.search.load(), package.load_preprocessing("run")
    wanted = splits.normalization(images.pixels)
    assert torch.equal(preprocess(images.pixels), wanted)
    assert torch.equal(preprocess([Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in images.pixels]), wanted)
    assert torch.equal(preprocess(Image.fromarray(images.pixels[0, 0].numpy())), wanted[:1])  # grey in three channels


def test_preprocessing_of_grey_networks_and_of_oblong_images(tmp_path):
    made = origin(model="vgg11", model_settings={"width": 0.125}, in_channels=1, image_size=(32, 48), mean=(0.5,), std=(0.25,))
    save(tmp_path, made, made.build())
    batch = package.load_preprocessing(tmp_path)(Image.new("RGB", (7, 9), (51, 51, 51)))
    assert batch.shape == (1, 1, 32, 48)
    torch.testing.assert_close(batch, torch.full((1, 1, 32, 48), (0.2 - 0.5) / 0.25))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 16, 16), r"are torch\.float32 of shape \(3, 16, 16\); the network takes uint8 pixels of shape \(N, 3, 16, 16\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"of shape \(1, 3, 8, 8\)"),
        (torch.zeros(16, 16, dtype=torch.uint8), r"of shape \(16, 16\)"),
        ([], "images: are a list; pass a PIL picture"),
        ("cat.png", "images: are a str"),
        ([np.zeros((16, 16, 3))], "images: are a list"),
        (Image.new("F", (16, 16)), "images: hold no readable picture"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(folder, images, message):
    with pytest.raises(UserError, match=message):
        package.load_preprocessing(folder)(images)


def test_a_plan_that_resizes_below_the_image_is_refused(folder):
    made = json.loads((folder / "plan.json").read_text())["origin"]
    change(folder, origin=made | {"dataset_settings": {"resize": 3}})
    with pytest.raises(UserError, match=r"plan\.json: resize=3 cannot be"):
        package.load_preprocessing(folder)
