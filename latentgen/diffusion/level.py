"""One noise level, the pair (alpha, sigma) of q(x_t | x_0) = N(alpha x_0, sigma^2 I), and the noising it describes.

Glossary, used in every formula of this package:

    x0        clean data
    eps       standard Gaussian noise
    x         noisy data, x = alpha x0 + sigma eps
    alpha     how much of the data is left; 1 at the clean end, 0 at zero terminal SNR
    sigma     how much noise there is; 0 at the clean end
    log_snr   2 log(alpha / sigma), the source of truth for a level; it falls as noise is added
    now, nxt  the level a sampler stands at and the (usually cleaner) one it steps to
    out       what the network put out

A level is *variance preserving* where alpha^2 + sigma^2 = 1, as all levels of `schedule.py` are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Level:
    """A noise level for one batch.

    Attributes:
        alpha: Signal scale: a tensor with one entry for each sample, or a plain float that holds for all of them.
        sigma: Noise scale, of the same kind.

    Floats exist for samplers: Python's arithmetic is float64, costs nothing beside a tensor operation, and mixes with
    tensors of any dtype on any device without a transfer.
    """

    alpha: Tensor | float
    sigma: Tensor | float

    @classmethod
    def from_log_snr(cls, log_snr: Tensor) -> Level:
        """The variance-preserving level of a log signal-to-noise ratio, -inf and inf included.

        alpha^2 = sigmoid(log_snr) and sigma^2 = sigmoid(-log_snr): section 3.2 of VDM (arXiv 2107.00630).
        """
        return cls(log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt())

    @property
    def log_snr(self) -> Tensor:
        """2 log(alpha / sigma) as a tensor: -inf where no data is left, inf where there is no noise."""
        alpha, sigma = (torch.as_tensor(part, dtype=_float_dtype(part)) for part in (self.alpha, self.sigma))
        return 2 * (alpha / sigma).log()

    def to(self, like: Tensor) -> Level:
        """Casts to the dtype and device of `like`, (B,) -> (B, 1, 1, ...), so that it broadcasts over `like` (B, ...).

        Floats pass as they are, and so does the shape of any other tensor.
        """
        return Level(fitting(self.alpha, like), fitting(self.sigma, like))


#: No noise at all: where every sampler ends.
CLEAN = Level(1.0, 0.0)


def diffuse(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Adds noise: x = alpha x0 + sigma eps. Eq. 4 of DDPM (arXiv 2006.11239).

    Args:
        x0: Clean data (B, ...).
        eps: Standard Gaussian noise of the same shape.
        level: One level for each sample, cast here to the dtype and device of `x0`.
    """
    level = level.to(x0)
    return combine(level.alpha, x0, level.sigma, eps)


def fitting(part: Tensor | float, like: Tensor) -> Tensor | float:
    """A coefficient that broadcasts over `like`; see `Level.to`."""
    if not isinstance(part, Tensor):
        return part
    part = part.to(device=like.device, dtype=like.dtype)
    return part.reshape(-1, *[1] * (like.ndim - 1)) if part.ndim == 1 else part


def is_constant(value: Tensor | float, constant: float) -> bool:
    """Whether a coefficient is this constant, to float64's last digits.

    Never looks inside a tensor: that would wait for the device.
    """
    return isinstance(value, float) and math.isclose(value, constant, rel_tol=1e-14)


def times(coefficient: Tensor | float, x: Tensor) -> Tensor:
    """The product; free of cost where the coefficient is the constant 1."""
    return x if is_constant(coefficient, 1.0) else coefficient * x


def combine(p: Tensor | float, x: Tensor, q: Tensor | float, y: Tensor) -> Tensor:
    """The sum p x + q y in as few passes over memory as the coefficients allow: constants 0 and 1 cost nothing."""
    if is_constant(p, 0.0):
        return times(q, y)
    if is_constant(q, 0.0):
        return times(p, x)
    return torch.add(times(p, x), y, alpha=q) if isinstance(q, float) else times(p, x) + q * y


def _float_dtype(value: Tensor | float) -> torch.dtype:
    return value.dtype if isinstance(value, Tensor) else torch.float64
