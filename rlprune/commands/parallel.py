"""Runs beside others on one machine: each has a GPU of its own, and threads for no more cores than there are."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from rlprune.places import cores, gpus, one_of, places, taken

log = logging.getLogger(__name__)


def register_places() -> None:
    """Let the yaml of a launcher ask how many runs this machine takes at once."""
    OmegaConf.register_new_resolver("places", places, replace=True)


@contextmanager
def a_place_for(config: Any) -> Iterator[None]:
    """Hold what a run needs for itself while it works; `config.device` then names its GPU."""
    launcher = _launcher()
    with ExitStack() as held:
        if launcher.get("_target_", "").endswith("submitit_launcher.LocalLauncher"):  # it starts all jobs at once
            held.enter_context(_some_cores(launcher.get("cpus_per_task")))
        shared = launcher.get("_target_", "").endswith((".OneBoxLauncher", ".JoblibLauncher", ".LocalLauncher"))
        device = "free" if shared and config.device == "auto" else config.device
        if device == "auto" or device == "free" or device.startswith("cuda"):
            config.device = held.enter_context(_a_gpu(device))
        yield


def _launcher() -> dict[str, Any]:
    """What starts the jobs of this sweep; nothing where there is one run."""
    config = HydraConfig.get()
    return dict(config.launcher) if config.mode == RunMode.MULTIRUN else {}


@contextmanager
def _some_cores(wanted: int | None) -> Iterator[None]:
    """Wait until as many cores are free as the run has threads."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads = wanted or (int(told) if told.isdecimal() and int(told) else 1)
    names = [f"cores-{threads}-{number}" for number in range(max(1, cores() // threads))]
    with one_of(names, lambda: log.info("all %d cores are taken by other runs; waiting", cores())):
        import torch

        torch.set_num_threads(threads)
        yield


@contextmanager
def _a_gpu(device: str) -> Iterator[str]:
    """The device to use: with `free` a GPU that no other run holds, or the CPU where there is none."""
    names = gpus()
    if device == "free" and names:
        waiting = f"device=free: other runs hold {'all' if len(names) > 1 else 'the'} {len(names)} GPU{'s' * (len(names) > 1)}; waiting"
        with one_of(names, lambda: log.info("%s", waiting)) as index:
            yield f"cuda:{index}"
        return
    number = device.partition(":")[2] or "0"
    with ExitStack() as held:
        if number.isdecimal() and int(number) < len(names):
            held.enter_context(taken(names[int(number)]))
        yield "auto" if device == "free" else device
