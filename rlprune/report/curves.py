"""How searches and trainings went, drawn: rewards and losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rlprune.report.collect import Run, is_number
from rlprune.report.figures import Style, grid_of


def rewards_figure(runs: Mapping[str, Sequence[Run]], style: Style, width: float) -> Any:
    """Reward on the search split: by episode where an agent plays some (best so far as a line), else by step; a panel an agent."""
    shown = {name: [curve for run in members if (curve := reward_curve(run)) is not None] for name, members in runs.items()}
    shown = {name: curves for name, curves in shown.items() if curves}
    figure, axes = grid_of(width, list(shown))
    for axis, (name, curves) in zip(axes, shown.items(), strict=True):
        for number, (kind, rewards, best) in enumerate(curves):
            colour = style.colour(name)
            if best is not None:
                axis.plot(rewards.index, rewards, ".", markersize=2, color="0.7", zorder=1, label="one episode" if number == 0 else None)
                axis.plot(best.index, best, "-", linewidth=1, color=colour, zorder=2, label="best so far" if number == 0 else None)
            else:
                axis.plot(rewards.index, rewards, f"{style.marker(name)}-", markersize=4, linewidth=1, color=colour)
            axis.set_xlabel(kind, fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if curves[0][2] is not None:
            axis.legend(framealpha=0.7, edgecolor="none", fontsize=7)
    figure.supylabel("reward (search split)", fontsize=9)
    return figure


def reward_curve(run: Run) -> tuple[str, pd.Series, pd.Series | None] | None:
    """What the x axis counts, the rewards, and the best so far; None where a run has none yet, or one step alone."""
    episodes, metrics = run.table("episodes.csv"), run.table("metrics.csv")
    if {"reward", "best"} <= set(episodes) and len(episodes) > 1:
        index = range(1, len(episodes) + 1)
        return "episode", pd.Series(episodes["reward"].to_numpy(), index), pd.Series(episodes["best"].to_numpy(), index)
    if {"step", "reward"} <= set(metrics) and len(metrics) > 1:
        return "pruning step", metrics.set_index("step")["reward"], None
    return None


LOSSES = ("critic_loss", "actor_loss", "decoder_loss", "policy_loss", "loss")


def loss_curves(run: Run) -> dict[str, pd.Series]:
    """Losses of an agent by episode, of joint training by epoch, of the dense network's training by epoch."""
    found = {}
    episodes, metrics = run.table("episodes.csv"), run.table("metrics.csv")
    for name in LOSSES:
        if name in episodes and episodes[name].notna().sum() > 1:
            found[f"{name.replace('_', ' ')} by episode"] = pd.Series(episodes[name].to_numpy(), range(1, len(episodes) + 1)).dropna()
    losses = run.result.get("losses")
    if "train_loss" in metrics and len(metrics) > 1:
        found["training loss by epoch"] = metrics.set_index("step")["train_loss"]
    elif isinstance(losses, list) and len(losses) > 1 and all(map(is_number, losses)):
        found["dense training loss by epoch"] = pd.Series(losses, range(1, len(losses) + 1), dtype=float)
    return found


def losses_figure(runs: Mapping[str, Sequence[Run]], style: Style, width: float) -> Any:
    """Losses by agent: a panel for each, a line for every seed."""
    panels = loss_panels(runs)
    words = [kind.partition(" by ") for _, kind in panels]
    figure, axes = grid_of(width, [f"{name}: {what}" if name else what for (name, _), (what, _, _) in zip(panels, words, strict=True)])
    for axis, (name, _), (_, _, unit), curves in zip(axes, panels, words, panels.values(), strict=True):
        for curve in curves:
            axis.plot(curve.index, curve, "-", linewidth=0.8, alpha=0.8, color=style.colour(name) if name in style.places else "0.2")
        positive = all((curve > 0).all() for curve in curves)
        axis.set_yscale(
            "log" if positive and max(curve.max() for curve in curves) > 30 * min(curve.min() for curve in curves) else "linear"
        )
        axis.set_xlabel(unit, fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.supylabel("loss", fontsize=9)
    return figure


def loss_panels(runs: Mapping[str, Sequence[Run]]) -> dict[tuple[str, str], list[pd.Series]]:
    """Curves by (agent, kind); a dense network that several runs share is drawn once, for no agent."""
    panels: dict[tuple[str, str], list[pd.Series]] = {}
    seen = set()
    for name, members in runs.items():
        for run in members:
            for kind, curve in loss_curves(run).items():
                dense = kind.startswith("dense")
                if dense and (tuple(curve) in seen or seen.add(tuple(curve))):  # type: ignore[func-returns-value]
                    continue
                panels.setdefault(("" if dense else name, kind), []).append(curve)
    return panels
