"""Samplers behind diffusers' scheduler interface, each a thin step over `latentgen.diffusion`."""

from latentgen.schedulers.base import DiscreteScheduler, StepOutput
from latentgen.schedulers.ddim import DDIMScheduler
from latentgen.schedulers.ddpm import DDPMScheduler

__all__ = ["DDIMScheduler", "DDPMScheduler", "DiscreteScheduler", "StepOutput"]
