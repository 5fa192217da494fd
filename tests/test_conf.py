import inspect

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object

from rlprune.cli import COMMANDS
from rlprune.config import build, check_settings, conf_dir, load_yaml, register, resolve
from rlprune.errors import UserError

PLUGINS = sorted(
    path
    for group in ("model", "dataset", "agent", "reward", "criterion", "optimizer", "tracker")
    for path in (conf_dir() / group).glob("*.yaml")
)
FILLED = {"???": "x", "${seed}": 0}  # what a command line or the rest of the config gives
RUNTIME = {"in_channels", "num_classes", "cache_dir", "data_dir", "params"}


def composed(command, *overrides):
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir().resolve()), version_base="1.3"):
        return compose(config_name=command, overrides=list(overrides))


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_yaml_and_signature_agree(path):
    node = load_yaml(path)
    factory = get_object(node.pop("_target_"))
    parameters = inspect.signature(factory).parameters
    given = dict.fromkeys(RUNTIME & set(parameters))
    settings = {key: FILLED.get(value, value) if isinstance(value, str) else value for key, value in node.items()}
    checked = check_settings(factory, parameters, settings, "x", given)
    if factory.__module__.startswith("rlprune"):
        assert set(checked) == set(parameters) - RUNTIME  # a default lives in the yaml, and nowhere else
        assert all(parameter.default is parameter.empty for parameter in parameters.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command):
    config = composed(command)
    assert config.paths.outputs == "outputs"


@pytest.mark.parametrize("group", ["model", "agent", "reward", "criterion", "schedule", "recovery", "training", "debug", "tracker"])
def test_every_choice_composes(group):
    for path in (conf_dir() / group).glob("*.yaml"):
        more = ["model.target=a.B"] if path.stem == "custom" else []
        config = composed("prune", f"{group}={path.stem}", "paths.run=x", *more)
        steps = resolve(config).schedule.steps
        assert steps is None if path.stem in ("layers", "reinforce") else steps >= 1


def test_every_experiment_composes():
    for path in (conf_dir() / "experiment").glob("*.yaml"):
        command = "train" if "scratch" in path.stem else "prune"
        config = composed(command, f"experiment={path.stem}", *(["++dataset.root=x"] if command == "prune" else []), "paths.run=x")
        assert (config.grid is None) == ("_table" not in path.stem and "_fig" not in path.stem)
        config.grid = None  # as each of its runs is told
        resolve(config)


def test_each_phase_has_its_own_optimizer():
    config = composed("prune", "optimizer@training.optimizer=adamw", "recovery.optimizer.lr=0.3")
    assert config.training.optimizer._target_ == "torch.optim.AdamW"
    assert (config.recovery.optimizer._target_, config.recovery.optimizer.lr) == ("torch.optim.SGD", 0.3)


def test_random_scores_take_the_seed_of_the_run():
    assert build(resolve(composed("prune", "criterion=random", "seed=7", "paths.run=x")).criterion, "criterion").seed == 7


def plugin(*, number: float, count: int, name: str, flag: bool, extra: list[int] | None, handle):
    return number, count, name, flag, extra, handle


GOOD = {"_target_": "test_conf.plugin", "number": 1, "count": 2, "name": "x", "flag": True, "extra": [1, 2]}


def test_build_checks_types_and_hands_over_what_is_asked_for():
    assert build(GOOD, "x", handle=7, unused=8) == (1.0, 2, "x", True, [1, 2], 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "abc"}, r"x\.number=abc: must be a finite number"),
        ({"number": float("inf")}, r"x\.number=inf: must be a finite number"),
        ({"number": True}, r"x\.number=True"),
        ({"count": 1.5}, r"x\.count=1\.5: must be an integer"),
        ({"flag": "on"}, r"x\.flag=on: must be true or false"),
        ({"name": 3}, r"x\.name=3: must be text"),
        ({"extra": [1, "a"]}, r"x\.extra=\[1, 'a'\]: must be a list, each an integer"),
        ({"nmae": "y"}, r"x\.nmae: no such setting \(did you mean name\?\)"),
        ({"_target_": "no.such.Thing"}, r"x\._target_=no\.such\.Thing: cannot be imported"),
        ({"_target_": None}, "has no _target_"),
    ],
)
def test_build_names_what_is_wrong(change, message):
    with pytest.raises(UserError, match=message):
        build({key: value for key, value in (GOOD | change).items() if value is not None}, "x", handle=1)


def test_build_names_what_is_missing():
    with pytest.raises(UserError, match=r"x\.number: is missing"):
        build({"_target_": "test_conf.plugin"}, "x", handle=1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.steps=0", "schedule.steps=0"),
        ("schedule.period=0", "schedule.period=0"),
        ("schedule.min_keep=0", "schedule.min_keep=0"),
        ("schedule.max_minutes=0", "schedule.max_minutes=0"),
        ("training.batch_size=1", "training.batch_size=1"),
        ("recovery.epochs=-1", "recovery.epochs=-1"),
        ("recovery.rho=2", "recovery.rho=2"),
        ("recovery.temperature=0", "recovery.temperature=0"),
        ("recovery.final_epochs=-1", "recovery.final_epochs=-1"),
        ("recovery.clip_norm=0", "recovery.clip_norm=0"),
        ("training.label_smoothing=1", "training.label_smoothing=1"),
        ("search.samples=0", "search.samples=0"),
        ("search.max_candidates=0", "search.max_candidates=0"),
        ("search.execution=dense", "search.execution=dense"),
    ],
)
def test_values_out_of_range_name_their_key(override, message):
    with pytest.raises(UserError, match=message):
        resolve(composed("prune", override, "paths.run=x"))
