"""Where and how networks run: device, precision, memory format, compilation."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlprune.errors import UserError


@dataclass(frozen=True)
class Execution:
    """Device, autocast type (None: float32), memory format (`auto`, `true`, `false`) and whether dense training is compiled."""

    device: torch.device
    dtype: torch.dtype | None
    channels_last: str
    compile: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass."""
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def memory_format(self, model: nn.Module, *, training: bool) -> torch.memory_format:
        """channels_last, except where it is slower.

        On a CPU, training is up to twice slower in channels_last where channel counts are no multiples of 16
        (scripts/benchmarks/memory_format.py), so `auto` then takes the plain format. The rule looks at the widths, not at a clock, so that
        equal runs stay equal.
        """
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        odd = any(module.out_channels % 16 for module in convolutions)
        auto = not (training and odd and self.device.type == "cpu")
        wanted = auto if self.channels_last == "auto" else self.channels_last == "true"
        return torch.channels_last if wanted and convolutions else torch.contiguous_format


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


def choose_execution(*, device: str, precision: str, channels_last: str, compile: bool) -> Execution:  # noqa: A002 (the config key)
    """Everything above from the command line's words."""
    if channels_last not in ("auto", "true", "false"):
        raise UserError(f"channels_last={channels_last}: unknown; choose auto, true or false")
    chosen = choose_device(device)
    return Execution(chosen, choose_precision(precision, chosen), channels_last, compile)
