"""The one reverse step, from a noise level to a cleaner one, that serves DDPM and DDIM alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentgen.diffusion.level import Level, diffuse, times


@dataclass(frozen=True, eq=False)
class ReverseStep:
    """x_nxt = alpha_nxt x0 + direction eps + deviation noise; eq. 12 of DDIM (arXiv 2010.02502).

    direction^2 + deviation^2 = sigma_nxt^2, so that exact x0 and eps land on the marginal of the next level.

    Attributes:
        now: The level of x.
        nxt: The level stepped to.
        direction: How much of the noise found in x is kept.
        deviation: Standard deviation of fresh noise.
    """

    now: Level
    nxt: Level
    direction: Tensor | float
    deviation: Tensor | float

    def __call__(self, x0: Tensor, eps: Tensor, noise: Tensor | None = None) -> Tensor:
        """Takes the step.

        Args:
            x0: Predicted clean data (B, ...).
            eps: Predicted noise (B, ...).
            noise: Fresh standard Gaussian noise (B, ...); None leaves the mean.
        """
        mean = diffuse(x0, eps, Level(self.nxt.alpha, self.direction))
        if noise is None:
            return mean
        return mean + times(Level(self.deviation, self.deviation).to(noise).sigma, noise)

    def item(self) -> ReverseStep:
        """The same step as plain floats; only for levels of one entry."""
        return ReverseStep(self.now.item(), self.nxt.item(), float(self.direction), float(self.deviation))


def reverse_step(now: Level, nxt: Level, eta: float = 0.0) -> ReverseStep:
    """The reverse step between two levels, in log-SNR alone.

    deviation = eta sigma_nxt sqrt(-expm1(log_snr_now - log_snr_nxt)): eq. 16 of DDIM (arXiv 2010.02502). With eta = 0
    it is DDIM, which is DPM-Solver++ of first order (arXiv 2211.01095); with eta = 1 it is DDPM's posterior (eq. 7 of
    arXiv 2006.11239), in the form of VDM (arXiv 2107.00630, appendix A.4). It holds where `now` is pure noise
    (log-SNR -inf) and where `nxt` is clean (inf).

    Args:
        now: Levels of tensors, or of floats.
        nxt: The levels to step to. Stepping to a noisier one (inversion) adds no fresh noise.
        eta: From 0 to 1.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta={eta!r} must lie between 0 (DDIM) and 1 (DDPM)")
    renewed = eta * _renewed_share(now, nxt).sqrt()
    sigma = torch.as_tensor(nxt.sigma, dtype=renewed.dtype, device=renewed.device)
    return ReverseStep(now, nxt, sigma * (1 - renewed.square()).sqrt(), sigma * renewed)


def variance_bounds(now: Level, nxt: Level) -> tuple[Tensor, Tensor]:
    """The smallest and the largest sensible variance of DDPM's reverse step, section 3.2 of arXiv 2006.11239.

    The smaller is the posterior's, beta-tilde = -sigma_nxt^2 expm1(log_snr_now - log_snr_nxt); the larger is the
    forward process's own, beta = -sigma_now^2 expm1(log_snr_now - log_snr_nxt).
    """
    renewed = _renewed_share(now, nxt)
    return nxt.sigma**2 * renewed, now.sigma**2 * renewed


def _renewed_share(now: Level, nxt: Level) -> Tensor:
    """-expm1(log_snr_now - log_snr_nxt): the share of the next level's variance that DDPM draws anew, in [0, 1]."""
    below, above = now.log_snr, nxt.log_snr
    gap = torch.where(below == above, 0.0, below - above)  # inf - inf is no distance
    return -torch.expm1(gap.clamp(max=0.0))
