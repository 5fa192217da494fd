import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import last_line, metrics

from rlprune import cli
from rlprune.search import job
from rlprune.search.bisection import CLOSEST, TOLERANCE, WIDEST, Bisection, Pass, bisected_search, seconds_of_passes
from rlprune.search.ledger import Ledger
from rlprune.search.limits import Goal

SMOKE = ("prune", "debug=smoke", "dataset.limit=80", "device=cpu", "precision=fp32", "recovery.control=false")
NETWORK = ("model=vgg11", "model.classifier=slim", "model.width=0.125")
RLP = (*SMOKE, *NETWORK, "agent=reinforce", "agent.updates=2", "agent.samples=3", "search.max_candidates=null")


def one(bound, excess, *, complete=True):
    return Pass(bound, excess, complete, 10, 0, 1.0, 2.0)


def tried(path, excess, *, first=1.0, most=50):
    """Bounds of a bisection, and what is gone on with; excess: bound → by how much the network is too large."""
    search = Bisection(path / "passes.json", first=first, most=most)
    while (bound := search.next_bound()) is not None:
        search.add(one(bound, excess(bound)))
    return [entry.bound for entry in search.passes], search.passes[search.chosen]


# -- which bound comes next --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0.05, 0.7, 1.0, 2.5, 90.0])
def test_a_bound_is_found_within_the_tolerance(tmp_path, wanted):
    bounds, chosen = tried(tmp_path, lambda bound: (wanted / bound) ** 0.3 - 1)
    assert abs(chosen.excess) <= TOLERANCE
    assert bounds[-1] == chosen.bound  # it ends there
    assert len(bounds) <= 12
    assert len(set(bounds)) == len(bounds)


def test_between_two_bounds_lies_the_geometric_mean(tmp_path):
    bounds, _ = tried(tmp_path, lambda bound: 0.5 if bound < 10 else -0.5)
    assert bounds[:5] == [1.0, 4.0, 16.0, 8.0, pytest.approx(math.sqrt(128))]
    assert bounds[-1] / 10 == pytest.approx(1, abs=CLOSEST - 1)  # a jump: it is as near as bounds are told apart
    bounds, _ = tried(tmp_path / "low", lambda bound: 0.5 if bound < 0.3 else -0.5)
    assert bounds[:4] == [1.0, 0.25, 0.5, pytest.approx(math.sqrt(0.125))]


@pytest.mark.parametrize(("excess", "last"), [(0.5, WIDEST[1]), (-0.5, WIDEST[0])])
def test_what_no_bound_can_do_is_not_tried_for_ever(tmp_path, excess, last):
    bounds, chosen = tried(tmp_path, lambda bound: excess)
    assert bounds[-1] == last
    assert len(bounds) <= 6
    assert chosen.excess == excess


def test_a_search_that_contradicts_itself_ends(tmp_path):
    bounds, chosen = tried(tmp_path, lambda bound: {1.0: -0.3, 0.25: 0.2, 0.5: -0.05}.get(bound, 0.4))
    assert len(bounds) < 12
    assert chosen.excess == 0.2


def test_the_number_of_passes_is_bounded(tmp_path):
    assert len(tried(tmp_path, lambda bound: 0.5 if bound < 10 else -0.5, most=3)[0]) == 3


@pytest.mark.parametrize(
    ("entries", "chosen"),
    [
        ([one(1, 0.3), one(4, -0.009), one(3, 0.1)], 1),  # within the tolerance
        ([one(1, 0.3), one(4, -0.05), one(3, 0.1)], 2),  # too large, and can be cut down
        ([one(1, -0.3), one(4, -0.05)], 1),
        ([one(1, 0.3), one(4, 0.001, complete=False)], 0),
        ([one(4, 0.001, complete=False)], 0),
    ],
)
def test_the_pass_to_go_on_with(tmp_path, entries, chosen):
    search = Bisection(tmp_path / "passes.json", first=1.0, most=9)
    for entry in entries:
        search.add(entry)
    assert search.chosen == chosen
    again = Bisection(tmp_path / "passes.json", first=1.0, most=9)
    assert (again.passes, again.chosen, again.next_bound()) == (search.passes, search.chosen, search.next_bound())
    assert seconds_of_passes(tmp_path) == 3.0 * len(entries)


