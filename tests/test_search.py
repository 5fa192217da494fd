import contextlib
import time

import nets
import numpy as np
import pytest
import torch

import rlprune
from rlprune.agents.uniform import Uniform
from rlprune.search.resume import load_state, save_state
from rlprune.search.runner import run_search, start_state
from rlprune.search.schedule import make_schedule
from rlprune.search.task import DenseCost, Environment, Ledger, Task

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def environment(graph, targets, **ledger):
    scored = []

    def score(network, graph):
        scored.append(network)
        return {group.name: torch.arange(group.num_units, dtype=torch.float64) for group in graph.groups}

    def measure(network):
        return 0.5 + 0.001 * sum(parameter.numel() for parameter in network.parameters()) % 0.4

    dense = DenseCost(graph.macs({}), graph.params({}), graph.num_channels)
    reward = lambda accuracy, flops_ratio, params_ratio: accuracy + flops_ratio + 10 * params_ratio  # noqa: E731
    return Environment(measure, reward, score, dense, tuple(targets), 1, Ledger(**ledger)), scored


@pytest.fixture
def traced():
    network = nets.randomised(nets.Concat()).eval()
    return network, rlprune.trace(network, EXAMPLE)  # groups of 8, 4 and 6 channels


def test_a_candidate_is_measured_once_and_scores_are_computed_once(traced):
    network, graph = traced
    settings, scored = environment(graph, [6, 12])
    seen = []
    settings.ledger.on_measure = seen.append
    task = Task(settings, network, graph, 0)
    first = task.evaluate(np.array([0.5, 0.25, 0.25]))
    again = task.evaluate(np.array([0.51, 0.24, 0.25]))
    task.evaluate(np.array([0.0, 0.0, 1.0]))
    assert (settings.ledger.distinct, settings.ledger.repeated, len(seen), len(scored)) == (2, 1, 2, 1)
    assert again.accuracy == first.accuracy
    np.testing.assert_array_equal(again.action, [0.51, 0.24, 0.25])
    assert {name: units.tolist() for name, units in first.keep.items()} == {"stem": [3, 4, 5, 6, 7], "a": [1, 2, 3], "b": [2, 3, 4, 5]}
    assert first.counts @ graph.channels_per_unit == 6


def test_what_is_measured_is_the_pruned_network(traced):
    network, graph = traced
    settings, _ = environment(graph, [6])
    candidate = Task(settings, network, graph, 0).evaluate(np.array([1.0, 0.0, 0.0]))
    pruned = rlprune.prune(network, graph, candidate.keep)
    assert candidate.accuracy == settings.measure(pruned)
    assert candidate.params == sum(parameter.numel() for parameter in pruned.parameters())
    assert candidate.reward == pytest.approx(
        candidate.accuracy + 1 - candidate.macs / graph.macs({}) + 10 * (1 - candidate.params / graph.params({}))
    )


def test_the_successor_is_a_state_of_its_own(traced):
    network, graph = traced
    settings, scored = environment(graph, [6, 10])
    task = Task(settings, network, graph, 0)
    following = task.after(task.evaluate(np.array([1.0, 0.0, 0.0])))
    assert (following.step, following.budget) == (1, 4)
    following.evaluate(np.array([0.0, 1.0, 1.0]))
    assert len(scored) == 2
    assert following.after(following.evaluate(np.array([1.0, 0.0, 0.0]))) is None
    assert following.capacity.tolist() == [1, 3, 5]
    np.testing.assert_allclose(following.channel_shares.sum(), 1)


def test_bounds_end_a_step(traced):
    network, graph = traced
    settings, _ = environment(graph, [6], max_candidates=2)
    task = Task(settings, network, graph, 0)
    assert not task.exhausted
    for share in (0.0, 1.0):
        task.evaluate(np.array([share, 1.0, 1.0]))
    assert task.exhausted
    settings.ledger.step_start = 2
    assert not task.exhausted
    settings.ledger.deadline = time.monotonic() - 1
    assert task.exhausted


class CutError(Exception):
    """A run ends here."""


def run(network, graph, *, until=None, state=None, folder=None, targets_steps=4, deadline=None):
    schedule = make_schedule(sparsity=0.5, steps=targets_steps, period=2, save_at=[0.25], channels=graph.num_channels, removable=15)
    settings, _ = environment(graph, schedule.targets)
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
    assert [record.sparsity for record in state.history.steps] == pytest.approx([2 / 18, 4 / 18, 7 / 18, 0.5])
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
    assert levels == [(1, pytest.approx(2 / 9 * 0.5, abs=1e-3))]
    assert recoveries == [("recover step 1", 3)]


def test_a_student_that_beats_its_teacher_takes_its_place(traced):
    network, graph = traced
    schedule = make_schedule(sparsity=0.5, steps=2, period=1, save_at=[], channels=graph.num_channels, removable=15)
    settings, _ = environment(graph, schedule.targets)
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
