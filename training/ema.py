"""Exponential moving average of a network's trainable weights, the weights that are drawn with and shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Moving average, in float32, of the parameters of `module` that are trained.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that early random weights are
    forgotten quickly (the rule of TensorFlow's ExponentialMovingAverage).

    Args:
        module: the network whose parameters are followed, on their own device.
        decay: the decay after warm-up; 0 keeps a plain copy of the newest weights.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"The EMA decay must lie in [0, 1), got {decay}: 0.999 to 0.9999 are usual.")
        self.decay = decay
        self.module = module
        self.averages = {name: p.detach().clone().float() for name, p in self._followed()}

    def _followed(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Moves the averages towards the current weights, after `updates` earlier updates."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
        current = [p.detach().float() for _, p in self._followed()]
        torch._foreach_lerp_(list(self.averages.values()), current, weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The module carries the averages inside this block and its own weights again after it."""
        own = {name: p.detach().clone() for name, p in self._followed()}
        self._copy(self.averages)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        for name, p in self._followed():
            p.copy_(weights[name])

    @torch.no_grad()
    def load(self, averages: dict[str, Tensor]) -> None:
        """Takes up averages saved earlier. Raises ValueError where names differ."""
        if averages.keys() != self.averages.keys():
            different = sorted(averages.keys() ^ self.averages.keys())[:4]
            raise ValueError(f"The saved EMA belongs to another network: it differs in {different} and maybe more.")
        for name, average in self.averages.items():
            average.copy_(averages[name])