def test_a_damaged_file_of_passes_is_said_and_passed_over(tmp_path, caplog):
    path = tmp_path / "passes.json"
    whole = asdict(one(1.0, 0.3))
    wrong = [
        ("bound", "x"),
        ("bound", 0.0),
        ("bound", math.nan),
        ("excess", None),
        ("complete", "no"),
        ("candidates", "3"),
        ("search_seconds", None),
    ]
    entries = [json.dumps({"passes": [whole | {key: value}]}) for key, value in wrong]
    for content in ("{", '{"passes": [{"bound": 1}]}', '{"passes": 3}', "[]", *entries):
        path.write_text(content)
        caplog.clear()
        assert Bisection(path, first=2.0, most=9).next_bound() == 2.0
        assert str(path) in caplog.text
        assert seconds_of_passes(tmp_path) == 0


def test_the_excess_is_that_of_the_target_that_is_missed_most():
    goal = Goal(100, 1000, math.inf, True)
    assert goal.relative_excess(90, 1500, 7) == pytest.approx(0.5)
    assert goal.relative_excess(120, 900, 7) == pytest.approx(0.2)
    assert goal.relative_excess(90, 950, 7) == pytest.approx(-0.05)


# -- whole runs ---------------------------------------------------------------------------------------------------------------------------


def result(folder):
    return json.loads((folder / "result.json").read_text())


def plan(folder):
    return json.loads((folder / "pruned/plan.json").read_text())


def test_units_come_from_the_policy_and_the_artefact_says_so(rlprune):
    assert rlprune(*RLP, "schedule.steps=null", "paths.run=outputs/rlp")[0] == 0
    folder = Path("outputs/rlp")
    steps, layers, episodes = (pd.read_csv(folder / f"{name}.csv") for name in ("metrics", "layers", "episodes"))
    groups = list(dict.fromkeys(layers["group"]))
    assert len(steps) == len(groups) == 8
    assert episodes.groupby("step")["group"].unique().map(list).tolist() == [[name] for name in groups]
    table = layers.pivot(index="step", columns="group", values="units")[groups].to_numpy()
    changed = np.diff(table, axis=0) != 0
    assert not (changed & ~np.eye(8, dtype=bool)).any()  # step k prunes group k alone
    assert (plan(folder)["units_chosen_by"], plan(folder)["criterion"]) == ("agent", None)
    assert result(folder)["units_chosen_by"] == "agent"
    assert "passes" not in result(folder)
    assert result(folder)["search"]["candidates"] == steps["candidates"].sum()
    assert rlprune(*SMOKE, *NETWORK, "agent=uniform", "paths.run=outputs/uniform")[0] == 0
    assert (plan(Path("outputs/uniform"))["units_chosen_by"], plan(Path("outputs/uniform"))["criterion"]) == ("criterion", "taylor")


