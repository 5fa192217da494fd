"""torch.export files (.pt2): torch's own graph of operators, for C++, AOTInductor and ExecuTorch.

To load one is to unpickle: `torch.export.load` is for files that one has written oneself.
"""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.export.capture import capture, quiet
from rlprune.files import write_atomically

METADATA = "rlprune.json"  # name of the extra file


def export_torch(network: nn.Module, example: Tensor, path: Path, *, dynamic_batch: bool, metadata: Mapping[str, str]) -> None:
    """Write a network as torch.export file, atomically. It is not compared with anything.

    Args:
        network: as it is in eval mode.
        example: images on its device, shape (n, C, H, W).
        path: of the file, .pt2.
        dynamic_batch: takes any number of images; otherwise as many as the example has.
        metadata: goes into the extra file `rlprune.json`.

    Raises:
        UserError: the network cannot be captured.
    """
    program = capture(network, example, dynamic_batch=dynamic_batch)

    def write(temporary: Path) -> None:
        buffer = io.BytesIO()  # to a file it would write the file's name, which is a temporary one
        with quiet():
            torch.export.save(program, buffer, extra_files={METADATA: json.dumps(dict(metadata))})
        temporary.write_bytes(buffer.getbuffer())

    write_atomically(path, write)


def open_torch(path: Path) -> Callable[[Tensor], Tensor]:
    """The network in a torch.export file that this process has written: images → scores.

    Raises:
        UserError: it cannot run on these images.
    """
    with quiet():
        network = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        try:
            with torch.no_grad(), quiet():
                scores: Tensor = network(images)
        except Exception as error:
            raise UserError(f"format=torch_export: cannot run it on {len(images)} images ({str(error).partition(chr(10))[0]})") from error
        return scores

    return run
