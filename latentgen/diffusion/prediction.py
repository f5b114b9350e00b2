"""What a network predicts, as data: target = a x0 + b eps, and the one inverse that serves every kind."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from latentgen.diffusion.level import Level, combine, is_constant, times

#: Prediction type -> the coefficients (a, b) at a level.
#: epsilon: DDPM (arXiv 2006.11239); v_prediction: section 4 of progressive distillation (arXiv 2202.00512);
#: flow: eps - x0, the velocity of rectified flow (arXiv 2209.03003) written for any level.
PREDICTIONS: dict[str, Callable[[Level], tuple[Tensor | float, Tensor | float]]] = {
    "epsilon": lambda level: (0.0, 1.0),
    "sample": lambda level: (1.0, 0.0),
    "v_prediction": lambda level: (-level.sigma, level.alpha),
    "flow": lambda level: (-1.0, 1.0),
}


def coefficients(prediction_type: str, level: Level) -> tuple[Tensor | float, Tensor | float]:
    """(a, b) of target = a x0 + b eps, shaped as the level.

    Raises:
        ValueError: An unknown prediction type.
    """
    if prediction_type not in PREDICTIONS:
        raise ValueError(f"prediction_type={prediction_type!r}; choose one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[prediction_type](level)


def target(prediction_type: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What the network should put out: a x0 + b eps.

    Args:
        prediction_type: epsilon, sample, v_prediction or flow.
        x0: Clean data (B, ...).
        eps: The noise it was mixed with, of the same shape.
        level: One level for each sample, cast here.
    """
    a, b = coefficients(prediction_type, level.to(x0))
    return combine(a, x0, b, eps)


def split(prediction_type: str, x: Tensor, out: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Reads the network's output back as clean data and noise; the inverse of `target` and `diffuse` together.

    With det = alpha b - sigma a: x0 = (b x - sigma out) / det and eps = (alpha out - a x) / det. The numerator comes
    first, as x and out nearly cancel where alpha is small.

    Args:
        prediction_type: epsilon, sample, v_prediction or flow.
        x: Noisy data (B, ...).
        out: The network's output, of the same shape.
        level: The level of `x`, cast here.

    Returns:
        (x0, eps), both shaped as `x`.

    Raises:
        ValueError: The output says nothing about x0 or eps at this level: epsilon where no data is left (zero terminal
            SNR), sample where there is no noise. Looked for in levels of floats and on the CPU only.
    """
    level = level.to(x)
    a, b = coefficients(prediction_type, level)
    det = level.alpha * b - level.sigma * a
    _require_invertible(prediction_type, det)
    x0 = times(1 / a, out) if is_constant(b, 0.0) else _divide(combine(b, x, -level.sigma, out), det)
    eps = times(1 / b, out) if is_constant(a, 0.0) else _divide(combine(level.alpha, out, -a, x), det)
    return x0, eps


def score(eps: Tensor, level: Level) -> Tensor:
    """The gradient of log q(x_t | x0) with respect to x_t: -eps / sigma. Section 2.1 of arXiv 2011.13456."""
    return -eps / level.to(eps).sigma


def _divide(numerator: Tensor, det: Tensor | float) -> Tensor:
    return numerator if is_constant(det, 1.0) else numerator / det


def _require_invertible(prediction_type: str, det: Tensor | float) -> None:
    if isinstance(det, Tensor) and det.device.type != "cpu":
        return
    if bool((det == 0).any()) if isinstance(det, Tensor) else det == 0:
        raise ValueError(
            f"prediction_type={prediction_type!r} cannot be read at this noise level: {_DEAD_ENDS[prediction_type]}"
        )


_DEAD_ENDS = {
    "epsilon": (
        "the input is pure noise (zero terminal SNR), and its noise says nothing about the data; "
        "use v_prediction, sample or flow, or rescale_betas_zero_snr=False"
    ),
    "sample": "the input has no noise (sigma = 0), and the data says nothing about it; stop one level earlier",
}
