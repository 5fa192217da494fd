"""One call from a network to a file that was proved to do the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import torch
from torch import Tensor, nn

from rlprune.cost import count_params
from rlprune.errors import UserError
from rlprune.export.check import Check, compare
from rlprune.export.fold import fold_norms
from rlprune.export.onnx import check_opset, export_onnx, open_onnx
from rlprune.export.torch_export import export_torch, open_torch
from rlprune.files import write_atomically
from rlprune.graph.run import copy_module
from rlprune.skeleton import EXPORT_FORMATS

SUFFIXES = dict(zip(EXPORT_FORMATS, (".onnx", ".pt2"), strict=True))


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from torch.

    Args:
        path: of the file.
        format: onnx or torch_export.
        file_bytes: its size.
        params: of the network, after folding.
        folded: batch norms that are gone.
        check: how its scores compare.
    """

    path: Path
    format: str
    file_bytes: int
    params: int
    folded: int
    check: Check

    def __str__(self) -> str:
        check = self.check
        return (
            f"{check.images} images: scores differ from torch's by at most {check.difference:.1e} (the largest is {check.scale:.1f}), "
            f"the class is the same on {100 * check.agreement:.1f} %"
        )


def export_network(
    network: nn.Module,
    example: Tensor,
    path: str | Path,
    format: str = "onnx",  # noqa: A002 (as on the command line)
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    fold_bn: bool = False,
    images: Tensor | None = None,
    tolerance: float = 1e-4,
    metadata: Mapping[str, str] | None = None,
) -> Exported:
    """Write a network as it is in eval mode, in float32 and for the CPU, once its file was proved to return torch's scores.

    The file appears whole or not at all; one that is there stays where the new one is refused.

    Args:
        network: any that returns one tensor; it is not changed.
        example: images as it takes them, float, shape (n, C, H, W); their values do not matter.
        path: of the file; ends in .onnx or .pt2.
        format: onnx (needs `pip install 'rlprune[onnx]'`) or torch_export.
        opset: ONNX operator set; None for torch's default.
        dynamic_batch: takes any number of images; otherwise as many as the example has.
        fold_bn: batch norms are folded into the layers before them.
        images: what the two are compared on; None for noise.
        tolerance: largest difference between two scores, as a share of the largest score where that is above 1.
        metadata: text that the file carries along.

    Raises:
        UserError: the network cannot be exported, or its file returns other scores.
    """
    path = require_target(path, format, opset)
    network = copy_module(network).cpu().float().eval().requires_grad_(False)
    example, folds = example.cpu().float(), 0
    smaller = network
    if fold_bn:
        smaller, folds = fold_norms(network, _noise(example, len(example)))
    checks: list[Check] = []

    def write(temporary: Path) -> None:
        write_network(smaller, example, temporary, format, opset=opset, dynamic_batch=dynamic_batch, metadata=metadata or {})
        run = open_onnx(temporary) if format == "onnx" else open_torch(temporary)
        shown = _noise(example, 7) if images is None else images.cpu().float()
        checks.append(compare(run, network, shown, batch=None if dynamic_batch else len(example)))
        checks[0].require(tolerance, str(path))

    write_atomically(path, write)
    return Exported(path, format, path.stat().st_size, count_params(smaller), folds, checks[0])


def write_network(
    network: nn.Module,
    example: Tensor,
    path: Path,
    format: str,  # noqa: A002
    *,
    opset: int | None,
    dynamic_batch: bool,
    metadata: Mapping[str, str],
) -> None:
    """Write a network in one of the formats, as `export_onnx` and `export_torch` do; it is not compared with anything."""
    if format == "onnx":
        export_onnx(network, example, path, opset=opset, dynamic_batch=dynamic_batch, metadata=metadata)
    else:
        export_torch(network, example, path, dynamic_batch=dynamic_batch, metadata=metadata)


def require_target(path: str | Path, format: str, opset: int | None) -> Path:  # noqa: A002
    """The file that is to be written, where it can be.

    Raises:
        UserError: the format is unknown or lacks a package, the operator set is out of range, the path does not end as the format's do,
            or no file can be written there.
    """
    if format not in SUFFIXES:
        raise UserError(f"format={format}: unknown; choose one of {', '.join(SUFFIXES)}")
    if format == "onnx":
        check_opset(opset)
    elif opset is not None:
        raise UserError(f"opset={opset}: goes with format=onnx alone; leave it out")
    path = Path(path).expanduser()
    if path.suffix != SUFFIXES[format]:
        raise UserError(f"out={path}: must end in {SUFFIXES[format]}, as format={format} is written")
    if path.is_dir():
        raise UserError(f"out={path}: is a folder; name a file, out={path / f'pruned{path.suffix}'}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())  # the others are made when the file is written
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"out={path}: cannot be written, {folder}: {error.strerror}; name another file") from error
    return path


def file_bytes(
    network: nn.Module,
    example: Tensor,
    format: str,  # noqa: A002
    *,
    opset: int | None,
    dynamic_batch: bool,
    fold_bn: bool,
    metadata: Mapping[str, str],
    folder: Path,
) -> int:
    """Bytes of the file that a network would take, whatever its weights: measured with random ones, in a temporary file in `folder`.

    Raises:
        UserError: the network cannot be exported.
    """
    network = _with_random_values(network).cpu().float().eval().requires_grad_(False)
    if fold_bn:
        network, _ = fold_norms(network, _noise(example, len(example)))
    with TemporaryDirectory(prefix=".dense-", dir=folder) as name:
        path = Path(name) / f"dense{SUFFIXES[format]}"
        write_network(network, example, path, format, opset=opset, dynamic_batch=dynamic_batch, metadata=metadata)
        return path.stat().st_size


def _noise(example: Tensor, count: int) -> Tensor:
    """So many images of the example's shape, in which nothing is hidden as it would be in zeros."""
    return torch.randn(count, *example.shape[1:], generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _with_random_values(network: nn.Module) -> nn.Module:
    """A copy whose tensors all differ: exporters write equal ones, as those of fresh batch norms are, once."""
    network = copy_module(network)
    generator = torch.Generator().manual_seed(0)
    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network
