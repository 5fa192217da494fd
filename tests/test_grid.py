"""Grids of runs: which there are, what their folders are called, and what a line leaves of them or adds."""

import json
from pathlib import Path

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus

from rlprune.commands.sweeper import _hopeless
from rlprune.config import conf_dir
from rlprune.errors import UserError
from rlprune.grid import narrowed, read_grid

GRID = {
    "each": {"seed": [0, 1]},
    "runs": [
        {"model": "vgg19", "dataset": "cifar100", "agent": ["mcq", "global"]},
        {"model": "resnet56", "dataset": "cifar10", "agent": "mcq", "agent.epsilon": [0.2, 0.4], "with": {"model.width": 0.5}},
        {"follows": {"model": "resnet56"}, "agent": "like", "criterion": ["l1", "random"], "agent.run": "{run}"},
    ],
}
NAMES = [
    "vgg19_cifar100_mcq", "vgg19_cifar100_global", "resnet56_cifar10_mcq_epsilon-0.2", "resnet56_cifar10_mcq_epsilon-0.4",
    "resnet56_cifar10_mcq_epsilon-0.2_like_l1", "resnet56_cifar10_mcq_epsilon-0.2_like_random",
    "resnet56_cifar10_mcq_epsilon-0.4_like_l1", "resnet56_cifar10_mcq_epsilon-0.4_like_random",
]  # fmt: skip


def names(cells):
    return [cell.name for cell in cells]


def test_every_combination_is_a_run_and_those_of_a_seed_stand_together():
    assert names(read_grid(GRID)) == [f"{name}_seed-{seed}" for seed in (0, 1) for name in NAMES]


def test_a_run_is_told_its_own_settings_and_those_of_the_run_that_it_follows():
    cell = next(cell for cell in read_grid(GRID) if cell.name == "resnet56_cifar10_mcq_epsilon-0.4_like_l1_seed-1")
    assert cell.overrides("out") == {
        "model": "resnet56", "dataset": "cifar10", "seed": "1", "model.width": "0.5",
        "agent": "like", "criterion": "l1", "agent.run": "out/resnet56_cifar10_mcq_epsilon-0.4_seed-1",
    }  # fmt: skip
    assert cell.without(["model.width"]).overrides("out").keys() == cell.overrides("out").keys() - {"model.width"}


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({"seed": ["0"]}, [f"{name}_seed-0" for name in NAMES]),
        ({"seed": ["0"], "agent": ["mcq"]}, [f"{NAMES[index]}_seed-0" for index in (0, 2, 3)]),
        ({"seed": ["0"], "agent.epsilon": ["0.2"]}, [f"{NAMES[index]}_seed-0" for index in (2, 4, 5)]),
        ({"seed": ["7"]}, [f"{name}_seed-7" for name in NAMES]),
        ({"seed": ["1", "7"], "agent": ["global"]}, ["vgg19_cifar100_global_seed-1", "vgg19_cifar100_global_seed-7"]),
        ({"seed": ["0"], "agent": ["amc"]}, ["vgg19_cifar100_amc_seed-0", "resnet56_cifar10_amc_seed-0"]),  # without mcq's settings
        ({"seed": ["0"], "model": ["vgg19"], "dataset": ["mine"]}, ["vgg19_mine_mcq_seed-0", "vgg19_mine_global_seed-0"]),
        (
            {"seed": ["0"], "model": ["vgg19"], "agent": ["mcq"], "search.samples": ["64", "128"]},
            ["vgg19_cifar100_mcq_samples-64_seed-0", "vgg19_cifar100_mcq_samples-128_seed-0"],
        ),
        ({"seed": ["0"], "agent": ["like"], "criterion": ["l1"], "agent.epsilon": ["0.4"]}, [f"{NAMES[6]}_seed-0"]),
        ({"seed": ["00"], "agent.epsilon": ["0.40"], "agent": ["mcq"]}, [f"{NAMES[3]}_seed-0"]),  # one number, however it is written
    ],
)
def test_a_line_narrows_a_grid_or_adds_to_it(wanted, left):
    assert names(narrowed(read_grid(GRID), wanted, "x")) == left


def test_a_follower_goes_with_the_seed_of_its_run():
    (cell,) = narrowed(read_grid(GRID), {"seed": ["7"], "agent": ["like"], "criterion": ["l1"], "agent.epsilon": ["0.4"]}, "x")
    assert cell.overrides("out")["agent.run"] == "out/resnet56_cifar10_mcq_epsilon-0.4_seed-7"


