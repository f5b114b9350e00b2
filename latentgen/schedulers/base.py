"""What every scheduler over a discrete noise schedule shares: diffusers' interface around `latentgen.diffusion`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from latentgen.configuration import check_spelling, check_types, one_of
from latentgen.diffusion.level import CLEAN, Level, diffuse
from latentgen.diffusion.prediction import PREDICTIONS, split, target
from latentgen.diffusion.schedule import SPACINGS, canonical_beta_schedule, noise_schedule, spaced_timesteps
from latentgen.diffusion.transition import ReverseStep, reverse_step


@dataclass
class StepOutput(BaseOutput):
    """What a step returns.

    Attributes:
        prev_sample: The sample at the next, cleaner level (B, ...).
        pred_original_sample: The clean data that the step believed in (B, ...), clipped if the scheduler clips.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class DiscreteScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # the two disagree on config_name
    """Base of the schedulers; a subclass registers flat keywords, calls `_prepare` and writes `step`.

    Settings that diffusers' pipelines overwrite after construction (steps_offset, clip_sample) are read from `config`
    when they are used. A step works on floats that were looked up once for each timestep, so that it neither indexes a
    table nor waits for the device.
    """

    _internal_dict: Any
    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    order = 1
    init_noise_sigma = 1.0
    _end: Level = CLEAN

    def _prepare(self) -> None:
        """Checks the registered configuration and builds the tables."""
        config = self.config
        one_of("prediction_type", config.prediction_type, PREDICTIONS)
        one_of("timestep_spacing", config.timestep_spacing, SPACINGS)
        require_positive("clip_sample_range", config.clip_sample_range)
        require_positive("sample_max_value", config.sample_max_value)
        ratio = config.dynamic_thresholding_ratio
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"dynamic_thresholding_ratio={ratio!r} must lie in (0, 1]; 0.995 is customary")
        if config.trained_betas is not None:  # as a list, so that the configuration can be saved whatever was passed
            betas = torch.as_tensor(config.trained_betas, dtype=torch.float64).flatten().tolist()
            self.register_to_config(trained_betas=betas)
        else:
            self.register_to_config(beta_schedule=canonical_beta_schedule(config.beta_schedule))
        self.schedule = noise_schedule(
            self.config.beta_schedule,
            config.num_train_timesteps,
            config.beta_start,
            config.beta_end,
            self.config.trained_betas,
            config.rescale_betas_zero_snr,
        )
        # For others to read, in the precision they expect; nothing here does.
        self.betas = self.schedule.betas.float()
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = self.schedule.alphas_cumprod.float()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Build the scheduler from a configuration, that of another class too: what is not a keyword here is kept.

        Raises:
            ValueError: A value of another type, or a key that is all but one of the keywords.
        """
        if isinstance(config, Mapping):
            # Solvers that have no variance of their own say None for it.
            config = {name: value for name, value in config.items() if (name, value) != ("variance_type", None)}
            given = {**config, **kwargs}
            check_types(cls, {name: value for name, value in given.items() if name != "trained_betas"})
            check_spelling(cls, given)
        try:
            return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"this configuration of a {cls.__name__} cannot be built: {error}") from error

    @property
    def config(self) -> Any:
        """The registered keywords as attributes; `register_to_config` changes them."""
        return self._internal_dict

    @property
    def timesteps(self) -> Tensor:
        """The timesteps to visit (N,), noisiest first."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        self._visit(timesteps, timesteps.tolist())

    def _visit(self, timesteps: Tensor, visited: list[int]) -> None:
        """Takes timesteps together with their values, which the device would have to be waited for."""
        self._timesteps = timesteps
        self._visited = [int(timestep) for timestep in visited]
        self._following = dict(zip(self._visited, [*self._visited[1:], -1], strict=True))
        self._steps: dict[int, ReverseStep] = {}

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Chooses the timesteps to visit.

        Args:
            num_inference_steps: Number of steps, from 1 to the number of training timesteps.
            device: Where `timesteps` should lie.

        Raises:
            ValueError: A number of steps that the schedule or the spacing does not have.
        """
        config = self.config
        timesteps = spaced_timesteps(
            config.timestep_spacing, num_inference_steps, config.num_train_timesteps, config.steps_offset
        )
        self.num_inference_steps = len(timesteps)
        self._visit(timesteps.to(device), timesteps.tolist())

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """Returns the sample as it is: variance-preserving levels need no scaling."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noises clean data (B, ...) to the levels of timesteps (B,). Eq. 4 of DDPM (arXiv 2006.11239)."""
        return diffuse(original_samples, noise, self.schedule.level(timesteps))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v_prediction, alpha noise - sigma sample. Section 4 of arXiv 2202.00512."""
        return target("v_prediction", sample, noise, self.schedule.level(timesteps))

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def _timestep(self, timestep: int | Tensor) -> int:
        """The timestep as an int, without waiting for the device where it is one of `timesteps`.

        A pipeline iterates over `timesteps`, and each element is a view: its place in the storage says which one it is.
        """
        if not isinstance(timestep, Tensor) or timestep.device.type == "cpu" or timestep.ndim:
            return int(timestep)
        ours = self._timesteps
        if timestep.device != ours.device or timestep.dtype != ours.dtype:
            return int(timestep)
        if timestep.untyped_storage().data_ptr() != ours.untyped_storage().data_ptr():
            return int(timestep)
        return self._visited[(timestep.storage_offset() - ours.storage_offset()) // ours.stride(0)]

    def previous_timestep(self, timestep: int | Tensor) -> int:
        """The timestep that a step from this one leads to; below 0 where it leads to the end."""
        raise NotImplementedError

    def _reverse_step(self, timestep: int) -> ReverseStep:
        """The step from a timestep, as floats."""
        if timestep not in self._steps:  # one pass over the tables for the whole loop, at its first step
            now = self._visited if timestep in self._visited else [timestep]
            nxt = [max(self.previous_timestep(each), -1) for each in now]  # -1 is the end, the last entry of the tables
            alpha = torch.cat([self.schedule.alpha, torch.tensor([self._end.alpha], dtype=torch.float64)])
            sigma = torch.cat([self.schedule.sigma, torch.tensor([self._end.sigma], dtype=torch.float64)])
            steps = reverse_step(self.schedule.level(torch.tensor(now)), Level(alpha[nxt], sigma[nxt])).unbind()
            self._steps.update(zip(now, steps, strict=True))
        return self._steps[timestep]

    def _predict(self, out: Tensor, sample: Tensor, level: Level, consistent: bool) -> tuple[Tensor, Tensor]:
        """The predicted (x0, eps), x0 thresholded or clipped as configured.

        Args:
            out: The network's output (B, ...).
            sample: What it saw (B, ...).
            level: The sample's level.
            consistent: Whether eps should follow x0 where that was limited, so that the two still make up the sample.
        """
        config = self.config
        if out.shape != sample.shape:
            raise ValueError(
                f"the network's output {tuple(out.shape)} does not fit the sample {tuple(sample.shape)}; for a network "
                "that also predicts variances use DDPMScheduler with variance_type learned or learned_range"
            )
        x0, eps = split(config.prediction_type, sample, out, level)
        if config.thresholding:
            x0 = dynamic_threshold(x0, config.dynamic_thresholding_ratio, config.sample_max_value)
        elif config.clip_sample:
            x0 = x0.clamp(-config.clip_sample_range, config.clip_sample_range)
        else:
            return x0, eps
        return split("sample", sample, x0, level) if consistent else (x0, eps)


def dynamic_threshold(x0: Tensor, ratio: float, max_value: float) -> Tensor:
    """Clips each sample to the `ratio` quantile of its magnitudes, then divides by it: Imagen (arXiv 2205.11487, 2.3).

    Args:
        x0: Predicted clean data (B, ...), meant to lie in [-1, 1].
        ratio: Which quantile; 0.995 in the paper.
        max_value: Bound of the quantile, whose lower bound is 1.
    """
    flat = x0.flatten(1)
    exact = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()  # quantile knows no half precision
    bound = torch.quantile(exact.abs(), ratio, dim=1, keepdim=True).clamp(min=1.0).clamp(max=max_value)
    return (exact.clamp(-bound, bound) / bound).to(x0.dtype).view_as(x0)


def require_positive(name: str, value: float) -> None:
    """Raises ValueError for a value that is not above 0."""
    if not value > 0:
        raise ValueError(f"{name}={value!r} must be positive; 1.0 is the default")
