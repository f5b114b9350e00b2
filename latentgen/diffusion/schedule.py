"""Which noise level each training timestep has, and which timesteps a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from latentgen.diffusion.level import Level


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A discrete, variance-preserving noise schedule, held as its log-SNR; everything else is a view of it.

    Attributes:
        log_snr: (T,) float64 on the CPU, falling with the timestep; -inf at the end under zero terminal SNR.
    """

    log_snr: Tensor
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def alpha(self) -> Tensor:
        """Signal scale (T,), float64."""
        return self.log_snr.sigmoid().sqrt()

    @cached_property
    def sigma(self) -> Tensor:
        """Noise scale (T,), float64; accurate where it is small, unlike sqrt(1 - alphas_cumprod)."""
        return (-self.log_snr).sigmoid().sqrt()

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """The product of (1 - beta), which is alpha^2: (T,), float64."""
        return self.log_snr.sigmoid()

    @cached_property
    def betas(self) -> Tensor:
        """Variance added from each timestep to the next (T,), float64.

        beta_t = -sigma_t^2 expm1(log_snr_t - log_snr_{t-1}), with the clean end before the first timestep.
        """
        before = torch.cat([self.log_snr.new_tensor([torch.inf]), self.log_snr[:-1]])
        # Where no noise was added, both may be infinite.
        fall = torch.where(self.log_snr == before, 0.0, self.log_snr - before)
        return -((-self.log_snr).sigmoid()) * torch.expm1(fall)

    def __len__(self) -> int:
        return self.log_snr.numel()

    def level(self, timesteps: Tensor | int) -> Level:
        """The levels of timesteps.

        Args:
            timesteps: Integer tensor of any shape, on any device, or an int.

        Returns:
            A level of tensors shaped as `timesteps`, on their device: float64, or float32 where the device has no
            float64. Cast it with `Level.to`.

        Raises:
            ValueError: A timestep outside 0 ... T-1. Looked for on the CPU only: elsewhere it would stall the device.
        """
        timesteps = torch.as_tensor(timesteps)
        if (
            timesteps.device.type == "cpu"
            and timesteps.numel()
            and not 0 <= timesteps.min() <= timesteps.max() < len(self)
        ):
            raise ValueError(
                f"timesteps from {timesteps.min().item()} to {timesteps.max().item()} do not fit a schedule of "
                f"{len(self)} training timesteps; pass values from 0 to {len(self) - 1}"
            )
        alpha, sigma = self._on(timesteps.device)
        return Level(alpha[timesteps], sigma[timesteps])

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
            self._tables[device] = (self.alpha.to(dtype).to(device), self.sigma.to(dtype).to(device))
        return self._tables[device]


def noise_schedule(
    beta_schedule: str = "scaled_linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    trained_betas: Sequence[float] | Tensor | np.ndarray | None = None,
    rescale_betas_zero_snr: bool = False,
) -> NoiseSchedule:
    """Makes a schedule from diffusers' keywords.

    Args:
        beta_schedule: linear (DDPM, arXiv 2006.11239), scaled_linear (latent diffusion, arXiv 2112.10752),
            squaredcos_cap_v2 or its alias cosine (arXiv 2102.09672, eq. 17), or sigmoid (GeoDiff, arXiv 2203.02923).
        num_train_timesteps: Number of timesteps T.
        beta_start: First beta; the cosine schedule has no use for it.
        beta_end: Last beta; likewise.
        trained_betas: T betas to be used in place of a named schedule.
        rescale_betas_zero_snr: Whether to shift the schedule so that the last timestep is pure noise
            (Algorithm 1 of arXiv 2305.08891).

    Raises:
        ValueError: An unknown name, or numbers that make no schedule.
    """
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps={num_train_timesteps!r}; a schedule needs at least 1")
    if trained_betas is not None:
        betas = torch.as_tensor(trained_betas, dtype=torch.float64).flatten()
        if len(betas) != num_train_timesteps:
            raise ValueError(
                f"trained_betas has {len(betas)} entries for num_train_timesteps={num_train_timesteps}; "
                "pass one beta for each timestep"
            )
    else:
        name = canonical_beta_schedule(beta_schedule)
        betas = BETAS[name](num_train_timesteps, float(beta_start), float(beta_end))
    if not (bool((betas >= 0).all()) and bool((betas[:-1] < 1).all()) and bool(betas[-1] <= 1)):
        raise ValueError(
            f"betas from {betas.min().item():g} to {betas.max().item():g}; each must lie in [0, 1), "
            "the last in [0, 1]; check trained_betas, beta_start and beta_end"
        )
    log_alpha_squared = torch.log1p(-betas).cumsum(0)
    if rescale_betas_zero_snr:
        log_alpha_squared = _end_at_zero_snr(log_alpha_squared)
    return NoiseSchedule(log_alpha_squared - (-torch.expm1(log_alpha_squared)).log())


