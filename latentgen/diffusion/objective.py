"""How much each noise level counts in training: loss weights as functions of log-SNR, and which timesteps are drawn.

A weighting is written once, as the weight that the squared error of x0 gets. A network that puts out a x0 + b eps and
errs by d errs in x0 by d sigma / det, so that the weight of its own squared error is that times sigma^2 / det^2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentgen.diffusion.level import Level
from latentgen.diffusion.prediction import coefficients

#: Name -> log of the weight on the squared error of x0, from log_snr and the weighting's parameters. Logarithms, as
#: SNR itself is 0 at one end and overflows at the other.
WEIGHTINGS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    # Plain squared error of x0 and of eps, whatever the network puts out.
    "x0": lambda log_snr, gamma, k: torch.zeros_like(log_snr),
    "epsilon": lambda log_snr, gamma, k: log_snr,
    # max(SNR, 1): "truncated SNR", section 4 of arXiv 2202.00512.
    "truncated_snr": lambda log_snr, gamma, k: log_snr.clamp(min=0.0),
    # min(SNR, gamma): Min-SNR-gamma, arXiv 2303.09556, with gamma = 5; (SNR + 1)-fold less for v_prediction.
    "min_snr": lambda log_snr, gamma, k: log_snr.clamp(max=_log(gamma, log_snr)),
    # SNR gamma / (SNR + gamma): the smooth form of it, from HDiT, arXiv 2401.11605.
    "soft_min_snr": lambda log_snr, gamma, k: -torch.logaddexp(-log_snr, -_log(gamma, log_snr)),
    # SNR / (k + SNR)^gamma: P2, arXiv 2204.00227, with k = 1 and gamma = 1 (or 0.5).
    "p2": lambda log_snr, gamma, k: log_snr - gamma * torch.logaddexp(_log(k, log_snr), log_snr),
    # sqrt(SNR), that is 1 / sqrt(SNR) on the error of eps: arXiv 2310.08442.
    "debiased": lambda log_snr, gamma, k: log_snr / 2,
}
_DEFAULT_GAMMA = {"min_snr": 5.0, "soft_min_snr": 5.0, "p2": 1.0}


def loss_weight(
    log_snr: Tensor, prediction_type: str, weighting: str = "simple", gamma: float | None = None, k: float = 1.0
) -> Tensor:
    """The weight on the mean squared error of the network's own output.

    Args:
        log_snr: Log-SNR of each sample (B,), of variance-preserving levels; -inf at zero terminal SNR.
        prediction_type: epsilon, sample, v_prediction or flow.
        weighting: simple (weight 1, whatever the network puts out) or a key of `WEIGHTINGS`. All but simple weigh the
            error of x0 alike for every prediction type: min_snr is min(SNR, gamma) / SNR for epsilon,
            min(SNR, gamma) for sample and min(SNR, gamma) / (SNR + 1) for v_prediction.
        gamma: Bound of min_snr and soft_min_snr (5 where not given), exponent of p2 (1 where not given).
        k: Offset of p2.

    Returns:
        Weights shaped as `log_snr` and of its dtype, finite at every level with noise.

    Raises:
        ValueError: An unknown name, a parameter that is not positive, or epsilon at zero terminal SNR, where the input
            is the noise itself and there is nothing to learn about the data (looked for on the CPU only).
    """
    if weighting != "simple" and weighting not in WEIGHTINGS:
        raise ValueError(f"loss weighting {weighting!r}; choose one of simple, {', '.join(WEIGHTINGS)}")
    gamma = _DEFAULT_GAMMA.get(weighting, 1.0) if gamma is None else gamma
    if not (gamma > 0 and k > 0):
        raise ValueError(f"loss weighting {weighting!r} with gamma={gamma!r} and k={k!r}; both must be positive")
    exact = log_snr if log_snr.device.type == "mps" else log_snr.double()
    require_learnable(prediction_type, exact)
    if weighting == "simple":
        return torch.ones_like(log_snr)
    return (WEIGHTINGS[weighting](exact, gamma, k) - implied_log_weight(exact, prediction_type)).exp().to(log_snr.dtype)


def implied_log_weight(log_snr: Tensor, prediction_type: str) -> Tensor:
    """Log of the weight on x0's squared error that a plain loss on the network's output implies: det^2 / sigma^2.

    SNR for epsilon, 1 for sample, SNR + 1 for v_prediction: section 4 of arXiv 2202.00512.
    """
    level = Level.from_log_snr(log_snr)
    a, b = coefficients(prediction_type, level)
    det = torch.as_tensor(level.alpha * b - level.sigma * a)
    return 2 * (det.abs() / level.sigma).log()


def require_learnable(prediction_type: str, log_snr: Tensor) -> None:
    """Refuses epsilon prediction where no data is left: call it once for a schedule before training on it.

    Raises:
        ValueError: epsilon with a log-SNR of -inf (looked for on the CPU only).
    """
    coefficients(prediction_type, Level(1.0, 0.0))
    if prediction_type == "epsilon" and log_snr.device.type == "cpu" and bool(torch.isneginf(log_snr).any()):
        raise ValueError(
            "prediction_type='epsilon' cannot be trained at zero terminal SNR, where the input is the noise itself; "
            "use v_prediction, sample or flow, or rescale_betas_zero_snr=False"
        )


def draw_timesteps(
    u: Tensor, log_snr: Tensor, density: str = "uniform", mean: float = 0.0, deviation: float = 1.0
) -> Tensor:
    """Training timesteps as a pure function of uniform numbers, so that the caller's seed decides alone.

    Args:
        u: Uniform numbers in [0, 1), of any shape.
        log_snr: The schedule's table (T,), falling.
        density: uniform over timesteps; logit_normal, where t / T is the sigmoid of a normal number (section 3.1 of
            Stable Diffusion 3, arXiv 2403.03206; a higher mean draws more noise); or log_snr_normal, where log-SNR is
            a normal number (the log-normal sigma of EDM, arXiv 2206.00364, table 1, is mean 2.4, deviation 2.4).
        mean: Mean of the normal number.
        deviation: Its standard deviation.

    Returns:
        int64 timesteps in 0 ... T-1, shaped as `u`.

    Raises:
        ValueError: An unknown density or a deviation that is not positive.
    """
    if density not in DENSITIES:
        raise ValueError(f"timestep density {density!r}; choose one of {', '.join(DENSITIES)}")
    if not deviation > 0:
        raise ValueError(f"timestep density {density!r} with deviation={deviation!r}; it must be positive")
    position = DENSITIES[density](u.double(), log_snr, mean, deviation)
    return position.long().clamp(0, log_snr.numel() - 1)


def _logit_normal(u: Tensor, log_snr: Tensor, mean: float, deviation: float) -> Tensor:
    return log_snr.numel() * (mean + deviation * torch.special.ndtri(u)).sigmoid()


def _log_snr_normal(u: Tensor, log_snr: Tensor, mean: float, deviation: float) -> Tensor:
    wanted = mean - deviation * torch.special.ndtri(u)  # minus, so that a larger u means a later timestep here too
    halfway = (log_snr[1:] + log_snr[:-1]) / 2
    return torch.searchsorted(-halfway, -wanted)


DENSITIES: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "uniform": lambda u, log_snr, mean, deviation: log_snr.numel() * u,
    "logit_normal": _logit_normal,
    "log_snr_normal": _log_snr_normal,
}


def _log(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device).log()
