"""Where each picture's noise comes from: a seed of its own, a generator, or latents that the caller brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.inputs import image_seeds


@dataclass(frozen=True)
class Noise:
    """The noise of a call's pictures.

    Attributes:
        latents: What the sampler starts from, of unit variance, (B, C, h, w), float32.
        generators: One a picture, for samplers that add noise on their way.
        seeds: One a picture; None where they alone do not draw it again, beside generators and latents.
    """

    latents: Tensor
    generators: list[torch.Generator]
    seeds: list[int] | None

    @staticmethod
    def of(seed: Any, generator: Any, latents: Any, shape: tuple[int, ...]) -> Noise:
        """Check what a caller says about the noise of pictures whose latents are `shape`, (B, C, h, w), and draw it.

        Raises:
            ValueError: Both seed and generator, another number of them than pictures, or latents of another shape.
        """
        if seed is not None and generator is not None:
            raise ValueError("both seed and generator were given; give one of them")
        if latents is not None:
            check_latents(latents, shape)
        if generator is None:
            seeds = image_seeds(seed, shape[0])
            generators = [torch.Generator("cpu").manual_seed(one) for one in seeds]
        else:
            seeds, generators = None, image_generators(generator, shape[0])
        if latents is None:
            return Noise(initial_noise(generators, shape[1:]), generators, seeds)
        if generator is None:
            # Seeds draw even where latents are brought, so that a sampler's later noise is the same in both cases.
            initial_noise(generators, shape[1:])
        return Noise(latents.float(), generators, None)


def initial_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """One picture's (C, h, w) noise from each generator, in float32 where the generator lives: (B, C, h, w)."""
    return torch.stack([torch.randn(*shape, generator=one, device=one.device) for one in generators])


def image_generators(generator: Any, count: int) -> list[torch.Generator]:
    """One generator for each of `count` pictures; a single one serves them in turn.

    Raises:
        ValueError: Not a torch.Generator or a list of `count` of them.
    """
    generators = [generator] * count if isinstance(generator, torch.Generator) else generator
    if not isinstance(generators, (list, tuple)) or not all(isinstance(one, torch.Generator) for one in generators):
        raise ValueError(f"generator={generator!r}; expected a torch.Generator or a list of them")
    if len(generators) != count:
        raise ValueError(f"{len(generators)} generators for {count} pictures; give one for each, or a single one")
    return list(generators)


def check_latents(latents: Any, shape: tuple[int, ...]) -> None:
    """Check noise that the caller brings.

    Raises:
        ValueError: Not a finite floating-point tensor of `shape`.
    """
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        raise ValueError(f"latents are {type(latents).__name__}; expected a floating-point tensor {shape}")
    if tuple(latents.shape) != shape:
        raise ValueError(
            f"latents have the shape {tuple(latents.shape)}; expected {shape}, (pictures, channels, height, width)"
        )
    if not latents.isfinite().all():
        raise ValueError("latents hold NaN or infinity; expected finite numbers")
