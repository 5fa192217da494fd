import contextlib
import json
import math
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import nets
import numpy as np
import pytest
import torch

import rlprune
from rlprune.agents.mcq import MCQ
from rlprune.agents.uniform import Uniform
from rlprune.files import read_json
from rlprune.search.ledger import Ledger
from rlprune.search.limits import Goal
from rlprune.search.resume import keep_measured, load_state, save_state
from rlprune.search.runner import run_search, start_state
from rlprune.search.schedule import Size, Targets, make_schedule
from rlprune.search.task import Environment, Task

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def goals_of(graph, removed):
    return tuple(Goal(graph.num_channels - channels, math.inf, math.inf, True) for channels in removed)


def environment(graph, goals, **ledger):
    scored = []

    def score(network, graph):
        scored.append(network)
        return {group.name: torch.arange(group.num_units, dtype=torch.float64) for group in graph.groups}

    def measure(network):
        return 0.5 + 0.001 * sum(parameter.numel() for parameter in network.parameters()) % 0.4

    dense = Size(graph.num_channels, graph.macs({}), graph.params({}))
    reward = lambda accuracy, flops_ratio, params_ratio: accuracy + flops_ratio + 10 * params_ratio  # noqa: E731
    kept_counts = {group.name: np.arange(group.num_units, 0, -1) for group in graph.groups}
    return Environment(measure, reward, score, dense, goals, kept_counts, Ledger(**ledger)), scored


@pytest.fixture
def traced():
    network = nets.randomised(nets.Concat()).eval()
    return network, rlprune.trace(network, EXAMPLE)  # groups of 8, 4 and 6 channels


def test_a_candidate_is_measured_once_and_scores_are_computed_once(traced):
    network, graph = traced
    settings, scored = environment(graph, goals_of(graph, [6, 12]))
    seen = []
    settings.ledger.on_measure = seen.append
    task = Task(settings, network, graph, 0)
    first = task.evaluate(np.array([0.5, 0.2, 0.3]))
    again = task.evaluate(np.array([0.51, 0.2, 0.29]))
    task.evaluate(np.array([0.0, 0.0, 1.0]))
    assert (settings.ledger.distinct, settings.ledger.repeated, len(seen), len(scored)) == (2, 1, 2, 1)
    assert again.accuracy == first.accuracy
    np.testing.assert_array_equal(again.action, [0.51, 0.2, 0.29])
    np.testing.assert_allclose(first.carry, [0.0, 0.2, -0.2], atol=1e-12)
    np.testing.assert_allclose(again.carry, [0.06, 0.2, -0.26], atol=1e-12)
    assert {name: units.tolist() for name, units in first.keep.items()} == {"stem": [3, 4, 5, 6, 7], "a": [1, 2, 3], "b": [2, 3, 4, 5]}
    assert first.counts @ graph.channels_per_unit == 6


def test_what_is_measured_is_the_pruned_network(traced):
    network, graph = traced
    settings, _ = environment(graph, goals_of(graph, [6]))
    candidate = Task(settings, network, graph, 0).evaluate(np.array([1.0, 0.0, 0.0]))
    pruned = rlprune.prune(network, graph, candidate.keep)
    assert candidate.accuracy == settings.measure(pruned)
    assert candidate.params == sum(parameter.numel() for parameter in pruned.parameters())
    assert candidate.reward == pytest.approx(
        candidate.accuracy + 1 - candidate.macs / graph.macs({}) + 10 * (1 - candidate.params / graph.params({}))
    )


def test_candidates_run_as_the_environment_says(traced):
    network, graph = traced
    settings, _ = environment(graph, goals_of(graph, [6]))
    candidates = {}
    for execution in ("sliced", "padded", "masked"):
        sizes = []

        def measure(network, sizes=sizes):
            sizes.append(sum(parameter.numel() for parameter in network.parameters()))
            return 0.5

        changed = replace(settings, measure=measure, execution=execution)
        candidates[execution] = Task(changed, network, graph, 0).evaluate(np.array([1.0, 0.0, 0.0]))
        assert sizes == [graph.params(candidates[execution].keep if execution == "sliced" else {})]  # no group has more than 16 units
    assert len({(candidate.params, candidate.macs, candidate.reward) for candidate in candidates.values()}) == 1


def test_the_successor_is_a_state_of_its_own(traced):
    network, graph = traced
    settings, scored = environment(graph, goals_of(graph, [6, 10]))
    task = Task(settings, network, graph, 0)
    following = task.after(task.evaluate(np.array([1.0, 0.0, 0.0])))
    assert (following.step, following.goal.channels) == (1, 8)
    following.evaluate(np.array([0.0, 1.0, 1.0]))
    assert len(scored) == 2
    assert following.after(following.evaluate(np.array([1.0, 0.0, 0.0]))) is None
    assert following.room.capacity.tolist() == [1, 3, 5]
    np.testing.assert_allclose(following.channel_shares.sum(), 1)


