"""Independent random streams, so that one phase never shifts the numbers of another."""

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, phase: str) -> int:
    """A 63-bit seed for one named phase of a run.

    Phases draw from separate streams: a run that loads its dense network and a run that trains it first then search alike.
    """
    digest = hashlib.sha256(f"{seed}/{phase}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(seed: int, phase: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one phase."""
    return torch.Generator(device).manual_seed(derive_seed(seed, phase))


def numpy_generator(seed: int, phase: str) -> np.random.Generator:
    """A numpy generator for one phase."""
    return np.random.default_rng(derive_seed(seed, phase))


def seed_globals(seed: int, phase: str) -> None:
    """Seed the global streams that library code draws from (weight initialisation, dropout)."""
    value = derive_seed(seed, phase)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
