"""Loss weights and drawn timesteps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentgen.diffusion import PREDICTIONS, Level, diffuse, draw_timesteps, loss_weight, noise_schedule, split, target
from latentgen.diffusion.objective import WEIGHTINGS, require_learnable

LOG_SNRS = torch.linspace(-15, 15, 61, dtype=torch.float64)
SNRS = LOG_SNRS.exp()
ZERO_SNR = noise_schedule(rescale_betas_zero_snr=True).log_snr


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        ("epsilon", SNRS.clamp(max=5) / SNRS),
        ("sample", SNRS.clamp(max=5)),
        ("v_prediction", SNRS.clamp(max=5) / (SNRS + 1)),
        ("flow", SNRS.clamp(max=5) / (SNRS.sqrt() + 1) ** 2),
    ],
)
def test_min_snr_in_every_prediction_type(prediction, wanted):
    torch.testing.assert_close(loss_weight(LOG_SNRS, prediction, "min_snr"), wanted)


@pytest.mark.parametrize(
    ("weighting", "keywords", "wanted"),
    [
        ("epsilon", {}, torch.ones_like(SNRS)),
        ("x0", {}, 1 / SNRS),
        ("truncated_snr", {}, (1 / SNRS).clamp(min=1)),
        ("min_snr", {"gamma": 2.0}, (2 / SNRS).clamp(max=1)),
        ("soft_min_snr", {}, 5 / (SNRS + 5)),
        ("p2", {}, 1 / (1 + SNRS)),
        ("p2", {"gamma": 0.5, "k": 2.0}, (2 + SNRS) ** -0.5),
        ("debiased", {}, SNRS**-0.5),
        ("simple", {}, torch.ones_like(SNRS)),
    ],
)
def test_weights_on_the_error_of_epsilon_are_those_of_the_papers(weighting, keywords, wanted):
    torch.testing.assert_close(loss_weight(LOG_SNRS, "epsilon", weighting, **keywords), wanted)


@given(st.sampled_from(sorted(WEIGHTINGS)), st.floats(-10, 10), st.integers(0, 99))
def test_one_denoiser_has_one_loss_whatever_it_is_asked_for(weighting, log_snr, seed):
    """The same wrong x0, put as each prediction type, must weigh the same."""
    x0, eps, wrong = torch.randn(3, 1, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_snr = torch.tensor([log_snr], dtype=torch.float64)
    level = Level.from_log_snr(log_snr)
    x = diffuse(x0, eps, level)
    _, wrong_eps = split("sample", x, wrong, level)
    losses = []
    for prediction in PREDICTIONS:
        error = target(prediction, wrong, wrong_eps, level) - target(prediction, x0, eps, level)
        losses.append(loss_weight(log_snr, prediction, weighting) * error.square().mean())
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(len(losses), 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("weighting", ["simple", *WEIGHTINGS])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "flow"])
def test_weights_are_finite_at_zero_terminal_snr(weighting, prediction):
    weights = loss_weight(ZERO_SNR.float(), prediction, weighting)
    assert weights.dtype == torch.float32
    assert weights.shape == ZERO_SNR.shape
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_epsilon_is_refused_at_zero_terminal_snr():
    for refuse in (lambda: loss_weight(ZERO_SNR, "epsilon", "min_snr"), lambda: require_learnable("epsilon", ZERO_SNR)):
        with pytest.raises(ValueError, match=r"'epsilon'.*zero terminal SNR.*v_prediction"):
            refuse()
    require_learnable("v_prediction", ZERO_SNR)
    require_learnable("epsilon", noise_schedule().log_snr)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: loss_weight(LOG_SNRS, "epsilon", "max_snr"), "'max_snr'.*simple.*min_snr"),
        (lambda: loss_weight(LOG_SNRS, "score", "min_snr"), "'score'.*epsilon"),
        (lambda: loss_weight(LOG_SNRS, "epsilon", "min_snr", gamma=0.0), "gamma=0.0.*positive"),
        (lambda: draw_timesteps(torch.rand(2), ZERO_SNR, "cosmap"), "'cosmap'.*logit_normal"),
        (lambda: draw_timesteps(torch.rand(2), ZERO_SNR, "logit_normal", deviation=0.0), "deviation=0.0.*positive"),
    ],
)
def test_bad_values_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


U = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000


def test_uniform_draws_give_every_timestep_its_share():
    counts = draw_timesteps(U, ZERO_SNR).bincount(minlength=1000)
    assert counts.tolist() == [200] * 1000


def test_logit_normal_draws_have_its_moments():
    drawn = (draw_timesteps(U, ZERO_SNR, "logit_normal", mean=0.5, deviation=0.8) + 0.5) / 1000
    logits = drawn.double().logit()
    assert logits.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logits.std().item() == pytest.approx(0.8, abs=0.01)


def test_log_snr_normal_draws_have_its_moments():
    log_snr = noise_schedule().log_snr
    drawn = log_snr[draw_timesteps(U, log_snr, "log_snr_normal", mean=-0.5, deviation=1.0)]
    assert drawn.mean().item() == pytest.approx(-0.5, abs=0.01)
    assert drawn.std().item() == pytest.approx(1.0, abs=0.01)


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1),
    st.sampled_from(["uniform", "logit_normal", "log_snr_normal"]),
)
def test_draws_are_in_range_and_rise_with_u(u, density):
    u = torch.tensor(sorted(u), dtype=torch.float64)
    for deviation in (0.01, 1.0, 50.0):
        drawn = draw_timesteps(u, ZERO_SNR, density, deviation=deviation)
        assert drawn.dtype == torch.int64
        assert drawn.min() >= 0
        assert drawn.max() < 1000
        assert (drawn.diff() >= 0).all()
