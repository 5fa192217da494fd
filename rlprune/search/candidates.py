"""Candidates of a pruning step: cut out of its network, made ready, and measured."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import nn

from rlprune.graph import ChannelGraph, Slicer

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Stage:
    """What the candidates of a pruning step are cut from; each object is another one."""

    network: nn.Module
    graph: ChannelGraph


@dataclass(frozen=True)
class Request:
    """A candidate to measure.

    `keep` are the units that stay, of every group, ascending; `among` names the group in which alone the requests around this one differ.
    """

    keep: Mapping[str, np.ndarray]
    among: str | None = None


class Workers(Protocol):
    """Processes that measure candidates: `rlprune.evaluators.scheduler.Scheduler` documents every member."""

    @property
    def power(self) -> float: ...  # noqa: D102

    def measure(self, stage: Stage, requests: Sequence[Request]) -> Iterator[float]: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


def as_it_is(network: nn.Module) -> nn.Module:
    """Nothing done to a network."""
    return network


class Cutter(Generic[Result]):
    """Cuts candidates out of one network and measures them, one after another.

    Args:
        stage: the network, and its channel graph.
        measure: of a network.
        refresh: what a candidate gets before it is looked at.
        prepare: makes of a candidate the network that is measured.
        multiple: what widths are padded to, see `Slicer`.
        alike: by names of tensors: measures networks that differ in these alone. None: as all others.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        measure: Callable[[nn.Module], Result],
        refresh: Callable[[nn.Module], object] = as_it_is,
        prepare: Callable[[nn.Module], nn.Module] = as_it_is,
        multiple: int | None = 1,
        alike: Callable[[Iterable[str]], Callable[[nn.Module], Result]] | None = None,
    ) -> None:
        self.stage, self.measure, self.refresh, self.prepare, self.alike = stage, measure, refresh, prepare, alike
        self._slicer = Slicer(stage.network, stage.graph, multiple=multiple)
        self._shared: tuple[bytes, Callable[[nn.Module], Result]] | None = None  # what tells those that share work, and measures them

    def __call__(self, request: Request) -> Result:
        """What a candidate is measured to be."""
        measure = self._measure_among(request) or self.measure
        network = self._slicer(request.keep)
        self.refresh(network)
        return measure(self.prepare(network))

    def _measure_among(self, request: Request) -> Callable[[nn.Module], Result] | None:
        """How candidates are measured that differ in one group alone, as long as they do."""
        if request.among is None or self.alike is None:
            return None
        key = digest_of(request.keep[other] for other in sorted(request.keep) if other != request.among) + request.among.encode()
        if self._shared is None or self._shared[0] != key:
            self._shared = None  # it may hold a lot of memory
            group = next(group for group in self.stage.graph.groups if group.name == request.among)
            self._shared = key, self.alike({member.tensor for member in group.members})
        return self._shared[1]


def digest_of(arrays: Iterable[np.ndarray]) -> bytes:
    """A short key for units of all groups."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(array.astype(np.int64).tobytes() + b"/")
    return digest.digest()
