"""Which row a run's sample number shows, and noise that belongs to that number alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from training.data.randomness import draws


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return draws(seed, "order", epoch).permutation(size)


def row_of_sample(sample: int, size: int, seed: int) -> int:
    """Row, of `size` rows, that sample number `sample` of a run shows.

    Every epoch is a permutation of its own, so each row is shown once an epoch.
    """
    epoch, position = divmod(sample, size)
    return int(_permutation(size, seed, epoch)[position])


def normal(shape: tuple[int, ...], seed: int, *counters: int | str) -> Tensor:
    """Standard normal float32 tensor of `shape`, a function of the arguments alone."""
    return torch.from_numpy(draws(seed, *counters).standard_normal(shape, dtype=np.float32))