@pytest.mark.parametrize("line", [("schedule.sparsity=0.2",), ("budget.params=0.7", "budget.macs=0.9")])
def test_a_target_is_met_by_bisection_and_every_evaluation_counts(rlprune, monkeypatch, line):
    measured, accuracy = [], Ledger.accuracy
    monkeypatch.setattr(Ledger, "accuracy", lambda self, subject, measure: measured.append(1) or accuracy(self, subject, measure))
    code, out, err = rlprune(*RLP, *line, "agent.passes=4", "paths.run=outputs/rlp")
    assert code == 0, err
    done = result(Path("outputs/rlp"))
    for key, target in done["targets"].items():
        assert target["reached"] >= target["asked"] if key == "schedule.sparsity" else target["reached"] <= target["asked"]
    passes = done["passes"]
    assert 1 <= len(passes) <= 4
    assert done["search"]["candidates"] == len(measured) > passes[-1]["candidates"] > 0
    assert passes[0]["drop_bound"] == 1.0
    assert out.count("from the target") >= len(passes)
    assert len(pd.read_csv("outputs/rlp/metrics.csv")) == 3  # two steps of layers, and the one that meets the target
    assert not Path("outputs/rlp/checkpoint").exists()
    near = min(abs(entry["excess"]) for entry in passes) <= TOLERANCE
    assert near or "what is too large loses the units least worth keeping" in out


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (("budget.macs=0.6", "agent.passes=2", "schedule.steps=null"), 9),  # one more than there are groups
        (("agent.mode=individual", "agent.layer=features.8", "schedule.steps=null"), 1),
        (("schedule.max_sparsity={features.0:0}", "schedule.steps=null"), 7),
        ((), 2),
    ],
)
def test_a_run_of_the_same_widths_recovers_as_often(rlprune, line, steps):
    assert rlprune(*RLP, *line, "paths.run=outputs/rlp")[0] == 0
    like = ("agent=like", "agent.run=outputs/rlp/pruned", "schedule=layers", "recovery=finetune", "criterion=random", "schedule.steps=null")
    assert rlprune(*SMOKE, *NETWORK, *like, "paths.run=outputs/like")[0] == 0
    for name in ("rlp", "like"):
        assert len(pd.read_csv(f"outputs/{name}/metrics.csv")) == steps
    assert {key: len(units) for key, units in plan(Path("outputs/like"))["keep"].items()} == {
        key: len(units) for key, units in plan(Path("outputs/rlp"))["keep"].items()
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a bisection that nobody interrupted, with its line and the number of its measurements."""
    folder, line, measured, accuracy = tmp_path_factory.mktemp("unbroken"), (*RLP, "budget.macs=0.6", "agent.passes=3"), [], Ledger.accuracy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "accuracy", lambda self, subject, measure: measured.append(1) or accuracy(self, subject, measure))
        patch.chdir(folder)
        assert cli.main([*line, "paths.run=outputs/whole"]) == 0
    return folder / "outputs", line, len(measured)


@pytest.mark.no_cover
@pytest.mark.parametrize("at", [30, "last"])
def test_a_killed_bisection_goes_on_to_the_same_end(rlprune, monkeypatch, unbroken, at):
    outputs, line, count = unbroken
    shutil.copytree(outputs, "outputs")
    measured, accuracy = [], Ledger.accuracy
    end = count if at == "last" else at
    assert end <= count

    def counted(self, subject, measure):
        measured.append(1)
        if len(measured) == end:
            raise KeyboardInterrupt
        return accuracy(self, subject, measure)

    monkeypatch.setattr(Ledger, "accuracy", counted)
    assert rlprune(*line, "paths.run=outputs/killed")[0] == 130
    assert rlprune(*line, "paths.run=outputs/killed")[0] == 0
    whole, killed = Path("outputs/whole"), Path("outputs/killed")
    assert metrics(result(killed)) == metrics(result(whole))
    assert plan(killed)["keep"] == plan(whole)["keep"]
    for name in ("episodes", "layers"):
        pd.testing.assert_frame_equal(pd.read_csv(killed / f"{name}.csv"), pd.read_csv(whole / f"{name}.csv"))


@pytest.mark.parametrize("damage", ["none", "all"])
def test_a_run_killed_behind_its_last_step_goes_on_to_the_same_end(rlprune, monkeypatch, unbroken, damage):
    outputs, line, _ = unbroken
    shutil.copytree(outputs, "outputs")
    finish = job.finish

    def interrupted(*arguments, **settings):
        monkeypatch.setattr(job, "finish", finish)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "finish", interrupted)
    assert rlprune(*line, "paths.run=outputs/killed")[0] == 130
    (last,) = Path("outputs/killed/checkpoint").glob("pass-*/step-0003.safetensors")
    for path in last.parent.glob("step-*") if damage == "all" else []:
        path.write_bytes(b"damaged")
    assert rlprune(*line, "paths.run=outputs/killed")[0] == 0
    whole, killed = Path("outputs/whole"), Path("outputs/killed")
    assert plan(killed) == plan(whole)
    assert result(killed)["rows"][-1]["top1"] == result(whole)["rows"][-1]["top1"]
    if damage == "none":
        assert metrics(result(killed)) == metrics(result(whole))


def test_when_the_time_is_over_the_bisection_ends_with_what_it_has(rlprune, monkeypatch):
    code, out, err = rlprune(*RLP, "budget.macs=0.6", "schedule.max_minutes=0.0001", "paths.run=outputs/rlp")
    assert code == 0, err
    done = result(Path("outputs/rlp"))
    assert done["search"]["stopped"] == "max_minutes"
    assert len(done["passes"]) == 1
    assert done["targets"]["budget.macs"]["reached"] <= 0.6
    assert "schedule.max_minutes is over" in out


def test_time_that_was_over_before_an_interruption_begins_no_further_pass(tmp_path):
    Bisection(tmp_path / "passes.json", first=1.0, most=9).add(one(1.0, 0.5))
    ledger, ran = Ledger(), []

    def load(folder):
        ledger.deadline = 0.0
        history = SimpleNamespace(steps=[], stopped="")
        return SimpleNamespace(step=1 if folder.name == "pass-1" else 0, history=history)

    def run(state, folder, until):
        ran.append((folder.name, until))
        state.step += 1

    schedule = SimpleNamespace(steps=2, goals=(None, Goal(1, 1, 1, True)))
    agent = SimpleNamespace(drop_bound=1.0, passes=9)
    state, passes = bisected_search(tmp_path, agent=agent, schedule=schedule, ledger=ledger, load=load, run=run)
    assert ran == [("pass-1", None)]
    assert (len(passes), agent.drop_bound, state.history.stopped, ledger.distinct) == (1, 1.0, "max_minutes", 10)


def test_the_smallest_network_within_a_drop(rlprune):
    code, _, err = rlprune(*RLP, "budget.max_drop=60", "recovery=none", "paths.run=outputs/rlp")
    assert code == 0, err
    assert len(pd.read_csv("outputs/rlp/metrics.csv")) == 2
    assert result(Path("outputs/rlp"))["targets"] == {}


def test_one_layer_is_pruned_and_no_other(rlprune):
    for name in ("features.4", "features.18"):
        assert rlprune(*RLP, "agent.mode=individual", f"agent.layer={name}", "schedule.steps=null", f"paths.run=outputs/{name}")[0] == 0
        layers = pd.read_csv(f"outputs/{name}/layers.csv")
        table = layers.pivot(index="step", columns="group", values="units")
        assert len(table) == 2
        lost = table.loc[0] - table.loc[1]
        assert lost.drop(name).eq(0).all()
        assert pd.read_csv(f"outputs/{name}/episodes.csv")["group"].eq(name).all()
    code, _, err = rlprune(*RLP, "agent.mode=individual", "agent.layer=features.4", "schedule.steps=null", "budget.macs=0.2")
    assert code == 2
    assert "budget.macs=0.2: 0." in last_line(err)[-1]  # what one layer can do


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("agent.drop_bound=0",), "agent.drop_bound=0.0: must be > 0 points of accuracy"),
        (("agent.drop_bound=-1",), "agent.drop_bound=-1.0: must be > 0 points of accuracy"),
        (("agent.samples=1",), "agent.samples=1: baseline=leave_one_out compares with the others, so it needs 2 or more"),
        (("agent.mode=individual",), "agent.layer=null: mode=individual prunes one layer; name it (rlprune inspect lists them)"),
        (("agent.mode=individual", "agent.layer=features.8x"), "agent.layer=features.8x: there is no such layer; did you mean features.8"),
        (("agent.mode=individual", "agent.layer=classifier"), "agent.layer=classifier: its channels are kept ("),
        (("agent.mode=individual", "agent.layer=features.4", "ignore=[features.4]"), "agent.layer=features.4: its channels are kept ("),
        (("agent.layer=features.4",), "agent.layer=features.4: goes with mode=individual; mode=entire prunes all of them"),
        (("schedule.sparsity=0.5", "schedule.save_at=[0.25]"), "schedule.save_at=[0.25]: this agent decides layer by layer"),
        (("budget.macs=0.5", "budget.max_drop=1"), "budget.max_drop=1.0: goes with no other target for this agent"),
        (("budget.macs=0.0001",), "budget.macs=0.0001: 0."),
    ],
)
def test_what_cannot_be_is_said_in_one_line_before_anything_is_trained(rlprune, line, words):
    code, out, err = rlprune(*RLP, *line)
    assert (code, out) == (2, "")
    assert last_line(err)[-1].startswith(f"rlprune: {words}") or words in last_line(err)[-1]
    assert "Traceback" not in err
    assert not list(Path("outputs").glob("dense/*"))
