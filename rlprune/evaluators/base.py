"""What measures candidates, and what goes to and fro between a search and its workers.

A worker gets the images, the calibration and the settings once (`Kit`), the network of a pruning step once a step (`Stage`), and of every
candidate the units that stay, a bit each (`Job`); it answers with numbers of correct images. So a result does not depend on who has
measured it, nor on how many did.
"""

import io
import json
import pickle
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from rlprune.data.files import ImageFiles
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.search.candidates import Cutter, Request, Stage, Workers
from rlprune.training.evaluate import Accuracy, Evaluator
from rlprune.training.prefix import Prefix


@dataclass(frozen=True)
class Kit:
    """All that a worker needs besides networks.

    Args:
        evaluator: of the search split.
        refresh: what a candidate gets before it is looked at.
        prepare: makes of a candidate the network that is measured.
        multiple: what widths are padded to, see `Slicer`.
        alike: candidates that differ in one group share what comes before it.
    """

    evaluator: Evaluator
    refresh: Callable[[nn.Module], object]
    prepare: Callable[[nn.Module], nn.Module]
    multiple: int | None
    alike: bool


class CandidateEvaluator(Protocol):
    """Who measures candidates. Its numbers are set in its yaml."""

    def start(self, kit: Kit) -> Workers | None:
        """Processes that do; None: this one does.

        Raises:
            UserError: they cannot be had.
        """
        ...


