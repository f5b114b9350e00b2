"""DDPM (arXiv 2006.11239): ancestral sampling with fixed or learned variances, behind diffusers' interface."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from latentgen.configuration import one_of
from latentgen.diffusion.transition import ReverseStep
from latentgen.noise import gaussian_like
from latentgen.schedulers.base import DiscreteScheduler, StepOutput


def _between(smaller: float, larger: float, predicted: Tensor) -> Tensor:
    """Eq. 15 of improved DDPM (arXiv 2102.09672): log-variances mixed by the network's (predicted + 1) / 2."""
    low, high = math.log(smaller), math.log(larger)
    return torch.exp((low + high) / 4 + predicted * ((high - low) / 4))


#: Variance type -> standard deviation of the fresh noise, from the posterior's variance, the forward process's and what
#: the network predicted. The two _log names are the same values reached through logarithms; diffusers' own
#: fixed_large_log takes the root of a logarithm and gives NaN.
DEVIATIONS: dict[str, Callable[[float, float, Any], Tensor | float]] = {
    "fixed_small": lambda smaller, larger, predicted: math.sqrt(smaller),
    "fixed_small_log": lambda smaller, larger, predicted: math.sqrt(smaller),
    "fixed_large": lambda smaller, larger, predicted: math.sqrt(larger),
    "fixed_large_log": lambda smaller, larger, predicted: math.sqrt(larger),
    "learned": lambda smaller, larger, predicted: predicted.sqrt(),
    "learned_range": _between,
}
_LEARNED = ("learned", "learned_range")
_LEAST_VARIANCE = 1e-20  # the posterior has none in a step to clean data, and learned_range needs its logarithm


class DDPMScheduler(DiscreteScheduler):
    """Denoising diffusion probabilistic models, with the keywords and defaults of the class of that name in diffusers.

    Beyond them, beta_schedule may be cosine (saved as squaredcos_cap_v2) and prediction_type may be flow (the network
    puts out eps - x0), which diffusers' own DDPM does not know.

    Args:
        num_train_timesteps: Number of timesteps of the schedule.
        beta_start: First beta.
        beta_end: Last beta.
        beta_schedule: linear, scaled_linear, squaredcos_cap_v2 (or cosine) or sigmoid.
        trained_betas: Betas in place of a named schedule, one for each timestep.
        variance_type: fixed_small (the posterior's), fixed_large (the forward process's), their _log twins, learned
            (the network's second half is the variance) or learned_range (it chooses between the two fixed ones).
        clip_sample: Whether predicted clean data is clipped.
        prediction_type: epsilon, sample, v_prediction or flow.
        thresholding: Whether predicted clean data is thresholded dynamically, instead of clipped.
        dynamic_thresholding_ratio: The quantile of dynamic thresholding.
        clip_sample_range: Bound of the clipping.
        sample_max_value: Bound of the quantile.
        timestep_spacing: leading, linspace or trailing.
        steps_offset: Added to the timesteps of leading spacing.
        rescale_betas_zero_snr: Whether the last timestep is made pure noise.

    Raises:
        ValueError: A value that is none of the above.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        one_of("variance_type", variance_type, DEVIATIONS)
        self._prepare()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Chooses the timesteps to visit, by number or by name.

        Args:
            num_inference_steps: Number of steps, from 1 to the number of training timesteps.
            device: Where `timesteps` should lie.
            timesteps: The timesteps themselves, falling; instead of a number.

        Raises:
            ValueError: Both or neither were given, or timesteps that do not fall or that the schedule does not have.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                f"num_inference_steps={num_inference_steps!r} and timesteps={timesteps!r}; pass exactly one of them"
            )
        if num_inference_steps is not None:
            return super().set_timesteps(num_inference_steps, device)
        given = torch.as_tensor(timesteps)
        chosen = given.to(torch.int64)
        if bool((chosen != given).any()):
            raise ValueError(f"timesteps={given.tolist()}; expected whole numbers, as the model was trained at")
        last = self.config.num_train_timesteps - 1
        if not len(chosen) or bool((chosen.diff() >= 0).any()) or chosen[0] > last or chosen[-1] < 0:
            raise ValueError(f"timesteps={chosen.tolist()} must fall, from at most {last} to at least 0")
        self.num_inference_steps = len(chosen)
        self._visit(chosen.to(device), chosen.tolist())

    def previous_timestep(self, timestep: int | Tensor) -> int:
        """The timestep visited after this one, -1 after the last.

        Raises:
            ValueError: A timestep that is not visited.
        """
        timestep = self._timestep(timestep)
        if timestep not in self._following:
            raise ValueError(
                f"timestep {timestep} is not one of the {len(self._following)} to visit; see set_timesteps"
            )
        return self._following[timestep]

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """One step to a cleaner sample. Eq. 6 and 7 of DDPM (arXiv 2006.11239).

        Args:
            model_output: The network's output (B, C, ...), or (B, 2 C, ...) where it predicts variances too.
            timestep: The sample's timestep, one of those visited.
            sample: The noisy sample (B, C, ...).
            generator: Source of fresh noise, or a list of one for each sample; timestep 0 draws none.
            return_dict: Whether to return a `StepOutput` rather than (prev_sample, pred_original_sample).

        Raises:
            ValueError: A timestep that is not visited, an output of another shape than the sample and the variance type
                ask for, or a prediction that cannot be read at this timestep.
        """
        now = self._timestep(timestep)
        step = self._reverse_step(now)
        out, predicted = self._parts(model_output, sample)
        x0, eps = self._predict(out, sample, step.now, consistent=True)
        noise = gaussian_like(out, generator) if now > 0 else None
        prev_sample = step(x0, eps, 1.0, noise, self._deviation(step, predicted) if now > 0 else None)
        return StepOutput(prev_sample, x0) if return_dict else (prev_sample, x0)

    def _parts(self, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's prediction and, for learned variances, its second half."""
        if self.config.variance_type not in _LEARNED:
            return model_output, None
        if model_output.shape[1] != 2 * sample.shape[1]:
            raise ValueError(
                f"variance_type={self.config.variance_type!r} needs a network with {2 * sample.shape[1]} output "
                f"channels and got {model_output.shape[1]}; use variance_type='fixed_small' for this one"
            )
        out, predicted = model_output.chunk(2, dim=1)
        return out, predicted

    def _deviation(self, step: ReverseStep, predicted: Tensor | None) -> Tensor | float:
        smaller, larger = (max(float(variance), _LEAST_VARIANCE) for variance in step.variance_bounds)
        return DEVIATIONS[self.config.variance_type](smaller, larger, predicted)