def test_bounds_end_a_step(traced):
    network, graph = traced
    settings, _ = environment(graph, goals_of(graph, [6]), max_candidates=2)
    task = Task(settings, network, graph, 0)
    assert not task.exhausted
    for share in (0.0, 1.0):
        task.evaluate(np.array([share, 1.0, 1.0]))
    assert task.exhausted
    settings.ledger.step_start = 2
    assert not task.exhausted
    settings.ledger.deadline = time.monotonic() - 1
    assert task.exhausted


def schedule_of(graph, *, steps, period, save_at, max_drop=None):
    dense = Size(graph.num_channels, graph.macs({}), graph.params({}))
    targets = Targets(0.5, None, None, max_drop)
    return make_schedule(targets=targets, steps=steps, period=period, save_at=save_at, dense=dense, smallest=replace(dense, channels=3))


class CutError(Exception):
    """A run ends here."""


def run(network, graph, *, until=None, state=None, folder=None, targets_steps=4, deadline=None):
    schedule = schedule_of(graph, steps=targets_steps, period=2, save_at=[0.25])
    settings, _ = environment(graph, schedule.goals)
    settings.ledger.deadline = deadline
    agent, levels, recoveries = Uniform(), [], []

    def recover(network, teacher, epochs, phase):
        recoveries.append((phase, epochs))
        with torch.no_grad():
            network.head.weight.add_(0.01)

    def on_step(state):
        if folder is not None:
            save_state(folder, state, agent)
        if state.step == until:
            raise CutError

    if state is None and folder is not None:
        state = load_state(folder, network, graph, agent, settings.ledger)
    state = state or start_state(network, graph, settings.measure(network))
    with contextlib.suppress(CutError):
        run_search(
            state, agent=agent, environment=settings, schedule=schedule, recover=recover, epochs=1, final_epochs=3, seed=0,
            on_step=on_step, on_level=lambda state, level, before: levels.append((state.step, level)),
        )  # fmt: skip
    return state, levels, recoveries, settings


def test_the_loop_removes_recovers_and_saves_as_scheduled(traced):
    network, graph = traced
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state, levels, recoveries, _ = run(network, graph)
    assert levels == [(2, 0.25), (4, 0.5)]
    assert recoveries == [("recover step 2", 3), ("recover step 4", 3)]
    assert [record.sparsity for record in state.history.steps] == pytest.approx([3 / 18, 5 / 18, 7 / 18, 0.5])
    assert state.graph.num_channels == 9
    assert sum(len(units) for units in state.kept.values()) == 9
    assert rlprune.prune(network, graph, state.kept).stem.weight.shape == state.network.stem.weight.shape
    assert torch.equal(rlprune.prune(network, graph, state.kept).stem.weight, state.network.stem.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert len(state.history.layers) == 3 * 5
    assert state.history.candidates == 4


@pytest.mark.parametrize("until", [1, 2, 3])
def test_a_cut_search_goes_on_to_the_same_end(traced, tmp_path, until):
    network, graph = traced
    whole, *_ = run(network, graph)
    run(network, graph, until=until, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == min(until, 2)
    rest, *_ = run(network, graph, folder=tmp_path)
    assert [record.accuracy_recovered for record in rest.history.steps] == [record.accuracy_recovered for record in whole.history.steps]
    assert {name: units.tolist() for name, units in rest.kept.items()} == {name: units.tolist() for name, units in whole.kept.items()}
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], tensor)
    assert rest.history.layers == whole.history.layers
    assert rest.history.recoveries == whole.history.recoveries


def test_a_damaged_state_falls_back_to_the_one_before(traced, tmp_path, caplog):
    network, graph = traced
    run(network, graph, until=3, folder=tmp_path)
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-20])
    state = load_state(tmp_path, network, graph, Uniform(), Ledger())
    assert state.step == 2
    assert "trying the one before" in caplog.text
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert load_state(tmp_path, network, graph, Uniform(), Ledger()) is None


def test_a_search_out_of_time_ends_behind_its_step_and_saves_what_it_has(traced):
    network, graph = traced
    state, levels, recoveries, _ = run(network, graph, deadline=time.monotonic() - 1)
    assert state.history.stopped == "max_minutes"
    assert len(state.history.steps) == 1
    assert levels == [(1, None)]
    assert recoveries == [("recover step 1", 3)]