def test_another_choice_leaves_settings_of_the_former_one_behind():
    grid = {"runs": [{"model": "vgg16", "agent": "ddpg", "with": {"model.classifier": "slim", "agent.episodes": 30, "schedule.steps": 2}}]}
    (cell,) = narrowed(read_grid(grid), {"model": ["resnet20"]}, "x")
    assert cell.overrides("out") == {"model": "resnet20", "agent": "ddpg", "agent.episodes": "30", "schedule.steps": "2"}


def test_a_value_may_have_a_name():
    cells = read_grid({"runs": [{"like": {"half": "${paths.outputs}/a/pruned-0.5", "all": "${paths.outputs}/a"}}]})
    assert names(cells) == ["half", "all"]
    for word in ("half", "${paths.outputs}/a/pruned-0.5"):
        (cell,) = narrowed(cells, {"like": [word]}, "x")
        assert cell.overrides("out") == {"like": "${paths.outputs}/a/pruned-0.5"}


def test_where_two_fail_alike_on_some_data_other_data_is_tried():
    def result(text):
        found = JobReturn(status=JobStatus.FAILED if text else JobStatus.COMPLETED)
        found.return_value = UserError(text) if text else None
        return found

    cells = read_grid({"each": {"seed": [0, 1, 2]}, "runs": [{"dataset": ["a", "b"]}]})
    a0, b0, a1, b1, a2, _ = cells
    tried, results = [a0, b0, a1], [result("no a"), result(""), result("no a")]
    assert _hopeless(a2, tried, results)
    assert not _hopeless(b1, tried, results)
    assert not _hopeless(a2, [a0, b0, a1], [result("no a"), result(""), result("other")])
    assert not _hopeless(a2, [b0, a0], [result(""), result("no a")])


def test_narrowed_to_nothing():
    with pytest.raises(
        UserError, match=r"experiment=x: model=vgg19 dataset=cifar10 leaves no run of its grid, which has model=vgg19,resnet56"
    ):
        narrowed(read_grid(GRID), {"model": ["vgg19"], "dataset": ["cifar10"]}, "x")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], r"grid=\[\]: must have runs"),
        ({"run": [{"agent": "mcq"}]}, "must have runs"),
        ({"runs": ["mcq"]}, r"grid.runs\[0\]=mcq: must be a mapping"),
        ({"runs": [{"agent": []}]}, r"grid.runs\[0\].agent: is empty"),
        ({"runs": [{"agent": "mcq"}, {"follows": {"agent": "amc"}, "agent": "like"}]}, "no run above it has these values"),
        ({"runs": [{"agent": "mcq"}, {"agent": ["mcq", "amc"]}]}, "two runs are called mcq"),
        ({"runs": [{"agent": "mcq", "follows": "x"}]}, r"grid.runs\[0\].follows=x: must be a mapping"),
        ({"runs": [{"agent": "mcq", "with": 3}]}, r"grid.runs\[0\].with=3: must be a mapping"),
        ({"runs": [{"agent": "mcq"}], "each": 3}, "grid.each=3: must be a mapping"),
        (7, "grid=7: must have runs"),
    ],
)
def test_a_grid_that_is_none(grid, message):
    with pytest.raises(UserError, match=message):
        read_grid(grid)


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*_small.yaml")), ids=lambda path: path.stem)
def test_a_small_edition_has_the_methods_of_the_full_one(path):
    def rows(file):
        grid = yaml.safe_load(file.read_text()).get("grid")
        if grid is None:
            return None
        flat = read_grid(grid | {"each": {}})
        return sorted(cell.name for cell in flat)

    small, full = rows(path), rows(path.with_name(path.name.replace("_small", "")))
    assert small is None or small == full


# -- as a user runs them ---------------------------------------------------------------------------------------------------------------

TINY = ("device=cpu", "precision=fp32", "debug=smoke", "dataset=digits", "dataset.limit=64", "dataset.image_size=8")
TINY += ("model=resnet20", "model.depth=8", "model.width=0.25")


@pytest.fixture
def preset(tmp_path):
    """A preset of two agents and two seeds, in a folder that Hydra is told of."""
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(
        "# @package _global_\ndefaults: [paper/grid, _self_]\n"
        "grid: {each: {seed: [0, 1]}, runs: [{agent: uniform}, {agent: like, agent.run: nowhere}]}\n"
    )
    return ("prune", "--config-dir", tmp_path / "mine", "experiment=tiny", *TINY, "recovery=none")


