"""The encoder's belief about a latent: a Gaussian with a diagonal covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentgen.noise import gaussian_like

# exp(+-) of these stays inside float16's range for the standard deviation's use.
_LOGVAR_MIN, _LOGVAR_MAX = -30.0, 20.0


class DiagonalGaussian:
    """N(mean, diag(exp(logvar))), read off the encoder's output.

    Args:
        parameters: (B, 2C, H, W), the means and then the log-variances along dimension 1. Log-variances are clamped to
            [-30, 20].

    Attributes:
        mean, logvar, std, var: (B, C, H, W).
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(_LOGVAR_MIN, _LOGVAR_MAX)

    @property
    def std(self) -> Tensor:
        """Standard deviation."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variance."""
        return torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """Draw by reparametrisation (Eq. 10 of arXiv 1312.6114); gradients reach mean and variance."""
        return torch.addcmul(self.mean, self.std, gaussian_like(self.mean, generator))

    def mode(self) -> Tensor:
        """The most probable latent, which is the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL divergence from `other` (the standard normal when None), in nats, summed over each picture: (B,).

        Appendix B of arXiv 1312.6114.
        """
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            log_ratio = self.logvar - other.logvar
            terms = (self.mean - other.mean).square() / other.var + log_ratio.exp() - 1.0 - log_ratio
        return 0.5 * terms.flatten(1).sum(1)

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """Negative log-density of `sample` in nats, summed over `dims`."""
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=tuple(dims))