def test_what_rounding_owes_a_group_is_carried_to_the_next_step_and_through_a_kill(traced, tmp_path):
    network, graph = traced
    state, *_ = run(network, graph, until=3, folder=tmp_path)
    shares = graph.num_units / graph.num_channels
    gone = np.array([group.num_units - len(state.kept[group.name]) for group in graph.groups])
    np.testing.assert_allclose(state.carry, shares * gone.sum() - gone, atol=0.6)  # shares are those of the network as it is
    assert np.abs(state.carry).max() > 0
    again = load_state(tmp_path, network, graph, Uniform(), Ledger())
    np.testing.assert_array_equal(again.carry, state.carry)
    assert again.dense_accuracy == state.dense_accuracy


def test_a_step_that_earlier_ones_have_done_measures_one_candidate_and_asks_no_agent(traced):
    network, graph = traced
    schedule = schedule_of(graph, steps=4, period=2, save_at=[])
    goals = (schedule.goals[1], schedule.goals[1], *schedule.goals[2:])  # the second step finds its goal met
    settings, _ = environment(graph, goals)
    asked = []

    class Asked(Uniform):
        def decide(self, task, generator):
            asked.append(task.step)
            return super().decide(task, generator)

    state = run_search(
        start_state(network, graph, 0.5), agent=Asked(), environment=settings, schedule=replace(schedule, goals=goals), epochs=0,
        final_epochs=0, seed=0, recover=None, on_step=lambda state: None, on_level=lambda *_: None,
    )  # fmt: skip
    assert asked == [0, 2, 3]
    assert [record.candidates for record in state.history.steps] == [1, 1, 1, 1]
    assert [record.sparsity for record in state.history.steps] == pytest.approx([5 / 18, 5 / 18, 7 / 18, 0.5])


def test_max_drop_keeps_the_smallest_network_within_it(traced):
    network, graph = traced
    schedule = schedule_of(graph, steps=4, period=1, save_at=[], max_drop=5.0)
    settings, _ = environment(graph, schedule.goals)
    accuracies = iter([0.1, 0.89, 0.1, 0.47, 0.1, 0.4699])  # pruned, recovered; step by step; 0.52 - 0.05 is a little more than 0.47
    settings = replace(settings, measure=lambda network: next(accuracies))
    levels, rounds = [], []
    state = run_search(
        start_state(network, graph, 0.52), agent=Uniform(), environment=settings, schedule=schedule, epochs=1, final_epochs=3, seed=0,
        recover=lambda network, teacher, epochs, phase: rounds.append(epochs), on_step=lambda state: None,
        on_level=lambda state, level, before: levels.append((state.step, level)),
    )  # fmt: skip
    assert levels == [(1, None), (2, None)]
    assert rounds == [3, 3, 3]
    assert (state.step, state.history.stopped) == (3, "max_drop")


def test_a_candidate_is_refreshed_before_it_is_measured_and_again_when_carried_out(traced):
    network, graph = traced
    settings, _ = environment(graph, goals_of(graph, [6, 12]))
    calls = []
    settings = replace(
        settings, refresh=lambda network: calls.append("refresh"), prepare=lambda network: calls.append("prepare") or network
    )
    Task(settings, network, graph, 0).evaluate(np.ones(3))
    assert calls == ["refresh", "prepare"]


def test_a_ranking_removes_the_lowest_of_all_groups(traced):
    network, graph = traced
    settings, _ = environment(graph, goals_of(graph, [6, 12]))
    task = Task(settings, network, graph, 0)
    candidate = task.evaluate_ranking([np.arange(8) + 0.5, np.arange(4) * 10.0, np.full(6, 3.2)])
    np.testing.assert_array_equal(candidate.counts, [3, 1, 2])  # 0, 0.5, 1.5, 2.5, and two of 3.2
    np.testing.assert_allclose(candidate.action, np.array([3, 1, 2]) / 6)
    assert [scores.tolist() for scores in task.scores] == [list(range(8)), list(range(4)), list(range(6))]


def test_a_student_that_beats_its_teacher_takes_its_place(traced):
    network, graph = traced
    schedule = schedule_of(graph, steps=2, period=1, save_at=[])
    settings, _ = environment(graph, schedule.goals)
    accuracies = iter([0.5, 0.9, 0.5, 0.8])  # pruned, recovered; twice
    settings = Environment(lambda network: next(accuracies), *list(vars(settings).values())[1:])
    teachers = []
    state = start_state(network, graph, 0.6)
    run_search(
        state, agent=Uniform(), environment=settings, schedule=schedule, epochs=1, final_epochs=1, seed=0,
        recover=lambda network, teacher, epochs, phase: teachers.append(teacher),
        on_step=lambda state: None, on_level=lambda *_: None,
    )  # fmt: skip
    assert teachers[0] is network
    assert teachers[1] is state.teacher
    assert state.teacher_accuracy == 0.9
    assert sum(len(units) for units in state.teacher_kept.values()) > sum(len(units) for units in state.kept.values())


