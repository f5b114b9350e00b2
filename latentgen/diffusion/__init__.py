"""The mathematics of diffusion in pure torch: it knows no network, no file and no library of models.

`level.py` has the glossary. Every formulation is a view of one table, log-SNR over time.
"""

from latentgen.diffusion.guidance import classifier_free
from latentgen.diffusion.level import CLEAN, Level, diffuse
from latentgen.diffusion.objective import draw_timesteps, loss_weight, require_learnable
from latentgen.diffusion.prediction import PREDICTIONS, score, split, target
from latentgen.diffusion.schedule import NoiseSchedule, noise_schedule, spaced_timesteps
from latentgen.diffusion.transition import ReverseStep, reverse_step

__all__ = [
    "CLEAN",
    "PREDICTIONS",
    "Level",
    "NoiseSchedule",
    "ReverseStep",
    "classifier_free",
    "diffuse",
    "draw_timesteps",
    "loss_weight",
    "noise_schedule",
    "require_learnable",
    "reverse_step",
    "score",
    "spaced_timesteps",
    "split",
    "target",
]
