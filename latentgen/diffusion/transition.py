"""The one reverse step, from a noise level to a cleaner one, that serves DDPM and DDIM alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentgen.diffusion.level import Level, combine, diffuse, fitting


@dataclass(frozen=True, eq=False)
class ReverseStep:
    """The step between two levels: x_nxt = alpha_nxt x0 + direction eps + deviation noise.

    Eq. 12 of DDIM (arXiv 2010.02502). direction^2 + deviation^2 = sigma_nxt^2, so that true x0 and eps land on the
    marginal of the next level, whatever eta is.

    Attributes:
        now: The level of x.
        nxt: The level stepped to.
        renewed: Share of the next level's variance that DDPM draws anew, in [0, 1].
    """

    now: Level
    nxt: Level
    renewed: Tensor | float

    def __call__(
        self,
        x0: Tensor,
        eps: Tensor,
        eta: float = 0.0,
        noise: Tensor | None = None,
        deviation: Tensor | float | None = None,
    ) -> Tensor:
        """Takes the step.

        With eta = 0 it is DDIM, which is DPM-Solver++ of first order (arXiv 2211.01095); with eta = 1 its mean is that
        of DDPM's posterior (eq. 7 of arXiv 2006.11239).

        Args:
            x0: Predicted clean data (B, ...).
            eps: Predicted noise (B, ...).
            eta: Share of DDPM's deviation, from 0 to 1.
            noise: Fresh standard Gaussian noise (B, ...); None leaves the mean.
            deviation: Deviation of the fresh noise where it is not the posterior's own; the mean stays.

        Raises:
            ValueError: eta outside [0, 1].
        """
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta={eta!r} must lie between 0 (DDIM) and 1 (DDPM)")
        mean = diffuse(x0, eps, Level(self.nxt.alpha, self.direction(eta)))
        if noise is None:
            return mean
        deviation = self.deviation(eta) if deviation is None else deviation
        return combine(1.0, mean, fitting(deviation, noise), noise)

    def direction(self, eta: float) -> Tensor | float:
        """How much of the noise found in x is kept, sqrt(sigma_nxt^2 - deviation^2)."""
        return self.nxt.sigma * (1.0 - eta**2 * self.renewed) ** 0.5

    def deviation(self, eta: float) -> Tensor | float:
        """Standard deviation of the fresh noise. Eq. 16 of DDIM (arXiv 2010.02502)."""
        return eta * self.nxt.sigma * self.renewed**0.5

    @property
    def variance_bounds(self) -> tuple[Tensor | float, Tensor | float]:
        """The least and the greatest sensible variance of DDPM's step, section 3.2 of arXiv 2006.11239.

        The least is the posterior's, the paper's beta-tilde; the greatest is the forward process's own, beta.
        """
        return self.nxt.sigma**2 * self.renewed, self.now.sigma**2 * self.renewed

    def unbind(self) -> list[ReverseStep]:
        """The steps of a batch of levels one by one, each as plain floats."""
        parts = (self.now.alpha, self.now.sigma, self.nxt.alpha, self.nxt.sigma, self.renewed)
        rows = zip(*(torch.as_tensor(part).reshape(-1).tolist() for part in parts), strict=True)
        return [ReverseStep(Level(*row[0:2]), Level(*row[2:4]), row[4]) for row in rows]


def reverse_step(now: Level, nxt: Level) -> ReverseStep:
    """The reverse step between two levels, in log-SNR alone.

    renewed = -expm1(log_snr_now - log_snr_nxt): the ancestral step of VDM (arXiv 2107.00630). It holds where
    `now` is pure noise (log-SNR -inf) and where `nxt` is clean (inf).

    Args:
        now: A level of floats, of tensors without dimensions, or of one entry for each sample.
        nxt: The level to step to, of the same kind. A noisier one (inversion) renews nothing.
    """
    below, above = now.log_snr, nxt.log_snr
    gap = torch.where(below == above, 0.0, below - above)  # inf - inf is no distance
    return ReverseStep(now, nxt, -torch.expm1(gap.clamp(max=0.0)))