def search(network, graph, folder, *, at=None, signals=(), recover=lambda *_: None, deadline=None, steps=2):
    """A search of some steps by MCQ, kept in a folder; `signals` come while the candidate `at` is measured."""
    schedule = schedule_of(graph, steps=steps, period=1, save_at=[])
    settings, _ = environment(graph, schedule.goals)
    settings.ledger.deadline = deadline
    measured = []

    def measure(network):
        measured.append(len(measured))
        for number in signals if len(measured) == at else ():
            signal.raise_signal(number)
        return 0.5 + 0.001 * sum(parameter.numel() for parameter in network.parameters()) % 0.4

    settings = Environment(measure, *list(vars(settings).values())[1:])
    agent = MCQ(
        stages=3, sample_num=4, sample_steps=2, discount=0.9, noise_std=0.5, step_size=0.2, clip=0.2, epsilon=0.4, epsilon_decay="constant",
        epsilon_fraction=0.1, update_on_improvement=False, reset_drop=None, ranking=None,
    )  # fmt: skip
    state = load_state(folder, network, graph, agent, settings.ledger) or start_state(network, graph, 0.7)
    run_search(
        state, agent=agent, environment=settings, schedule=schedule, recover=recover, epochs=1, final_epochs=0,
        seed=0, on_step=lambda state: save_state(folder, state, agent), on_level=lambda *_: None,
        deciding=partial(keep_measured, folder / "measured.json", settings.ledger),
    )  # fmt: skip
    return state, measured


def facts(state):
    return [(row.accuracy_pruned, row.reward, row.candidates, row.repeated) for row in state.history.steps], state.history.layers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("twice", [False, True])
def test_an_interrupted_step_measures_nothing_twice(traced, tmp_path, number, twice):
    network, graph = traced
    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler)  # SIGTERM's own would end the tests
    try:
        whole, all_measured = search(network, graph, tmp_path / "whole")
        distinct = whole.history.steps[0].candidates
        assert distinct > 8
        with pytest.raises(KeyboardInterrupt):
            search(network, graph, tmp_path, at=5, signals=[number] * (1 + twice))
        assert len(json.loads((tmp_path / "measured.json").read_text())["accuracies"]) == 5 - twice
        with pytest.raises(KeyboardInterrupt):  # and again
            search(network, graph, tmp_path, at=2, signals=[number])
        assert len(json.loads((tmp_path / "measured.json").read_text())["accuracies"]) == 7 - twice
        rest, measured = search(network, graph, tmp_path)
        assert len(measured) == len(all_measured) - 7 + twice
        assert facts(rest) == facts(whole)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_recovery_that_is_cut_short_leaves_what_its_step_measured(traced, tmp_path):
    def cut(*arguments):
        raise KeyboardInterrupt

    network, graph = traced
    whole, _ = search(network, graph, tmp_path / "whole", steps=3)
    with pytest.raises(KeyboardInterrupt):
        search(network, graph, tmp_path, recover=cut, steps=3)
    rest, measured = search(network, graph, tmp_path, steps=3, deadline=time.monotonic() - 1)  # no time is needed for what is known
    assert rest.history.stopped == "max_minutes"
    assert facts(rest)[0] == facts(whole)[0][:1]
    assert measured == []


@pytest.mark.usefixtures("_heard")
@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda text: text[:-30], "is not valid JSON"),
        (lambda text: json.dumps(json.loads(text) | {"accuracies": ["0.5"]}), "something else than accuracies"),
        (lambda text: json.dumps(json.loads(text) | {"network": 1}), "another network"),
        (lambda text: json.dumps({}), "cannot be used"),
        (lambda text: json.dumps(json.loads(text) | {"step": 2, "accuracies": [0.0] * 9}), None),
    ],
)
def test_measurements_that_cannot_be_used_are_made_again(traced, tmp_path, caplog, change, warning):
    network, graph = traced
    whole, all_measured = search(network, graph, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        search(network, graph, tmp_path, at=5, signals=[signal.SIGINT] * 2)
    kept = tmp_path / "measured.json"
    kept.write_text(change(json.dumps(read_json(kept))))
    rest, measured = search(network, graph, tmp_path)
    assert (len(measured), facts(rest)) == (len(all_measured), facts(whole))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (warning is not None)
    assert all(warning in text for text in warnings)


def test_a_search_in_a_thread_and_on_a_full_disk_goes_on(traced, tmp_path, monkeypatch, caplog):
    network, graph = traced

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlprune.search.resume.write_sealed", full)
    found = []
    thread = threading.Thread(target=lambda: found.append(search(network, graph, tmp_path)))
    thread.start()
    thread.join()
    assert len(found[0][0].history.steps) == 2
    assert "what was measured cannot be saved" in caplog.text