def test_again_the_same_line_does_what_is_missing(rlprune, preset):
    assert rlprune(*preset, "agent=uniform")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("outputs/tiny").glob("*/result.json")}
    assert sorted(path.parent.name for path in before) == ["uniform_seed-0", "uniform_seed-1"]
    code, out, _ = rlprune(*preset, "agent=uniform", "seed=0,1,2")
    assert (code, out.count("that run is done; nothing is left to do")) == (0, 2)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (Path("outputs/tiny/uniform_seed-2") / "result.json").exists()
    assert json.loads(Path("outputs/tiny/uniform_seed-2/result.json").read_text())["dense_seed"] == 0  # one dense network for all seeds
    assert len(list(Path("outputs/dense").glob("*.safetensors"))) == 1


def test_a_failed_run_does_not_stop_the_others(rlprune, preset):
    code, _, err = rlprune(*preset)
    assert code == 2
    last = [line for line in err.splitlines() if line.startswith("rlprune prune:")][-1]
    assert last.startswith("rlprune prune: 2 of 4 runs failed, 2 are done; like_run-nowhere_seed-0 failed: agent.run=nowhere: has no")
    assert last.endswith("so did like_run-nowhere_seed-1")
    assert "Traceback" not in err
    assert json.loads(Path("outputs/tiny/like_run-nowhere_seed-0/failed.json").read_text())["error"].startswith("agent.run=nowhere")


def test_a_run_whose_config_cannot_be_made_does_not_stop_the_others_either(rlprune, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(
        "# @package _global_\ndefaults: [paper/grid, _self_]\n"
        "grid: {runs: [{agent: global, with: {schedule.min_keep: 99}},"
        " {follows: {agent: global}, agent: uniform, with: {budget.macs: \"${share_kept:'{run}',macs}\"}}, {agent: random_search}]}\n"
    )
    code, _, err = rlprune("prune", "--config-dir", tmp_path / "mine", "experiment=tiny", *TINY, "recovery=none")
    assert code == 2
    assert err.splitlines()[-1].startswith("rlprune prune: 2 of 3 runs failed, 1 are done; global failed: schedule: nothing may go")
    assert Path("outputs/tiny/random_search/result.json").exists()
    why = json.loads(Path("outputs/tiny/global_uniform/failed.json").read_text())["error"]
    assert why == "outputs/tiny/global: is not finished, and this run follows it; finish it first, by the same line"


def test_the_same_folder_in_another_spelling_goes_on(rlprune, preset):
    assert rlprune(*preset, "agent=uniform", "seed=0")[0] == 0
    for outputs in ("./outputs", Path("outputs").absolute()):
        code, out, _ = rlprune(*preset, "agent=uniform", "++seed=0", f"paths.outputs={outputs}")
        assert (code, out.count("that run is done; nothing is left to do")) == (0, 1)
    assert len(list(Path("outputs/tiny").iterdir())) == 1


def test_where_the_first_two_fail_alike_the_others_are_not_started(rlprune, preset):
    code, _, err = rlprune(*preset, "agent=uniform", "seed=0,1,2,3", "schedule.sparsity=7")
    last = "rlprune prune: 2 of 4 runs failed, 2 were not started, as the first two on the same data failed alike; uniform_seed-0 failed: "
    assert (code, err.splitlines()[-1].startswith(f"{last}schedule.sparsity=7.0: must be in (0, 1)")) == (2, True)
    assert sorted(path.name for path in Path("outputs/tiny").iterdir()) == ["uniform_seed-0", "uniform_seed-1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("prune", "experiment=rlpruner_table2", "model=vgg19", "dataset=cifar10"), "leaves no run of its grid"),
        (("prune", "experiment=rlpruner_table2", "agnet=mcq"), "agnet: no such key (did you mean agent?)"),
        (("prune", "experiment=rlpruner_table2", "agent=mqc"), "agent=mqc: unknown; choose one of"),
        (("prune", "experiment=rlpruner_table2", "hydra.mode=RUN"), "experiment=rlpruner_table2: is a grid of runs; name it alone"),
        (("prune", "experiment=fprl_table2", "hydra.mode=RUN"), "experiment=fprl_table2: is a grid of runs; name it alone"),
        (("prune", "experiment=rlpruner_table2", "grid=5"), "grid=5: must be the preset's own, a mapping; narrow it by its keys"),
        (("prune", "experiment=rlpruner_table4_scratch"), "sets like, which is not there; is it a preset of rlprune train"),
        (("train", "experiment=rlpruner_table4"), "sets schedule, which is not there; is it a preset of rlprune prune"),
        (("prune", "experiment=rlal_table2_small", "seed=0", "agent=rlal"), "dataset.root: is missing"),
    ],
)
def test_bad_input(rlprune, line, message):
    code, _, err = rlprune(*line)
    assert (code, message in err.splitlines()[-1], "Traceback" in err) == (2, True, False), err
