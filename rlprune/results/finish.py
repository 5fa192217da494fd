"""How a run ends: the test split is read, the table printed, plots and result.json written."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from torch import nn
from tqdm import tqdm

from rlprune.cost import count_params
from rlprune.files import write_text
from rlprune.results.final_test import final_test, latency_ms
from rlprune.results.plots import Bar, plot_accuracy, plot_channels, plot_episodes, plot_layers, plot_training
from rlprune.results.record import FORMAT, Clock, History, Identity, Row, environment, write_result
from rlprune.results.tables import run_table, to_markdown
from rlprune.setup import Setup
from rlprune.training.dense import Dense
from rlprune.training.evaluate import Evaluator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tested:
    """A network of the last table, before it is tested; level and sparsity are fractions."""

    name: str
    network: nn.Module
    level: float
    sparsity: float
    macs: int


def measure_rows(networks: Sequence[Tested], setup: Setup, evaluator: Evaluator) -> list[Row]:
    """Measure every network: on the test split, on the search split, and its latency."""
    for tested in networks:
        tested.network.to(setup.execution.device)
    measured = final_test({tested.name: tested.network for tested in networks}, setup)
    return [
        Row(
            name=tested.name,
            level=tested.level,
            top1=measured[tested.name].top1,
            standard_error=measured[tested.name].standard_error,
            n=measured[tested.name].n,
            top5=measured[tested.name].top5 if len(setup.origin.class_names) > 10 else None,
            search_top1=evaluator.accuracy(tested.network).top1,
            params=count_params(tested.network),
            macs=tested.macs,
            sparsity=tested.sparsity,
            latency_ms=latency_ms(tested.network, setup.origin.shape, setup.execution),
        )
        for tested in tqdm(networks, desc="search split, latency", unit="network", leave=False)
    ]


def finish(
    networks: Sequence[Tested],
    *,
    history: History | None,
    dense: Dense | None,
    evaluator: Evaluator,
    setup: Setup,
    clock: Clock,
    job: Identity,
    facts: dict[str, Any] | None = None,
) -> list[Row]:
    """Test the networks, the first of which is what the others are compared with; write everything, result.json last; returns the table.

    Args:
        networks: rows of the table.
        history: of the search, if there was one.
        dense: the dense network, if there is one.
        evaluator: of the search split.
        setup: data and device.
        clock: seconds so far.
        job: whose result this is.
        facts: further entries of result.json.
    """
    with clock.phase("test"):
        rows = measure_rows(networks, setup, evaluator)
    if history is not None:
        with clock.phase("plots"):
            plot = plot_accuracy if history.steps[0].train_loss is None else plot_training
            plot(job.run_dir / "accuracy.png", history.steps, rows)
            plot_layers(job.run_dir / "layers.png", history.layers)
            plot_channels(job.run_dir / "channels.png", smallest_saved(history))
            if history.episodes:
                plot_episodes(job.run_dir / "episodes.png", history.episodes)
    table = run_table(rows)
    write_text(job.run_dir / "table.md", to_markdown(table) + "\n")
    write_text(job.run_dir / "table.csv", table.to_csv(index=False))
    splits = setup.splits
    result = {
        "format": FORMAT,
        "command": job.command,
        "choices": job.choices,
        "seed": job.seed,
        "dense_seed": setup.dense_seed,
        "model_settings": setup.origin.model_settings,
        "dataset_settings": setup.origin.dataset_settings,
        "rows": [asdict(row) for row in rows],
        "splits": {"train": len(splits.train), "search": len(splits.search), "search_used": len(evaluator), "test": rows[0].n},
        **_past(history, dense),
        **(facts or {}),
        "training": str(setup.execution.training),
        "seconds": clock.seconds,
        **environment(setup.execution.device),
    }
    (job.run_dir / "failed.json").unlink(missing_ok=True)  # of an earlier attempt
    write_result(job.run_dir, result)
    _print(table, rows, history, dense, job)
    return rows


def smallest_saved(history: History) -> dict[str, list[Bar]]:
    """What the network in `pruned` kept of every group, as a panel; where a bound on the drop ended the search, it is not the last one."""
    sparsity = next(level["sparsity"] for level in history.levels if level["folder"] == "pruned")
    step = next(record.step for record in reversed(history.steps) if record.sparsity == sparsity)
    dense, kept = ({row["group"]: row["units"] for row in history.layers if row["step"] == wanted} for wanted in (0, step))
    return {f"{100 * sparsity:.0f} % of the channels removed": [(name, kept[name], units - kept[name]) for name, units in dense.items()]}


def _past(history: History | None, dense: Dense | None) -> dict[str, Any]:
    past: dict[str, Any] = {}
    if history is not None:
        past["search"] = {
            "candidates": history.candidates,
            "repeated": history.repeated,
            "stopped": history.stopped,
            "steps": len(history.steps),
            "recovery_epochs": sum(epochs for _, epochs in history.recoveries),
        }
    if dense is not None:
        past |= {"dense": dense.path, "search_split_seen": dense.search_split_seen, "losses": dense.losses}
    return past


def _print(table: pd.DataFrame, rows: Sequence[Row], history: History | None, dense: Dense | None, job: Identity) -> None:
    print(f"\n{to_markdown(table)}\n")
    if dense is not None and dense.search_split_seen == "unknown":
        gap = 100 * (rows[0].search_top1 - rows[0].top1)
        log.warning(
            "these weights may have been trained on the search split: there they are %+.2f points better than on the test split", gap
        )
    names = ["table.md", "result.json"]
    if history is not None:
        if history.stopped:
            why = {"max_minutes": "schedule.max_minutes is over", "max_drop": "it loses more than budget.max_drop"}[history.stopped]
            log.warning("the search stopped behind step %d, as %s; the table shows what it reached", len(history.steps), why)
        plots = ["accuracy.png", "layers.png", "channels.png"]
        names = [*(f"{level['folder']}/" for level in history.levels), "metrics.csv", "layers.csv", *plots, *names]
        names[-2:-2] = ["episodes.csv", "episodes.png"] if history.episodes else []
    log.info("wrote to %s: %s", job.run_dir, "  ".join(names))
