"""Owns how pictures are distorted for a network that must recognise them: moved, softened, tinted, partly hidden."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DICE", "DistortionConfig", "distort"]

_BUMPS = 5  # the surface that bends a picture has so many free points on each side
_NUMBERS = 15
DICE = _NUMBERS + 2 * _BUMPS * _BUMPS


@dataclass
class DistortionConfig:
    """The greatest changes; each picture gets its own, and 0 leaves a change out.

    Args:
        scale: natural logarithm of the change of size.
        aspect: the same, of width against height.
        rotation: in radians.
        shift: as a share of the side.
        bend: deviation of a smooth shift of every place, as a share of the side.
        soften: passes of a 3x3 binomial blur, not a whole number; a third of the pictures stay sharp.
        tint: change of each channel's distance from white, as a share; small, for skin tones must stay what they are.
        brightness: change of all values, which lie in [-1, 1].
        noise: deviation of the noise.
        hide: share of the pictures of which a square is hidden, of up to a third of the side.
    """

    scale: float = 0.2
    aspect: float = 0.06
    rotation: float = 0.14
    shift: float = 0.07
    bend: float = 0.012
    soften: float = 2.0
    tint: float = 0.05
    brightness: float = 0.03
    noise: float = 0.12
    hide: float = 0.2

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) >= 0:
                raise ValueError(f"distortion.{one.name} is {getattr(self, one.name)}, but must be at least 0.")


def distort(pictures: Tensor, dice: Tensor, noise: Tensor, config: DistortionConfig) -> Tensor:
    """Distorts each picture by its own dice alone, whatever the batch.

    Args:
        pictures: (B, 3, S, S) in [-1, 1], on white.
        dice: (B, DICE), uniform in [0, 1).
        noise: (B, 3, S, S), standard normal.
        config: How much.

    Returns:
        (B, 3, S, S); noise and tint may leave [-1, 1] a little.
    """
    numbers, bumps = dice[:, :_NUMBERS].T, dice[:, _NUMBERS:]
    moved = _move(pictures, numbers[:5] * 2 - 1, bumps.unflatten(1, (2, _BUMPS, _BUMPS)) * 2 - 1, config)
    soft = _soften(moved, numbers[5], config.soften)
    gain = 1 + config.tint * (2 * numbers[6:9].T - 1)
    lift = config.brightness * (2 * numbers[9] - 1)
    tinted = (soft - 1) * gain[:, :, None, None] + 1 + lift[:, None, None, None]
    noisy = tinted + noise * (config.noise * numbers[10].square())[:, None, None, None]
    return _hide(noisy, numbers[11:15], config.hide)


def _move(pictures: Tensor, moves: Tensor, bumps: Tensor, config: DistortionConfig) -> Tensor:
    size, aspect, angle = config.scale * moves[0], config.aspect * moves[1], config.rotation * moves[2]
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Rows of the map from places in the result to places in the picture, both in [-1, 1].
    across = torch.stack([cos * torch.exp(aspect - size), -sin * torch.exp(-size), 2 * config.shift * moves[3]], 1)
    down = torch.stack([sin * torch.exp(-size), cos * torch.exp(-size - aspect), 2 * config.shift * moves[4]], 1)
    places = F.affine_grid(torch.stack([across, down], 1), list(pictures.shape), align_corners=False)
    # Uniform numbers have the deviation 1/sqrt(3); sides are 2 long here.
    bend = F.interpolate(bumps, size=pictures.shape[-2:], mode="bicubic", align_corners=False) * (2 * 3**0.5)
    places = places + config.bend * bend.permute(0, 2, 3, 1)
    # White is 0 while the picture is moved, for that is what comes in from outside.
    return F.grid_sample(pictures - 1, places, mode="bilinear", padding_mode="zeros", align_corners=False) + 1


def _soften(pictures: Tensor, die: Tensor, passes: float) -> Tensor:
    left = (((die - 1 / 3) * 1.5).clamp(0, 1) * passes)[:, None, None, None]
    line = torch.tensor([0.25, 0.5, 0.25], device=pictures.device, dtype=pictures.dtype)
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    for _ in range(int(-(-passes // 1))):
        blurred = F.conv2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
        pictures = torch.lerp(pictures, blurred, left.clamp(0, 1).expand_as(pictures))
        left = left - 1
    return pictures


def _hide(pictures: Tensor, dice: Tensor, share: float) -> Tensor:
    whether, side, x, y = dice
    half = (0.05 + 0.12 * side)[:, None]
    places = (torch.arange(pictures.shape[-1], device=pictures.device) + 0.5) / pictures.shape[-1]
    columns, rows = (places - x[:, None]).abs() < half, (places - y[:, None]).abs() < half
    hidden = rows[:, None, :, None] & columns[:, None, None, :] & (whether < share)[:, None, None, None]
    return torch.where(hidden, torch.ones_like(pictures), pictures)
