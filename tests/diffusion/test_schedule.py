"""Schedules and spacings: what must hold of them whatever another library says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentgen.diffusion import Level, noise_schedule, spaced_timesteps

NAMES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_tables_are_views_of_one_falling_log_snr(name, zero_snr):
    schedule = noise_schedule(name, rescale_betas_zero_snr=zero_snr)
    assert len(schedule) == 1000
    assert schedule.log_snr.dtype == schedule.alpha.dtype == schedule.sigma.dtype == torch.float64
    assert (schedule.log_snr.diff() < 0).all()
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000, dtype=torch.float64))
    torch.testing.assert_close(schedule.alphas_cumprod, (1 - schedule.betas).cumprod(0), rtol=1e-9, atol=1e-14)
    level = schedule.level(torch.arange(1000))
    torch.testing.assert_close(level.log_snr, schedule.log_snr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_rescaling_keeps_the_first_level_and_ends_in_pure_noise(name):
    plain, rescaled = noise_schedule(name), noise_schedule(name, rescale_betas_zero_snr=True)
    assert rescaled.log_snr[-1] == -math.inf
    assert rescaled.alpha[-1] == 0
    assert rescaled.sigma[-1] == 1
    assert rescaled.betas[-1] == 1
    torch.testing.assert_close(rescaled.log_snr[0], plain.log_snr[0], rtol=1e-9, atol=0)
    # An affine map of alpha, Algorithm 1: its differences keep their proportions.
    ratio = rescaled.alpha.diff() / plain.alpha.diff()
    torch.testing.assert_close(ratio, ratio[:1].expand(999), rtol=1e-6, atol=0)


@given(st.lists(st.floats(1e-6, 0.9), min_size=2, max_size=30))
def test_betas_come_back(betas):
    schedule = noise_schedule(trained_betas=betas, num_train_timesteps=len(betas))
    expected = torch.tensor(betas, dtype=torch.float64)
    # A small beta after many large ones is the difference of two large logarithms.
    rounding = torch.finfo(torch.float64).eps * -torch.log1p(-expected).sum().item()
    torch.testing.assert_close(schedule.betas, expected, rtol=1e-9, atol=rounding)


def test_small_betas_keep_their_digits():
    schedule = noise_schedule(trained_betas=[1e-13, 1e-13], num_train_timesteps=2)
    torch.testing.assert_close(schedule.sigma[1].item(), math.sqrt(2e-13), rtol=1e-9, atol=0)


def test_cosine_is_an_alias():
    assert torch.equal(noise_schedule("cosine").log_snr, noise_schedule("squaredcos_cap_v2").log_snr)


@given(st.data(), st.sampled_from(["leading", "linspace", "trailing"]), st.integers(1, 1200))
def test_spacings_fall_and_stay_inside(data, spacing, total):
    steps = data.draw(st.integers(1, total))
    timesteps = spaced_timesteps(spacing, steps, total)
    assert timesteps.dtype == torch.int64
    assert len(timesteps) == steps
    assert (timesteps.diff() < 0).all()
    assert timesteps.min() >= 0
    assert timesteps.max() < total
    if spacing == "trailing":
        assert timesteps[0] == total - 1
    if spacing == "linspace" and steps > 1:
        assert timesteps[0] == total - 1
        assert timesteps[-1] == 0
    if spacing == "leading":
        assert timesteps[-1] == 0


def test_offset_shifts_leading_alone():
    assert torch.equal(spaced_timesteps("leading", 20, 1000, 1), spaced_timesteps("leading", 20, 1000) + 1)
    for spacing in ("linspace", "trailing"):
        assert torch.equal(spaced_timesteps(spacing, 20, 1000, 1), spaced_timesteps(spacing, 20, 1000))


def test_level_of_an_int_and_of_any_shape():
    schedule = noise_schedule()
    assert schedule.level(3).alpha == schedule.alpha[3]
    assert schedule.level(torch.tensor([[1, 2], [3, 4]])).sigma.shape == (2, 2)
    levels = Level.from_log_snr(torch.tensor([-math.inf, 0.0, math.inf], dtype=torch.float64))
    assert levels.log_snr.tolist() == pytest.approx([-math.inf, 0.0, math.inf])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: noise_schedule("quadratic"), "'quadratic'.*scaled_linear"),
        (lambda: noise_schedule(num_train_timesteps=0), "num_train_timesteps=0"),
        (lambda: noise_schedule(trained_betas=[0.1, 0.2]), "2 entries.*1000"),
        (lambda: noise_schedule(trained_betas=[0.1, 1.5], num_train_timesteps=2), "1.5.*trained_betas"),
        (lambda: noise_schedule(trained_betas=[0.1, math.nan], num_train_timesteps=2), "nan.*trained_betas"),
        (lambda: noise_schedule(trained_betas=[1.0, 0.5], num_train_timesteps=2), "must lie in"),
        (lambda: noise_schedule(num_train_timesteps=1, rescale_betas_zero_snr=True), "at least 2"),
        (lambda: spaced_timesteps("karras", 10), "'karras'.*leading, linspace, trailing"),
        (lambda: spaced_timesteps("leading", 0), "num_inference_steps=0"),
        (lambda: spaced_timesteps("leading", 1001), "num_inference_steps=1001.*1000"),
        (lambda: spaced_timesteps("leading", 2.5), "2.5.*whole"),
        (lambda: spaced_timesteps("leading", True), "True.*whole"),
        (lambda: spaced_timesteps("leading", 1000, steps_offset=1), "steps_offset=1.*1000"),
        (lambda: noise_schedule().level(1000), "1000.*0 to 999"),
        (lambda: noise_schedule().level(torch.tensor([-1, 5])), "-1.*0 to 999"),
    ],
)
def test_bad_values_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
