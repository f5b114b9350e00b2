"""The reverse step: Bayes' rule at eta = 1, right marginals at every eta, and both ends of the schedule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentgen.diffusion import CLEAN, Level, diffuse, noise_schedule, reverse_step, spaced_timesteps

ETAS = st.floats(0, 1)


def level(log_snr: float) -> Level:
    return Level.from_log_snr(torch.tensor(log_snr, dtype=torch.float64))


@st.composite
def levels(draw) -> tuple[Level, Level]:
    """A level and a cleaner one."""
    below = draw(st.floats(-12, 11))
    return level(below), level(draw(st.floats(below + 1e-3, 12)))


@given(levels(), st.integers(0, 99))
def test_eta_of_one_is_the_gaussian_posterior(pair, seed):
    now, nxt = pair
    x0, x = torch.randn(2, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Bayes' rule: x_nxt is known from x0 before x is seen, and x is x_nxt with more noise. Precisions add up.
    kept = now.alpha / nxt.alpha
    added = now.sigma**2 - kept**2 * nxt.sigma**2
    precision = 1 / nxt.sigma**2 + kept**2 / added
    mean = (nxt.alpha * x0 / nxt.sigma**2 + kept * x / added) / precision
    step = reverse_step(now, nxt)
    eps = (x - now.alpha * x0) / now.sigma
    torch.testing.assert_close(step(x0, eps, eta=1.0), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(step.deviation(1.0), precision**-0.5, rtol=1e-6, atol=1e-12)
    least, greatest = step.variance_bounds
    torch.testing.assert_close(least, 1 / precision, rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(greatest, added, rtol=1e-6, atol=1e-14)


@given(levels(), ETAS)
def test_variances_add_up_to_the_next_marginal(pair, eta):
    now, nxt = pair
    step = reverse_step(now, nxt)
    total = step.direction(eta) ** 2 + step.deviation(eta) ** 2
    torch.testing.assert_close(total, nxt.sigma**2, rtol=1e-12, atol=0)


@given(levels(), st.floats(0.01, 1))
def test_steps_without_fresh_noise_compose(pair, share):
    now, end = pair
    log_now, log_end = now.log_snr.item(), end.log_snr.item()
    middle = level(log_now + share * (log_end - log_now))
    x0, eps = torch.randn(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = reverse_step(now, middle)(x0, eps)
    eps_there = (there - middle.alpha * x0) / middle.sigma
    torch.testing.assert_close(reverse_step(middle, end)(x0, eps_there), reverse_step(now, end)(x0, eps))


@given(ETAS)
def test_both_ends(eta):
    noise, clean = level(-math.inf), level(math.inf)
    x0, eps, fresh = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for start, end in ((noise, clean), (level(0.3), CLEAN), (noise, CLEAN)):
        torch.testing.assert_close(reverse_step(start, end)(x0, eps, eta, fresh), x0)
    nxt = level(-1.0)
    kept, renewed = math.sqrt(1 - eta**2) * nxt.sigma, eta * nxt.sigma  # pure noise knows nothing of x0: all is renewed
    wanted = nxt.alpha * x0 + kept * eps + renewed * fresh
    torch.testing.assert_close(reverse_step(noise, nxt)(x0, eps, eta, fresh), wanted)
    for same in (noise, nxt):
        torch.testing.assert_close(reverse_step(same, same)(x0, eps, eta, fresh), diffuse(x0, eps, same))


def test_a_batch_can_step_to_one_level():
    now = Level.from_log_snr(torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64))
    x0, eps = torch.randn(2, 3, 2, 5)
    torch.testing.assert_close(reverse_step(now, CLEAN)(x0, eps), x0)
    torch.testing.assert_close(reverse_step(now, Level(0.6, 0.8))(x0, eps), 0.6 * x0 + 0.8 * eps)


def test_inversion_adds_no_noise():
    now, noisier = level(2.0), level(-1.0)
    x0, eps, fresh = torch.randn(3, 20, dtype=torch.float64)
    torch.testing.assert_close(reverse_step(now, noisier)(x0, eps, 1.0, fresh), diffuse(x0, eps, noisier))


def test_batches_of_levels_and_floats_agree():
    now = Level.from_log_snr(torch.tensor([-math.inf, -3.0, 0.0, 4.0], dtype=torch.float64))
    nxt = Level.from_log_snr(torch.tensor([-2.0, -1.0, math.inf, 5.0], dtype=torch.float64))
    x0, eps, fresh = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64)
    step = reverse_step(now, nxt)
    together = step(x0, eps, 0.7, fresh)
    for i, one in enumerate(step.unbind()):
        assert all(isinstance(value, float) for value in (one.now.alpha, one.nxt.sigma, one.renewed))
        torch.testing.assert_close(one(x0[i], eps[i], 0.7, fresh[i]), together[i])
    wanted = step(x0, eps, 1.0) + 0.5 * fresh
    torch.testing.assert_close(step(x0, eps, 1.0, fresh, deviation=torch.full((4,), 0.5).double()), wanted)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_must_be_a_share(eta):
    with pytest.raises(ValueError, match=r"eta=.*between 0.*and 1"):
        reverse_step(level(0.0), level(1.0))(torch.zeros(1), torch.zeros(1), eta)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    ("eta", "spacing", "steps"), [(0.0, "trailing", 500), (0.5, "linspace", 500), (1.0, "leading", 1000)]
)
def test_gaussian_data_come_back_with_their_mean_and_variance(eta, spacing, steps, zero_snr):
    """The exact denoiser of N(mean, spread^2) makes every step linear: moments of the loop follow without sampling."""
    schedule, data_mean, data_variance = noise_schedule("linear", 1000, 1e-4, 0.02, None, zero_snr), 0.7, 0.25
    timesteps = spaced_timesteps(spacing, steps, 1000)
    stops = [schedule.level(t.item()) for t in timesteps]
    mean, variance = stops[0].alpha * data_mean, stops[0].alpha ** 2 * data_variance + stops[0].sigma ** 2
    for now, nxt in itertools.pairwise([*stops, level(math.inf)]):
        step = reverse_step(now, nxt)

        def land(x, now=now, step=step):
            gain = now.alpha * data_variance / (now.alpha**2 * data_variance + now.sigma**2)
            x0 = data_mean + gain * (x - now.alpha * data_mean)
            return step(x0, (x - now.alpha * x0) / now.sigma, eta)

        origin = land(torch.zeros((), dtype=torch.float64))
        slope = land(torch.ones((), dtype=torch.float64)) - origin
        mean, variance = slope * mean + origin, slope**2 * variance + step.deviation(eta) ** 2
    assert mean.item() == pytest.approx(data_mean, abs=1e-9)  # a linear denoiser keeps the mean exactly
    assert variance.item() == pytest.approx(data_variance, rel=0.02)  # the variance up to the size of the steps
