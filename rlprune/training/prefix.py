"""What networks that differ in one channel group compute alike, everything before the first layer of that group, computed once.

Nothing is asked of how a network's forward is written. One pass notes every torch call up to the first that takes a tensor of the group,
and keeps the results that are needed from there on. In the passes of the other networks those calls are compared with the notes and not
executed: the kept results are handed out, and tensors without values (device meta) in place of all others. What does not go as noted, or
needs such an empty tensor, ends the reuse, and networks are measured plainly.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from rlprune.graph.run import named_tensors
from rlprune.training.replay import Notes, Plan, Recording, Replay, Run, UnlikeError

MAX_BYTES = 2**30
FEW = 2  # images on which a network's calls are learned


class Prefix:
    """The shared part of the networks that are measured with it. The first one is recorded, the others reuse what it left.

    All of them must have the same values in all tensors but those of the group; that is checked for those that the shared part uses. Hooks
    on the shared part see empty tensors. Drop it before the next group's is made, as it holds up to `max_bytes` on the device.

    Args:
        tensors: qualified names of the parameters and buffers that the group owns entries of.
        max_bytes: of kept results; networks that need more are measured plainly.
    """

    def __init__(self, tensors: Iterable[str], *, max_bytes: int = MAX_BYTES) -> None:
        self.group, self.max_bytes = frozenset(tensors), max_bytes
        self.reason = ""  # why networks are measured plainly; empty as long as they need not be
        self._forget()

    @property
    def skipped(self) -> int:
        """Torch calls of a pass that are noted, and not executed again."""
        return len(self._plan.functions) if self._plan is not None else 0

    def give_up(self, reason: str) -> None:
        """Drop what is kept, for good."""
        self._forget()
        self.reason = reason

    def logits(self, model: nn.Module, run: Run, batches: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels, batch after batch; in no_grad and outside of inference mode, where writes to tensors are not counted.

        Args:
            model: as it is measured, in eval mode.
            run: the model on a batch of images.
            batches: images and labels. Another object is another data set, for which the network is recorded.

        Raises:
            UnlikeError: nothing can be shared. So may anything that the network's own code raises.
        """
        tensors = dict(named_tensors(dict(model.named_modules())))
        if self._batches is not batches:
            self._forget()
            self._learn(run, batches, tensors)
        different = [name for name, values in self._values.items() if name not in tensors or not _same(tensors[name], values)]
        if different:
            raise UnlikeError(f"{different[0]} is another one than in the recorded network")
        for index, (images, labels) in enumerate(batches):
            if index < len(self._notes):
                yield Replay(self._notes[index], images, tensors).logits(run), labels
            else:
                recording = Recording(images, tensors, self.group, self._plan)
                logits = recording.logits(run)
                self._notes.append(recording.notes())
                yield logits, labels

    def _forget(self) -> None:
        self._batches: Sequence[object] | None = None
        self._plan: Plan | None = None
        self._values: dict[str, Tensor] = {}  # of the network's tensors that the shared part uses
        self._notes: list[Notes] = []  # of each batch

    def _learn(self, run: Run, batches: Sequence[tuple[Tensor, Tensor]], tensors: dict[str, Tensor]) -> None:
        """Find what is shared, and what of it must be kept."""
        images = batches[0][0][:FEW]
        recording = Recording(images, tensors, self.group)
        if not torch.equal(recording.logits(run), run(images)):  # torch's attention, for one, computes otherwise when it is watched
            raise UnlikeError("the network computes something else when its calls are watched")
        if not any(tensors[name].ndim > 1 for name in recording.named):
            raise UnlikeError("no layer comes before the group")
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in recording.needed.values()}
        if sum(storages.values()) / len(images) * sum(len(images) for images, _ in batches) > self.max_bytes:
            raise UnlikeError(f"more than {self.max_bytes} bytes would have to be kept")
        self._batches, self._plan = batches, recording.plan()
        self._values = {name: tensors[name].clone() for name in recording.named}


def _same(one: Tensor, other: Tensor) -> bool:
    """The same values in the same layout, which kernels ask for too."""
    alike = one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)
