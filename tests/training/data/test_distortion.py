"""Distortions: each leaves what it should leave, and hangs on its own dice alone."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from training.data.distortion import DICE, DistortionConfig, distort

NOTHING = DistortionConfig(**{one.name: 0.0 for one in fields(DistortionConfig)})


def only(**settings: float) -> DistortionConfig:
    return DistortionConfig(**{one.name: settings.get(one.name, 0.0) for one in fields(DistortionConfig)})


def inputs(count: int = 4, side: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4, generator=generator), size=(side, side))
    shape = (count, 3, side, side)
    return smooth * 2 - 1, torch.rand(count, DICE, generator=generator), torch.randn(shape, generator=generator)


def test_without_changes_the_picture_stays() -> None:
    pictures, dice, noise = inputs()
    assert torch.allclose(distort(pictures, dice, noise, NOTHING), pictures, atol=1e-5)


@pytest.mark.parametrize("name", [one.name for one in fields(DistortionConfig)])
def test_each_change_changes(name: str) -> None:
    pictures, dice, noise = inputs(16)
    changed = distort(pictures, dice, noise, only(**{name: max(0.05, getattr(DistortionConfig(), name))}))
    assert (changed - pictures).abs().flatten(1).amax(1).gt(1e-3).any()


def test_a_picture_does_not_hang_on_its_batch() -> None:
    pictures, dice, noise = inputs()
    whole = distort(pictures, dice, noise, DistortionConfig())
    alone = [distort(*(part[i : i + 1] for part in (pictures, dice, noise)), DistortionConfig()) for i in range(4)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-5)


def test_white_stays_white_when_moved_softened_tinted_and_hidden() -> None:
    _, dice, noise = inputs()
    white = torch.ones(4, 3, 24, 24)
    config = only(scale=0.3, aspect=0.1, rotation=0.3, shift=0.2, bend=0.03, soften=2, tint=0.2, hide=1)
    assert torch.allclose(distort(white, dice, noise, config), white, atol=1e-5)


@pytest.mark.parametrize(("number", "expected"), [(3, "across"), (4, "down")])
def test_a_shift_is_a_share_of_the_side(number: int, expected: str) -> None:
    pictures, dice, noise = inputs(1)
    dice[:] = 0.5
    dice[:, number] = 1.0
    moved = distort(pictures, dice, noise, only(shift=0.25))
    place = (slice(None), slice(None), slice(None), slice(0, 18))
    source = (slice(None), slice(None), slice(None), slice(6, 24))
    if expected == "down":
        place, source = ((*one[:2], one[3], one[2]) for one in (place, source))
    assert torch.allclose(moved[place], pictures[source], atol=1e-5)


def test_softening_is_a_binomial_blur() -> None:
    point = torch.ones(2, 3, 9, 9)
    point[:, :, 4, 4] = -1
    _, dice, noise = inputs(2, 9)
    dice[0, 5], dice[1, 5] = 0.0, 1.0
    sharp, soft = distort(point, dice, noise, only(soften=1))
    line = torch.tensor([0.25, 0.5, 0.25])
    assert torch.allclose(sharp, point[0], atol=1e-6)
    assert torch.allclose(1 - soft[0, 3:6, 3:6], 2 * torch.outer(line, line), atol=1e-6)


def test_half_a_pass_is_half_a_blur() -> None:
    pictures, dice, noise = inputs()
    dice[:, 5] = 1.0
    half, whole = (distort(pictures, dice, noise, only(soften=passes)) for passes in (0.5, 1.0))
    assert torch.allclose(half, (pictures + whole) / 2, atol=1e-5)


def test_negative_changes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"distortion\.bend is -1"):
        DistortionConfig(bend=-1)
    with pytest.raises(ValueError, match=r"distortion\.noise is nan"):
        DistortionConfig(noise=float("nan"))
