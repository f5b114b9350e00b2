"""Classifier-free guidance: how the conditional and the unconditional prediction make one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Guided prediction, unconditional + scale (conditional - unconditional).

    Section 2 of Imagen (arXiv 2205.11487), whose scale is 1 + w of Ho and Salimans (arXiv 2207.12598, eq. 6). The
    rescaling is eq. 15 and 16 of arXiv 2305.08891: the guided prediction is given the standard deviation that the
    conditional one has in each sample, and `rescale` mixes it with the guided prediction as it was.

    Args:
        conditional: Prediction with the prompt (B, ...).
        unconditional: Prediction without it, or with the negative prompt; of the same shape.
        scale: Guidance scale; 1 is the conditional prediction exactly, 0 the unconditional one.
        rescale: How far to rescale, from 0 (not at all) to 1; the paper uses 0.7.

    Returns:
        The guided prediction (B, ...).

    Raises:
        ValueError: A scale that is not finite, or `rescale` outside [0, 1].
    """
    if not math.isfinite(scale):
        raise ValueError(f"guidance scale {scale!r} is not finite; pass a number such as 5.0")
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"guidance rescale {rescale!r} must lie between 0 and 1; 0.7 is customary")
    guided = torch.lerp(unconditional, conditional, float(scale))  # one kernel, and exact at scales 0 and 1
    if rescale == 0.0:
        return guided
    ratio = _deviation(conditional) / _deviation(guided).clamp_min(torch.finfo(guided.dtype).tiny)
    return guided * (1.0 + rescale * (ratio - 1.0))


def _deviation(x: Tensor) -> Tensor:
    """Standard deviation over everything but the batch: (B, ...) -> (B, 1, ...)."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
