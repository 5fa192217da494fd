"""Whatever is typed, and whatever lies in a folder: one line and exit code 2, nothing run, nothing written elsewhere, no memory taken.

RLPRUNE_EXAMPLES=50 tries fifty times as many examples, each time others.
"""

import ast
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_artefact import FACTS, origin, save
from test_grid import TINY

import rlprune as package
from rlprune import cli, memory
from rlprune.checkpoint import load_weights, save_tensors
from rlprune.config import conf_dir, load_yaml
from rlprune.data.files import Geometry, open_picture, shaped_picture
from rlprune.data.imagefolder import ImageFolder
from rlprune.errors import UserError
from rlprune.files import MOST, read_json, read_text, read_yaml
from rlprune.plan import hash_entries, hash_file
from rlprune.report.collect import find_runs
from rlprune.report.page import write_report
from rlprune.report.report import Choices, make_report

ROOT = Path(package.__file__).parent
MORE = int(os.environ.get("RLPRUNE_EXAMPLES", "1"))
TARGETS: list[str] = []  # what hostile files have called


def canary(*arguments, **settings):
    """What must never be called."""
    TARGETS.append(f"{arguments} {settings}")


def examples(number):
    """As many, the same every time, unless more are asked for."""
    return settings(
        max_examples=number * MORE, derandomize=MORE == 1, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


def refusal(action, *arguments):
    """The line in which something is refused; empty where it is not."""
    expected = ValueError if action is read_yaml else UserError
    try:
        action(*arguments)
    except expected as error:
        return str(error)
    return ""


@contextmanager
def little_memory(more=3 << 30):
    """What takes more than this fails, where a system may promise it and kill whoever uses it."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 1 << 30)
    monkeypatch.setattr(ROOT.parent.__class__, "home", classmethod(lambda cls: cls("/nonexistent")))
    TARGETS.clear()
    with little_memory():
        yield
    assert TARGETS == []


# -- what the package calls ------------------------------------------------------------------------------------------------------------

DANGEROUS = {
    "eval", "exec", "compile", "__import__", "input", "load", "loads", "unsafe_load", "full_load", "load_all", "Unpickler", "read_pickle",
    "system", "popen", "Popen", "run", "check_output", "check_call", "call", "import_module", "get_object", "instantiate", "import_string",
    "load_module", "load_state_dict_from_url", "getattr_static", "execv", "execvp", "spawn",
}  # fmt: skip
MODULES = {  # of functions with common names, such as `run`
    "pickle", "cloudpickle", "marshal", "shelve", "dill", "yaml", "np", "numpy", "torch", "joblib", "os", "subprocess", "pd", "json",
    "ctypes", "builtins", "importlib", "hydra.utils", "torch.hub", "torch.jit", "torch.export", "OmegaConf",
}  # fmt: skip
ALLOWED = {
    ("cli.py", "import_module"): "a command's module, whose name is one of COMMANDS",
    ("__init__.py", "import_module"): "names of the package's own functions",
    ("shipped.py", "import_module"): "the class that a shipped yaml names",
    ("config.py", "hydra.utils.get_object"): "the class that a config names: a shipped yaml's, or the line's",
    ("models/custom.py", "import_module"): "model.target, which no file may set",
    ("export/onnx.py", "import_module"): "onnx and its runtime",
    ("benchmark/resident.py", "import_module"): "likewise",
    ("benchmark/memory.py", "subprocess.run"): "this interpreter, to tell the memory of a fresh process",
    ("commands/sweeper.py", "import_module"): "the package's own Hydra plug-ins",
    ("commands/launchers.py", "cloudpickle.loads"): "a job, from the process that started this one",
    ("commands/launchers.py", "pickle.loads"): "a job's result, from the process that was started",
    ("evaluators/base.py", "pickle.loads"): "a network, from the search that started this process, through memory without a name",
    ("evaluators/processes.py", "subprocess.Popen"): "this interpreter, to measure candidates",
    ("training/team.py", "pickle.loads"): "what rank 0 of this run says",
    ("files.py", "yaml.load"): "with a safe loader",
    ("export/torch_export.py", "torch.export.load"): "a file that this process has just written",
    ("checkpoint.py", "torch.load"): "with weights_only=True",
}
PLAIN = {"json.loads", "yaml.safe_load"}


def calls(path):
    """Calls of dangerous names in a file, as they are written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            head, _, name = written.rpartition(".")
            if name in DANGEROUS and (head in MODULES or not head):
                yield written, node


def test_what_might_run_code_is_called_where_it_is_allowed_alone():
    found, own = set(), {"load", "run", "call", "compile", "torch.compile"}  # names that the package's own functions have, too
    for path in ROOT.rglob("*.py"):
        for written, node in calls(path):
            where = (str(path.relative_to(ROOT)), written)
            if written not in PLAIN and written not in own:
                assert where in ALLOWED, f"{where[0]}:{node.lineno} calls {written}"
                found.add(where)
            given_keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if written == "yaml.load":
                assert "SafeLoader" in given_keywords["Loader"]
            if written == "torch.load":
                assert given_keywords["weights_only"] == "True"
    assert found == set(ALLOWED)


def test_modules_that_unpickle_are_imported_where_it_is_allowed_alone():
    bad = {"pickle", "cloudpickle", "marshal", "shelve", "dill", "ctypes"}
    allowed = {"commands/launchers.py", "evaluators/base.py", "training/team.py"}  # between processes of one run
    allowed |= {"benchmark/resident.py"}  # malloc_trim
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & bad or str(path.relative_to(ROOT)) in allowed, path


# -- the command line ------------------------------------------------------------------------------------------------------------------

WORDS = [
    *"0 -1 1 2 7 2147483648 9223372036854775807 18446744073709551616 1e5 1e308 1e400 nan inf -.inf 1e-320 0.5 true null".split(),
    *"[] [1] [null] [[[]]] {} {a:1} ${seed} ${nope} ${oc.env:NOPE} ${hydra:runtime.cwd} ${now:%Y} ${${seed}} ${folder:} ''".split(),
    *"${places:} /etc/passwd ../../x /dev/zero ~ ??? mcq cpu cuda:7 auto 08 on 1_000 0x10 +1 a:b glob(*) choice(1,2) range(1,3)".split(),
    "", "日本", "\udcff", "1" + "0" * 400, "[" * 60 + "]" * 60, "{{{", "'${'", "'a\nb'", "a b", "'a", "\\x00", "'" + "x" * 5000 + "'",
    "${share_kept:x,macs}",
    "{_target_: test_hostile.canary}", "[{_target_: test_hostile.canary}]", "!!python/object/apply:test_hostile.canary []",
]  # fmt: skip
ODD = ["", "a", "a.b", "..", "hydra.run.dir", "hydra.job.name", "hydra/launcher", "hydra.mode", "optimizer@x", "model@y", "debug"]


def keys(command):
    """Every setting that a command has."""
    from test_conf import composed

    def walk(node, prefix):
        for name, value in node.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")

    from omegaconf import OmegaConf

    return list(walk(OmegaConf.to_container(composed(command)), ""))


class StopError(BaseException):
    """The command has got past its checks."""


@pytest.fixture
def _begun(monkeypatch):
    """Commands end where the long work would begin."""

    def stop(*_, **__):
        raise StopError

    from rlprune.benchmark.bench import Bench
    from rlprune.commands import setup
    from rlprune.search.job import PruneJob
    from rlprune.search.sensitivity import SensitivityJob

    for owner, name in ((PruneJob, "run"), (Bench, "run"), (SensitivityJob, "run"), (setup, "obtain_dense")):
        monkeypatch.setattr(owner, name, stop)


BASE = {
    **dict.fromkeys(("prune", "train"), (*TINY, "recovery=none")),
    **dict.fromkeys(("evaluate", "sensitivity", "inspect"), tuple(word for word in TINY if word != "debug=smoke")),
    "bench": tuple(word for word in TINY if not word.startswith(("debug", "precision"))),
    "report": ("plots=false",),
    "export": (),
}
BASE["train"] = TINY


def one_line(rlprune, *words):
    """Run a line; it is refused in one line, or it gets to work. Returns the line, or an empty one."""
    try:
        code, out, err = rlprune(*words)
    except StopError:
        return ""
    assert code in (0, 2), err
    assert "Traceback" not in err
    assert "this is a defect" not in out
    if code == 0:
        return ""
    last = err.replace("\r", "\n").strip().split("\n")[-1]
    assert last.startswith("rlprune"), err
    assert len(last) < 2000 + sum(map(len, map(str, words)))
    return last


@pytest.mark.parametrize("command", list(cli.COMMANDS))
@pytest.mark.usefixtures("_begun")
def test_whatever_is_typed(rlprune, command):
    known = st.sampled_from([key for key in keys(command) if key not in ("paths.outputs", "paths.data")])
    word = st.builds(
        lambda prefix, key, value: f"{prefix}{key}={value}",
        st.sampled_from(["", "", "", "+", "++", "~"]), known | known | known | st.sampled_from(ODD),
        st.sampled_from(WORDS) | st.text(max_size=9),
    )  # fmt: skip

    @examples(8)
    @given(st.lists(word, min_size=1, max_size=3))
    def check(words):
        one_line(rlprune, command, *BASE[command], *words)
        shutil.rmtree("outputs", ignore_errors=True)

    check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prune", "-m", "--cfg", "job"), "-m and --cfg: go not together"),
        (("prune", "model=[1]"), "a setting: cannot be read"),
        (("inspect", "~model=2"), "a setting: cannot be read"),
        (("train", "training.save_minutes=1" + "0" * 400), "training.save_minutes: cannot be read"),
        (("train", "seed=18446744073709551616"), "seed=1.84e+19: must be a number between"),
        (("train", "training.ema=nan"), "training.ema=nan: must be"),
        (("train", "training.lr_milestones=[[[]]]"), "training.lr_milestones"),
        (("inspect", "dataset=digits", "dataset.image_size=8000"), "dataset.image_size=8000: takes 768 GB of memory, this machine has 1"),
        (("inspect", "dataset=digits", "dataset.image_size=99999"), "dataset.image_size=99999: must be ≤ 8192 pixels"),
        (("inspect", *BASE["inspect"], "model.width=5000"), "model=resnet20: does not fit into memory; make it smaller"),
        (("inspect", *BASE["inspect"], "model.width=1e17"), "model.width=1e+17: makes layers of"),
        (("inspect", *BASE["inspect"], "model.depth=600000002"), "model.depth=600000002: must be 6n + 2"),
        (("inspect", *BASE["inspect"], "image_size=100000"), "image_size=100000: must be"),
        (("bench", *BASE["bench"], "image_size=100000"), "image_size=100000: must be"),
        (("bench", *BASE["bench"], "batch_sizes=[10000000]"), "batch_sizes=[10000000]: takes"),
        (("prune", *BASE["prune"], "schedule.min_keep=100000000000"), "schedule"),
    ],
)
def test_sizes_and_numbers_are_refused_by_name(rlprune, words, message):
    assert message in one_line(rlprune, *words)


