"""Gaussian noise that is the same for the same generators, whatever device it is for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_like(x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
    """Standard Gaussian noise shaped as `x` (B, ...), of its dtype and on its device.

    Args:
        x: What to match.
        generator: One for the whole batch, or a list of one for each sample. Numbers are drawn on the generator's own
            device, so that a CPU generator gives the same noise whatever device the sample is on.

    Raises:
        ValueError: A list of the wrong length.
    """
    if not isinstance(generator, Sequence):
        return _draw(x.shape, x, generator)
    if len(generator) == 1:
        return _draw(x.shape, x, generator[0])
    if len(generator) != len(x):
        raise ValueError(f"{len(generator)} generators for a batch of {len(x)}; pass one, or one for each sample")
    return torch.cat([_draw((1, *x.shape[1:]), x, each) for each in generator])


def _draw(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
