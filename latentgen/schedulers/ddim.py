"""DDIM (arXiv 2010.02502): the reverse step with eta chosen by the caller, behind diffusers' interface."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from latentgen.diffusion.level import Level
from latentgen.noise import gaussian_like
from latentgen.schedulers.base import DiscreteScheduler, StepOutput


class DDIMScheduler(DiscreteScheduler):
    """Denoising diffusion implicit models, with the keywords and defaults of the class of that name in diffusers.

    Beyond them, beta_schedule may be sigmoid or cosine (saved as squaredcos_cap_v2) and prediction_type may be flow
    (the network puts out eps - x0), which diffusers' own DDIM does not know.

    Args:
        num_train_timesteps: Number of timesteps of the schedule.
        beta_start: First beta.
        beta_end: Last beta.
        beta_schedule: linear, scaled_linear, squaredcos_cap_v2 (or cosine) or sigmoid.
        trained_betas: Betas in place of a named schedule, one for each timestep.
        clip_sample: Whether predicted clean data is clipped.
        set_alpha_to_one: Whether the last step ends at clean data; otherwise at the level of timestep 0.
        steps_offset: Added to the timesteps of leading spacing.
        prediction_type: epsilon, sample, v_prediction or flow.
        thresholding: Whether predicted clean data is thresholded dynamically, instead of clipped.
        dynamic_thresholding_ratio: The quantile of dynamic thresholding.
        clip_sample_range: Bound of the clipping.
        sample_max_value: Bound of the quantile.
        timestep_spacing: leading, linspace or trailing.
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
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._prepare()
        if not set_alpha_to_one:
            self._end = Level(self.schedule.alpha[0].item(), self.schedule.sigma[0].item())
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def previous_timestep(self, timestep: int | Tensor) -> int:
        """The timestep one stride of T // N earlier, whatever the spacing; below 0 where the step leads to the end.

        Raises:
            ValueError: `set_timesteps` was not called.
        """
        if self.num_inference_steps is None:
            raise ValueError("the number of inference steps is not set; call set_timesteps(num_inference_steps) first")
        return self._timestep(timestep) - self.config.num_train_timesteps // self.num_inference_steps

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """One step to a cleaner sample. Eq. 12 and 16 of DDIM (arXiv 2010.02502).

        Args:
            model_output: The network's output (B, ...).
            timestep: The sample's timestep.
            sample: The noisy sample (B, ...).
            eta: Share of DDPM's fresh noise, from 0 (none) to 1.
            use_clipped_model_output: Whether the noise is found anew from clipped or thresholded data.
            generator: Source of fresh noise, or a list of one for each sample.
            variance_noise: The fresh noise itself (B, ...), instead of a generator.
            return_dict: Whether to return a `StepOutput` rather than (prev_sample, pred_original_sample).

        Raises:
            ValueError: `set_timesteps` was not called, eta lies outside [0, 1], both generator and noise were given, or
                the prediction cannot be read at this timestep.
        """
        if eta > 0 and variance_noise is not None and generator is not None:
            raise ValueError("both generator and variance_noise were given; pass only one of them")
        step = self._reverse_step(self._timestep(timestep))
        x0, eps = self._predict(model_output, sample, step.now, consistent=use_clipped_model_output)
        if eta > 0 and variance_noise is None:
            variance_noise = gaussian_like(model_output, generator)
        prev_sample = step(x0, eps, eta, variance_noise)
        return StepOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