# -- plans and weights -----------------------------------------------------------------------------------------------------------------

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(-3, 40) | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**9, 10**18, 2**63, 10**400, 1e308, "../../x", "/etc/passwd", "${oc.env:HOME}", "resnet110", "custom", "\x00"])
)  # fmt: skip
KEYS = st.sampled_from(["_target_", "_args_", "name", "weights", "width", "depth", "target", "kwargs", "root", "mean", "x"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)
VALUES |= st.just({"_target_": "test_hostile.canary"})


def places_in(node, prefix=()):
    """Paths to everything in a JSON value."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node[:2]):
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from places_in(value, (*prefix, key))


def changed(node, place, value):
    """A copy with another value at a path."""
    node = json.loads(json.dumps(node))
    inner = node
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return node


def write_sealed(path, plan):
    """A plan with the hash that fits."""
    entries = {key: value for key, value in plan.items() if key != "sha256"}
    try:
        sealed = entries | {"sha256": hash_entries(entries)}
    except ValueError:
        sealed = entries
    path.write_text(json.dumps(sealed))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefact") / "pruned"
    small = origin(image_size=(8, 8), model_settings={"depth": 8, "width": 0.25, "shortcut": "B"}, dataset="digits", dataset_settings={})
    save(folder, small, small.build())
    return folder


@pytest.fixture
def copied(artefact, tmp_path):
    shutil.copytree(artefact, tmp_path / "run/pruned")
    return tmp_path / "run/pruned"


def test_whatever_a_plan_says(copied):
    plan = json.loads((copied / "plan.json").read_text())
    assert plan.keys() >= FACTS.keys()
    places = st.sampled_from(list(places_in(plan)))

    @examples(60)
    @given(places, VALUES)
    def check(place, value):
        write_sealed(copied / "plan.json", changed(plan, place, value))
        for load in (package.load, package.load_preprocessing):
            assert "\n" not in refusal(load, copied)

    check()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_settings": {"depth": 8, "width": 20000.0, "shortcut": "B"}}, "makes layers of 1280000 channels"),
        ({"model_settings": {"depth": 8, "width": 5000.0, "shortcut": "B"}}, "does not fit into memory; make it smaller"),
        ({"model_settings": {"depth": 200, "width": 100.0, "shortcut": "B"}}, "takes 1 GB of memory, this machine has 1; make it smaller"),
        ({"model_settings": {"depth": 6 * 10**9 + 2, "width": 1.0, "shortcut": "B"}}, "must be 6n + 2"),
        ({"model_settings": {"_target_": "test_hostile.canary"}}, "model._target_: is no setting of model=resnet20"),
        ({"model_settings": {"depth": {"_target_": "test_hostile.canary"}}}, "must be an integer"),
        ({"model": "custom", "model_settings": {"target": "test_hostile.canary", "kwargs": None}}, "code is never taken from a file"),
        ({"model": "../model/resnet20"}, "code is never taken from a file"),
        ({"in_channels": 1024, "image_size": [8192, 8192], "mean": [0.5] * 1024, "std": [0.5] * 1024}, "in_channels and image_size"),
        ({"mean": ["${oc.env:HOME}", 0.5, 0.5]}, "mean has an impossible value"),
    ],
)
def test_what_a_plan_may_not_ask_for(copied, entries, message):
    plan = json.loads((copied / "plan.json").read_text())
    plan["origin"] |= entries
    write_sealed(copied / "plan.json", plan)
    with pytest.raises(UserError, match=r"plan\.json") as refused:
        package.load(copied)
    assert message in str(refused.value)


@pytest.mark.parametrize("command", ["evaluate", "export", "inspect"])
@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"root": {"_target_": "test_hostile.canary"}}, "dataset.root: is no setting of dataset=digits"),
        ({"mean": [{"_target_": "test_hostile.canary"}]}, "dataset.mean=[{'_target_': 'test_hostile.canary'}]: must be"),
        ({"mean": "${oc.env:HOME}"}, "dataset.mean=${oc.env:HOME}: must be"),
        ({"_target_": "test_hostile.canary"}, "dataset._target_: is no setting"),
        ({"image_size": 10**7}, "image_size=10000000: must be ≤ 8192"),
    ],
)
def test_settings_of_a_run_are_values_and_no_more(rlprune, copied, command, dataset, message):
    plan = json.loads((copied / "plan.json").read_text())
    plan["origin"]["dataset_settings"] = dataset
    write_sealed(copied / "plan.json", plan)
    line = one_line(rlprune, command, f"run={copied}", *(["draw=none"] if command == "inspect" else []))
    assert message in line or command == "inspect"  # it reads no images


HEADER = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F64", "I8", "BF16", "X"]), "shape": st.lists(st.integers(-1, 2**62), max_size=3),
     "data_offsets": st.lists(st.integers(-1, 2**62), max_size=3)}
)  # fmt: skip


@examples(40)
@given(
    st.dictionaries(st.sampled_from(["a", "conv1.weight", "__metadata__"]), HEADER | VALUES, max_size=3),
    st.binary(max_size=64),
    st.booleans(),
)
def test_whatever_a_safetensors_header_claims(tmp_path_factory, header, data, honest):
    path = tmp_path_factory.mktemp("headers") / "x.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if honest else 2**62) + text + data)
    try:
        tensors, _ = load_weights(path)
    except UserError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)


def test_files_that_are_none_or_too_large_are_refused_before_they_are_read(tmp_path, copied):
    pipe, holes = tmp_path / "pipe.safetensors", tmp_path / "holes.safetensors"
    os.mkfifo(pipe)
    with holes.open("wb") as file:
        file.truncate(1 << 32)
    for path, why in ((pipe, "is no file"), (holes, "takes 4 GB of memory"), (Path("/dev/zero"), "is no file"), (Path("a\0b"), "null")):
        with pytest.raises(UserError, match=why):
            load_weights(path)
    with (copied / "weights.safetensors").open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(UserError, match="takes 4 GB of memory"):
        package.load(copied)
    os.mkfifo(tmp_path / "text")
    for path in (tmp_path / "text", Path("/dev/zero")):
        with pytest.raises(OSError, match="is no plain file"):
            read_text(path)
    with (tmp_path / "long").open("wb") as file:
        file.truncate(MOST + 1)
    with pytest.raises(OSError, match="has 268 MB"):
        read_text(tmp_path / "long")


def bomb(path):
    """A file of torch, compressed: a thousandth of what it holds."""
    whole = path.with_suffix(".whole")
    torch.save({"a": torch.zeros(1 << 20)}, whole)
    with zipfile.ZipFile(whole) as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))


class Runs:
    def __reduce__(self):
        return canary, ("unpickled",)


@pytest.mark.parametrize("kind", ["bomb", "pickle", "nested", "torch", "script", "npz"])
def test_a_checkpoint_runs_nothing_and_unfolds_nothing(tmp_path, kind):
    path = tmp_path / "x.pt"
    if kind == "bomb":
        bomb(path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Runs()))
    elif kind == "nested":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Runs()}, path)
    elif kind == "torch":
        torch.save(torch.nn.Linear(1, 1), path)
    elif kind == "script":
        torch.save({"__reduce__": Runs}, path)
    else:
        np.savez_compressed(tmp_path / "x.npz", a=np.array([Runs()], dtype=object))
        (tmp_path / "x.npz").rename(path)
    with pytest.raises(UserError, match="is damaged or holds more than plain weights"):
        load_weights(path)


@examples(40)
@given(st.integers(0, 4000), st.binary(min_size=1, max_size=9))
def test_whatever_a_damaged_checkpoint_holds(tmp_path_factory, place, garbage):
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "whole.pt").exists():
        torch.save({"conv.weight": torch.ones(3, 4), "conv.bias": torch.ones(3)}, folder / "whole.pt")
    data = bytearray((folder / "whole.pt").read_bytes())
    place %= len(data)
    data[place : place + len(garbage)] = garbage
    (folder / "x.pt").write_bytes(bytes(data))
    assert refusal(load_weights, folder / "x.pt").startswith(("checkpoint=", ""))


def test_published_weights_in_the_cache_are_not_unpickled_either(tmp_path, monkeypatch):
    from rlprune.models.torchvision import torchvision_network

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    name = "squeezenet1_1-b8a52dc0.pth"
    torch.save({"a": Runs()}, folder / name)
    with pytest.raises(UserError, match=f"cannot be downloaded or read.*put it at .*{name}"):
        torchvision_network(name="squeezenet1_1", weights="DEFAULT", in_channels=3, num_classes=10)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# -- run folders -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, made with the memory and folders of the machine as they are."""
    folder = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.main(["prune", *TINY, "agent=uniform", "recovery=none", "paths.run=run"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def report(tmp_path):
    """A report over all runs, on disk."""
    with np.errstate(all="ignore"):
        names = ("rows", "average", "columns", "sort", "baseline")
        some = {name: value for name, value in load_yaml(conf_dir() / "report.yaml").items() if name in names}
        choices = Choices(runs=[str(tmp_path / "r*")], select={}, mixed=True, plots=False, **some)
        return write_report(make_report(choices), tmp_path / "report")


def test_whatever_a_result_says(run, tmp_path):
    result = read_json(run / "result.json")
    places = st.sampled_from(list(places_in(result)))

    @examples(60)
    @given(places, VALUES | st.just("<script>alert(1)</script>"))
    def check(place, value):
        (run / "result.json").write_text(json.dumps(changed(result, place, value)))
        refusal(report, tmp_path)
        page = (tmp_path / "report/report.html").read_text() if (tmp_path / "report/report.html").exists() else ""
        assert "<script>alert" not in page

    check()


YAMLS = [
    "!!python/object/apply:test_hostile.canary []", "a: !!python/name:os.system ''", "!!python/object/new:test_hostile.Runs {}",
    "- 1", "3",
    "a: &a [*a]", "[" * 5000, "a: {" * 3000, "d: 2020-99-99", "a: 1" + "0" * 5000, "? [1]\n: 2", "a: !!set {b}", "a: !!binary '!'", "\x00",
    "a: b: c",
    "a: !!timestamp x", "a: !!int x", "a: !!float x", "<<: 3", "!!omap [a]", "a: &x {<<: *x}",
    "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{" + ", ".join(f"k{m}: *a{n - 1}" for m in range(9)) + "}\n" for n in range(1, 30)),
    "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]\n" for n in range(1, 30)),
]  # fmt: skip


@pytest.mark.parametrize("text", YAMLS, ids=lambda text: text[:12])
def test_whatever_a_config_holds(rlprune, run, text):
    (run / "config.yaml").write_text(text)
    assert "\n" not in refusal(read_yaml, run / "config.yaml").strip()
    found = find_runs([str(run)])
    assert [one.state for one in found] == ["finished"]
    (run / "result.json").unlink()
    for words in ((f"resume={run}",), (f"paths.run={run}", "resume=true"), (f"paths.run={run}",)):
        line = one_line(rlprune, "prune", *TINY, "agent=uniform", "recovery=none", *words)
        assert "run" in line
        assert "config.yaml: is damaged" in line


@examples(60)
@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | KEYS, inner, max_size=3)))
def test_a_config_of_any_values_is_read_or_refused(tmp_path_factory, value):
    import yaml

    path = tmp_path_factory.getbasetemp() / "config.yaml"
    try:
        path.write_text(yaml.safe_dump({"seed": 0, "paths": value}))
    except ValueError:  # surrogates, and integers that Python does not print
        return
    assert refusal(read_yaml, path) or "seed" in read_yaml(path)
    find_runs([str(path.parent)])