def spaced_timesteps(
    spacing: str, num_inference_steps: int, num_train_timesteps: int = 1000, steps_offset: int = 0
) -> Tensor:
    """The timesteps a sampler visits, noisiest first. Table 2 of arXiv 2305.08891.

    Args:
        spacing: leading (multiples of T // N, plus the offset), linspace (both ends included) or trailing (the last
            timestep included, the one to use with zero terminal SNR).
        num_inference_steps: Number of steps N, from 1 to T.
        num_train_timesteps: Number of timesteps T of the schedule.
        steps_offset: Added to every timestep of leading; Stable Diffusion's checkpoints use 1.

    Returns:
        (N,) int64 on the CPU.

    Raises:
        ValueError: An unknown spacing, N outside 1 ... T, or timesteps that the schedule does not have.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"timestep_spacing={spacing!r}; choose one of {', '.join(SPACINGS)}")
    if isinstance(num_inference_steps, bool) or int(num_inference_steps) != num_inference_steps:
        raise ValueError(f"num_inference_steps={num_inference_steps!r}; pass a whole number")
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps={num_inference_steps} must lie between 1 and the schedule's {num_train_timesteps} "
            "training timesteps"
        )
    spaced = SPACINGS[spacing](int(num_inference_steps), num_train_timesteps, steps_offset)
    # Rounding of the stride makes trailing one too long for some numbers (61 of 1000), by a timestep of -1.
    timesteps = torch.from_numpy(np.ascontiguousarray(spaced[:num_inference_steps]))
    if not 0 <= timesteps.min() <= timesteps.max() < num_train_timesteps:
        raise ValueError(
            f"steps_offset={steps_offset} with {num_inference_steps} steps reaches timestep {timesteps.max().item()}, "
            f"and the schedule has 0 to {num_train_timesteps - 1}; use fewer steps or another offset"
        )
    return timesteps


def canonical_beta_schedule(name: str) -> str:
    """The name that diffusers knows a beta schedule by.

    Raises:
        ValueError: An unknown name.
    """
    name = _ALIASES.get(name, name)
    if name not in BETAS:
        raise ValueError(
            f"beta_schedule={name!r}; choose one of {', '.join([*BETAS, *_ALIASES])}, or pass trained_betas"
        )
    return name


def _linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()


def _cosine(steps: int, start: float, end: float) -> Tensor:
    """Eq. 17 of arXiv 2102.09672, with its cap of 0.999 on beta."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = torch.cos((time + 0.008) / 1.008 * (math.pi / 2)).square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    return start + (end - start) * torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()


BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}
_ALIASES = {"cosine": "squaredcos_cap_v2"}


# NumPy rather than torch: which way a tie is rounded hangs on the last bit, and diffusers' timesteps are NumPy's.
SPACINGS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": lambda steps, total, offset: np.arange(steps, dtype=np.int64)[::-1] * (total // steps) + offset,
    "linspace": lambda steps, total, offset: np.linspace(0, total - 1, steps)[::-1].round().astype(np.int64),
    "trailing": lambda steps, total, offset: np.arange(total, 0, -total / steps).round().astype(np.int64) - 1,
}


def _end_at_zero_snr(log_alpha_squared: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 2305.08891: shifts and scales alpha so that the first stays and the last becomes 0."""
    alpha = (log_alpha_squared / 2).exp()
    if len(alpha) < 2:
        raise ValueError(
            "rescale_betas_zero_snr needs at least 2 training timesteps: one to keep and one to make noise"
        )
    first, last = alpha[0], alpha[-1]
    return 2 * ((alpha - last) * (first / (first - last))).log()
