"""Where and how networks run: device, precision, memory format, compilation."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlprune.errors import UserError
from rlprune.training.team import Team


@dataclass(frozen=True)
class Way:
    """How training runs: autocast type (None: float32) and memory format."""

    dtype: torch.dtype | None
    memory_format: torch.memory_format

    def __str__(self) -> str:
        dtype = "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return f"{dtype}, {'channels_last' if self.memory_format is torch.channels_last else 'plain format'}"


@dataclass(frozen=True)
class Execution:
    """Where and how networks run.

    Args:
        device: of all tensors.
        dtype: autocast type of inference; None is float32.
        ways: of training, the first unless another one is measured to be faster.
        channels_last: memory format of inference: `auto`, `true` or `false`.
        compile: torch.compile for dense training.
        team: the processes that share every training batch; None: this one alone.
    """

    device: torch.device
    dtype: torch.dtype | None
    ways: tuple[Way, ...]
    channels_last: str
    compile: bool
    team: Team | None = None

    @property
    def training(self) -> Way:
        """How training runs."""
        return self.ways[0]

    def autocast(self, *, training: bool = False) -> AbstractContextManager[Any]:
        """The precision of a forward pass."""
        dtype = self.training.dtype if training else self.dtype
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def memory_format(self, model: nn.Module, *, training: bool) -> torch.memory_format:
        """channels_last for inference, if not refused; for training what was chosen."""
        if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            return torch.contiguous_format
        if training:
            return self.training.memory_format
        return torch.contiguous_format if self.channels_last == "false" else torch.channels_last


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: unknown; choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: unknown; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(
                f"device={name}: this machine has {count or 'no'} CUDA device{'s' * (count != 1)}; use device=auto or device=cpu"
            )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype | None:
    """`auto`, `fp32` or `bf16`; auto takes bfloat16 where the hardware is fast at it."""
    if name not in ("auto", "fp32", "bf16"):
        raise UserError(f"precision={name}: unknown; choose auto, fp32 or bf16")
    if name == "auto":
        name = "bf16" if _fast_bf16(device) else "fp32"
    return torch.bfloat16 if name == "bf16" else None


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_execution(*, device: str, precision: str, channels_last: str, compile: bool) -> Execution:  # noqa: A002
    """Everything above from the command line's words."""
    if channels_last not in ("auto", "true", "false"):
        raise UserError(f"channels_last={channels_last}: unknown; choose auto, true or false")
    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen)
    dtypes = [dtype, None] if precision == "auto" and dtype is not None else [dtype]
    formats = [torch.contiguous_format] if channels_last == "false" else [torch.channels_last]
    if channels_last == "auto":
        formats.append(torch.contiguous_format)
    ways = tuple(Way(dtype, memory_format) for memory_format in formats for dtype in dtypes)
    return Execution(chosen, dtype, ways, channels_last, compile)