@pytest.mark.parametrize("name", ["metrics.csv", "layers.csv", "episodes.csv", "config.yaml", "result.json", "failed.json"])
def test_a_report_goes_on_beside_any_file(run, tmp_path, name):
    original = run / name
    for text in (b"", b"\x00", b"a,b\n1", b"step\n" + b"9" * 400, b'"' * 99, b"step,sparsity\n1e999,nan\n", b"{" * 9000, b"\xff"):
        original.write_bytes(text)
        report(tmp_path)
    original.unlink()
    os.mkfifo(original)  # reading it would never end
    report(tmp_path)
    original.unlink()
    original.symlink_to("/dev/zero")
    report(tmp_path)


@pytest.mark.parametrize("group", ["model", "dataset", "agent"])
def test_a_choice_is_no_path(run, tmp_path, group):
    hidden = tmp_path / "hidden.yaml"
    hidden.write_text("[1, 2]")
    result = read_json(run / "result.json")
    result["choices"][group] = os.path.relpath(hidden.with_suffix(""), ROOT.parent / "conf" / group)
    (run / "result.json").write_text(json.dumps(result))
    report(tmp_path)


@pytest.mark.parametrize("name", ["pruned", "checkpoint", "export"])
def test_a_run_folder_leads_nowhere_else(rlprune, run, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(elsewhere)
    if name == "export":
        line = one_line(rlprune, "export", f"run={run}", "images=0", "dense=false", "format=torch_export")
        assert "export: is a link; name the file, out=FILE" in line
    else:
        (run / "result.json").unlink()
        line = one_line(rlprune, "prune", *TINY, "agent=uniform", "recovery=none", f"paths.run={run}")
        assert f"{name}: is a link to another folder" in line
    assert list(elsewhere.iterdir()) == []


# -- pictures and caches ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about what it mends
def test_whatever_a_picture_holds(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(path)
    whole = path.read_bytes()

    @examples(25)
    @given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
    def check(place, garbage):
        data = bytearray(whole)
        place %= len(data)
        data[place : place + len(garbage)] = garbage
        path.write_bytes(bytes(data))
        said = refusal(open_picture, path)
        assert "is no readable image" in said or open_picture(path).mode == "RGB"

    check()


def png(width, height):
    """A picture that claims to be of this size."""
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\x00" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(2**31 - 1, 2**31 - 1), (12_000, 12_000), (1, 2**30), (100_000, 3_000)])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, width, height):
    (tmp_path / "x.png").write_bytes(png(width, height))
    with pytest.raises(UserError, match=r"x\.png: is no readable image"):
        open_picture(tmp_path / "x.png")


def test_a_picture_too_long_and_narrow_for_its_data_set_is_refused(tmp_path):
    Image.new("RGB", (60_000, 1)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: 60000 × 1 pixels make 15360000 × 256 where the shorter side becomes 256"):
        shaped_picture(tmp_path / "x.png", Geometry(224, 256))
    assert shaped_picture(tmp_path / "x.png", Geometry(8, None)).size == (8, 8)


def test_a_cache_that_holds_something_else_is_made_again(tmp_path):
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8), (40 * number, 7, 200)).save(tmp_path / "data" / split / label / f"{number}.png")
    settings = {"search_fraction": 0.5, "crop": 0, "resized_crop": None, "flip": False, "limit": None, "mean": None, "std": None}
    data = ImageFolder(
        **settings, root=str(tmp_path / "data"), image_size=8, resize=None, memory_gb=1.0, num_workers=0, cache_dir=tmp_path / "cache"
    )
    held = data.hold(data.read_train()[0])
    measured = data.measure(held)
    tensors, constants = next((tmp_path / "cache").glob("*.safetensors")), next((tmp_path / "cache").glob("*.json"))
    right = {"pixels": held.pixels, "labels": held.labels}
    wrong = [
        {"pixels": held.pixels[:2]}, {"pixels": held.pixels.float()}, {"pixels": held.pixels[:, :1]}, {"labels": held.labels + 7},
        {"labels": held.labels.int()[:1]}, {"pixels": torch.zeros(6, 3, 9, 9, dtype=torch.uint8)},
    ]  # fmt: skip
    for change in wrong:
        save_tensors(tensors, right | change)
        assert torch.equal(data.hold(data.read_train()[0]).pixels, held.pixels)
    for text in ('{"mean": [1], "std": [1]}', '{"mean": [0, 0, 0], "std": [0, 1, 1]}', '{"mean": "abc", "std": "abc"}', "[" * 9999, "NaN",
                 '{"mean": [NaN, 0, 0], "std": [1, 1, 1]}', '{"mean": [1e999, 0, 0], "std": [1, 1, 1]}'):  # fmt: skip
        constants.write_text(text)
        assert data.measure(held) == measured


def test_hashes_bind_a_plan_to_files_of_its_own_folder_alone(copied, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    plan = json.loads((copied / "plan.json").read_text())
    for name in ("../../secret", str(secret), "..", "", "a/b", "a\\b", "\x00"):
        write_sealed(copied / "plan.json", plan | {"hashes": plan["hashes"] | {name: hash_file(secret)}})
        with pytest.raises(UserError, match="hashes has an impossible value"):
            package.load(copied)


def test_a_terminal_is_told_letters_and_no_orders(rlprune, run):
    result = read_json(run / "result.json")
    result["choices"]["agent"] = "a\x1b]0;gone\x07\u202eb\udcff"
    (run / "result.json").write_text(json.dumps(result))
    code, out, err = rlprune("report", f"runs={run}", "plots=false")
    assert (code, err) == (0, "")
    assert "a�]0;gone��b" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert "\x1b" not in one_line(rlprune, "report", "runs=\x1b[2J")


def test_a_terminal_without_the_letters_is_no_reason_to_fail(tmp_path):
    code = "import sys; from rlprune.cli import entry; sys.argv = ['rlprune', 'report', 'runs=×']; entry()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr


def test_nothing_here_was_left_behind():
    assert "test_hostile" in sys.modules
    assert not Path("canary").exists()