# -- one candidate, there and back -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A candidate, or a part of its images.

    `number` tells it from all others; `batches` are the first and the one behind the last that it is measured on.
    """

    number: int
    request: Request
    batches: tuple[int, int]

    def packed(self, graph: ChannelGraph) -> bytes:
        """As a line of JSON, and a bit for every unit behind it."""
        masks = []
        for group in graph.groups:
            mask = np.zeros(group.num_units, dtype=bool)
            mask[self.request.keep[group.name]] = True
            masks.append(mask)
        bits = np.packbits(np.concatenate(masks)).tobytes()
        head = {"job": self.number, "among": self.request.among, "batches": self.batches, "crc": zlib.crc32(bits)}
        return json.dumps(head).encode() + b"\n" + bits

    @staticmethod
    def unpacked(message: bytes, graph: ChannelGraph) -> "Job":
        """The reverse.

        Raises:
            ValueError: it was damaged on its way, or belongs to another network.
        """
        line, _, bits = message.partition(b"\n")
        head = json.loads(line)
        total = int(graph.num_units.sum())
        if zlib.crc32(bits) != head["crc"] or len(bits) != -(-total // 8):
            raise ValueError("a candidate was damaged on its way")
        masks = np.split(np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=total), np.cumsum(graph.num_units)[:-1])
        keep = {group.name: np.flatnonzero(mask) for group, mask in zip(graph.groups, masks, strict=True)}
        return Job(head["job"], Request(keep, head["among"]), (head["batches"][0], head["batches"][1]))


class Answer(NamedTuple):
    """What a worker says of a job."""

    number: int
    correct: int
    images: int
    seconds: float  # that it took


def read_answer(message: bytes, job: Job, images: int) -> Answer:
    """What is in an answer.

    Args:
        message: as it came.
        job: that was asked.
        images: that it is measured on.

    Raises:
        ValueError: it is none, or none to this job.
        UserError: the worker has met something that the user can mend.
        RuntimeError: the network, or a plug-in, has failed there as it would have here.
    """
    try:
        said = json.loads(message)
        number, error = said["job"], said.get("error")
        if number not in (job.number, None):
            raise ValueError("it belongs to another job")
        if error is None:
            answer = Answer(number, said["correct"], said["images"], said["seconds"])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as problem:
        raise ValueError(f"it is no answer ({type(problem).__name__})") from problem
    if error is not None:
        raise (UserError if said.get("mendable") is True else RuntimeError)(str(error))
    right = all(type(value) is int for value in answer[:3]) and type(answer.seconds) is float
    if not right or answer.images != images or not 0 <= answer.correct <= images:
        raise ValueError(f"it counts {answer.correct} of {answer.images} images, of {images} that were asked for")
    return answer


class Measuring:
    """What a worker does.

    Args:
        kit: made by `dumps`.
    """

    def __init__(self, kit: bytes | memoryview) -> None:
        self.kit: Kit = received(kit)
        if isinstance(self.kit.evaluator.images, ImageFiles):  # workers do not start others that decode
            self.kit.evaluator.images = replace(self.kit.evaluator.images, workers=0)
        self._cutter: Cutter[Accuracy] | None = None
        self._batches = (0, 0)
        self._parts: dict[tuple[int, int], Evaluator] = {}

    def begin(self, stage: bytes | memoryview) -> None:
        """Cut candidates out of another network from now on; what `dumps` has made of a `Stage`."""
        kit = self.kit
        self._cutter = Cutter(
            received(stage),
            measure=lambda network: self._evaluator.accuracy(network),
            refresh=kit.refresh,
            prepare=kit.prepare,
            multiple=kit.multiple,
            alike=self._alike if kit.alike else None,
        )

    def answer(self, message: bytes) -> bytes:
        """To a packed job; what fails is an answer, too."""
        number = None
        try:
            if self._cutter is None:
                raise ValueError("there is no network to cut candidates from")
            job = Job.unpacked(message, self._cutter.stage.graph)
            number, self._batches = job.number, job.batches
            started = time.perf_counter()
            found = self._cutter(job.request)
            seconds = time.perf_counter() - started
            return json.dumps({"job": number, "correct": found.correct, "images": found.n, "seconds": seconds}).encode()
        except Exception as error:  # the network's own code may raise anything
            return failed(number, error)

    @property
    def _evaluator(self) -> Evaluator:
        """Of the batches that are asked for."""
        if self._batches not in self._parts:
            self._parts[self._batches] = self.kit.evaluator.part(*self._batches)
        return self._parts[self._batches]

    def _alike(self, tensors: Iterable[str]) -> Callable[[nn.Module], Accuracy]:
        prefix = Prefix(tensors)
        return lambda network: self._evaluator.accuracy(network, prefix)


def failed(number: int | None, error: Exception) -> bytes:
    """The answer to a job that cannot be done."""
    mendable = isinstance(error, UserError)
    words = str(error) if mendable else f"{type(error).__name__}: {error}"
    return json.dumps({"job": number, "error": words, "mendable": mendable}).encode()


# -- objects between processes of one program ------------------------------------------------------------------------------------------


def dumps(value: Any) -> bytes:
    """An object as bytes, for another process of this run alone; tensors and devices of a GPU arrive on the GPU of whoever loads them.

    Raises:
        TypeError, AttributeError, pickle.PicklingError: something in it cannot be sent.
    """
    stream = io.BytesIO()
    _Sender(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


class _Sender(cloudpickle.Pickler):
    def reducer_override(self, part: Any) -> Any:
        if isinstance(part, torch.device) and part.type == "cuda":
            return torch.device, ("cuda",)
        if isinstance(part, Tensor) and part.is_cuda:
            return _on_gpu, (part.detach().cpu(), isinstance(part, nn.Parameter), part.requires_grad)
        return super().reducer_override(part)


def received(message: bytes | memoryview) -> Any:
    """What `dumps` was given, in the process that this run has started."""
    return pickle.loads(message)


def _on_gpu(values: Tensor, is_parameter: bool, requires_grad: bool) -> Tensor:
    moved = values.to("cuda")
    return nn.Parameter(moved, requires_grad) if is_parameter else moved.requires_grad_(requires_grad)


def sendable(name: str, value: Any) -> bytes:
    """The same, with what to do where it cannot be sent.

    Raises:
        UserError: it cannot.
    """
    try:
        return dumps(value)
    except (TypeError, AttributeError, pickle.PicklingError, RecursionError) as error:
        raise UserError(
            f"evaluator: the {name} cannot be sent to another process ({' '.join(str(error).split())[:200]}); "
            "use evaluator=local evaluator.workers=null"
        ) from error


def stage_bytes(stage: Stage) -> bytes:
    """A pruning step's network and graph for the workers."""
    return sendable("network", stage)
