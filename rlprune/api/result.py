"""What a call comes to: the small network, its report, and both on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from rlprune.cost import measure_latency
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import call
from rlprune.results.artefact import save_artefact
from rlprune.results.origin import Origin
from rlprune.results.tables import count, to_markdown


@dataclass(frozen=True)
class Row:
    """One network of the report; sparsity is a fraction, MACs are those of one example."""

    name: str
    metric: float  # on val_data
    test_metric: float | None  # on test_data, where there is some
    macs: int
    params: int
    sparsity: float
    latency_ms: float


@dataclass(frozen=True)
class Report:
    """What was measured.

    Args:
        rows: dense, trained for the same epochs where that was asked for, and each saved level before and after its recovery.
        examples: trained on, measured on, and tested on.
        steps: pruning steps.
        candidates: distinct ones that were measured.
        stopped: why the search ended early: `max_drop`, `max_minutes`, or nothing.
        targets: key → what was asked for and what the network reaches.
        seconds: by phase.
        epochs: of recovery, over all steps.
    """

    rows: tuple[Row, ...]
    examples: Mapping[str, int]
    steps: int
    candidates: int
    stopped: str
    targets: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    epochs: int

    @property
    def dense(self) -> Row:
        """The network that was handed in."""
        return self.rows[0]

    @property
    def pruned(self) -> Row:
        """The small network before its last recovery."""
        return next(row for row in reversed(self.rows) if row.name.startswith("pruned"))

    @property
    def recovered(self) -> Row:
        """The small network: `Result.network`."""
        return self.rows[-1]

    def __str__(self) -> str:
        with_test = self.dense.test_metric is not None
        table = []
        for row in self.rows:
            line = {"network": row.name, "val_data": f"{row.metric:.4f}", "Δ": f"{row.metric - self.dense.metric:+.4f}"}
            if row.test_metric is not None and self.dense.test_metric is not None:
                line |= {"test_data": f"{row.test_metric:.4f}", "Δ test": f"{row.test_metric - self.dense.test_metric:+.4f}"}
            line |= {
                "parameters": count(row.params),
                "MACs": count(row.macs),
                "FLOPs ratio %": f"{100 * (1 - row.macs / self.dense.macs):.1f}",
                "sparsity %": f"{100 * row.sparsity:.1f}",
                "latency ms": f"{row.latency_ms:.2f}",
            }
            table.append(line)
        seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in self.seconds.items())
        notes = [
            f"{self.steps} steps, {self.candidates} candidates, {self.epochs} epochs of recovery; {seconds}.",
            f"Metrics of {self.examples['val_data']} examples of val_data, by which the search has chosen: they flatter what is pruned.",
        ]
        if self.targets:
            asked = (f"{key} {target['asked']:g}, reached {target['reached']:.3f}" for key, target in self.targets.items())
            notes.append(f"Asked: {'; '.join(asked)}{' (latency as predicted)' if 'latency' in self.targets else ''}.")
        if with_test:
            notes.append(f"Those of {self.examples['test_data']} examples of test_data were measured once, at the end.")
        if self.stopped:
            notes.append(f"The search stopped early, at {self.stopped}.")
        return "\n".join([to_markdown(pd.DataFrame(table)), "", *notes])


@dataclass(frozen=True)
class Level:
    """A saved network before and after its recovery, and the units of the dense network that it keeps."""

    sparsity: float
    macs: int
    params: int
    recovered: bool
    before: nn.Module
    network: nn.Module
    keep: dict[str, np.ndarray]


@dataclass(frozen=True, repr=False)
class Result:
    """A small network and where it comes from.

    Args:
        network: recovered, in eval mode, on the device of the call.
        graph: the channel graph of the dense network: `rlprune.prune(model, graph, keep)` has the small one's layers.
        keep: units of each group that stay.
        report: what was measured.
        levels: further networks, by `schedule.save_at`; the last of them is `network`.
        architecture: name of the dense network's class.
        example: inputs of the dense network.
        facts: entries of a plan on disk.
        ignore: layers that were left alone as asked.
    """

    network: nn.Module
    graph: ChannelGraph
    keep: dict[str, np.ndarray]
    report: Report
    levels: Mapping[str, Level]
    architecture: str
    example: Any
    facts: Mapping[str, Any]
    ignore: list[str]

    def __repr__(self) -> str:
        return f"{self.architecture}, compressed:\n{self.report}"

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors) and plan: `rlprune.load(folder, model=MyNet())` makes the same network of them, bit for bit.

        Args:
            folder: it is made where it is not there.

        Raises:
            UserError: the network takes something else than one tensor of images (N, C, H, W), which is all that a plan describes.
        """
        if not takes_images(self.example):
            raise UserError(
                f"save: a plan describes networks of one tensor (N, C, H, W), and {self.architecture} takes something else; keep "
                "result.network.state_dict() and result.keep, and cut the network with rlprune.prune(model, result.graph, result.keep)"
            )
        level = self.levels["pruned"]
        channels, height, width = self.example.shape[1:]
        origin = Origin(
            model="custom",
            model_settings={"target": self.architecture},
            dataset="python",
            dataset_settings={},
            in_channels=channels,
            image_size=(height, width),
            class_names=("unknown",),
            mean=(0.0,) * channels,  # images come as the user's data has them
            std=(1.0,) * channels,
        )
        size = {"sparsity": level.sparsity, "macs": level.macs, "params": level.params}
        save_artefact(
            Path(folder),
            before=level.before,
            after=self.network,
            origin=origin,
            keep=self.keep,
            ignore=self.ignore,
            facts={**size, **self.facts},
        )


def takes_images(example: Any) -> bool:
    """Whether a network's inputs are one tensor (N, C, H, W)."""
    return isinstance(example, Tensor) and example.ndim == 4


class _Called(nn.Module):
    """A network that ignores what it is called with, and takes its own inputs."""

    def __init__(self, network: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, example: Tensor) -> Any:
        return call(self.network, self.inputs)


def latency_ms(network: nn.Module, inputs: Any) -> float:
    """Median milliseconds of one forward pass on these inputs."""
    return 1000 * measure_latency(_Called(network, inputs).eval(), next(iter(tensors_in(inputs))))
