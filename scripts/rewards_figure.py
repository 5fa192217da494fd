"""The best policy's reward by epoch of joint training, runs beside each other: RLAL's Figure 2.

usage: python scripts/rewards_figure.py OUT.png KEY RUN [RUN ...]     KEY is the setting that tells the runs apart, such as agent.episodes

A panel for every model and share of the MACs; the reward is that of the best policy so far, on the weights of the epoch.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from rlprune.errors import UserError
from rlprune.files import write_atomically
from rlprune.results.plots import COLOURS

STYLES = ("-", "--", ":", "-.")


def curve(folder: Path, key: str) -> tuple[str, str, pd.Series]:
    """A run's panel, its label there, and the reward of every epoch."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        metrics = pd.read_csv(folder / "metrics.csv", index_col="step")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: is no run with a metrics.csv ({error})") from error
    if "train_loss" not in metrics:
        raise UserError(f"{folder}: is no run of joint training, agent=rlal")
    config = yaml.safe_load(text)
    value: Any = config
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            raise UserError(f"{folder}: its config.yaml has no {key}")
        value = value[name]
    if isinstance(value, dict):
        raise UserError(f"{key}: is a group of settings; name one of them: {', '.join(f'{key}.{name}' for name in value)}")
    model = next((word.partition("=")[2] for word in text.partition("\n")[0].split() if word.startswith("model=")), "model")
    macs = config["budget"]["macs"]
    panel = f"{model}, {100 * (1 - macs):.0f} % of the MACs pruned" if macs else f"{model}, sparsity {config['schedule']['sparsity']}"
    return panel, f"{key.rpartition('.')[2]}: {str(value).lower()}", metrics["reward"]


def draw(path: Path, key: str, folders: list[Path]) -> None:
    """Write the figure.

    Args:
        path: of the picture.
        key: setting that tells runs apart.
        folders: of the runs.
    """
    panels: dict[str, list[tuple[str, pd.Series]]] = {}
    for folder in folders:
        panel, label, rewards = curve(folder, key)
        panels.setdefault(panel, []).append((label, rewards))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (panel, curves) in zip(all_axes, panels.items(), strict=False):
        for number, (label, rewards) in enumerate(curves):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
            axes.plot(rewards.index, rewards, style, color=colour, label=label)
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_ylabel("reward of the best policy")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        draw(Path(sys.argv[1]), sys.argv[2], [Path(word) for word in sys.argv[3:]])
    except UserError as error:
        sys.exit(str(error))
