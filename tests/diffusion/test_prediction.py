"""Prediction types: `split` undoes `target`, at every level and for every kind."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentgen.diffusion import CLEAN, PREDICTIONS, Level, diffuse, score, split, target

LOG_SNRS = st.floats(-20, 20)
SHAPE = (3, 2, 4)


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x0, eps = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x0, eps


@given(st.sampled_from(sorted(PREDICTIONS)), st.lists(LOG_SNRS, min_size=3, max_size=3), st.integers(0, 99))
def test_split_inverts_target(prediction, log_snrs, seed):
    x0, eps = draw(seed)
    level = Level.from_log_snr(torch.tensor(log_snrs, dtype=torch.float64))
    found = split(prediction, diffuse(x0, eps, level), target(prediction, x0, eps, level), level)
    for part, wanted in zip(found, (x0, eps), strict=True):  # e^10 is the worst factor of either end
        torch.testing.assert_close(part, wanted, rtol=0, atol=1e-10)


@given(st.sampled_from(sorted(PREDICTIONS)), LOG_SNRS, st.integers(0, 99))
def test_levels_of_floats_and_of_tensors_agree(prediction, log_snr, seed):
    x0, eps = draw(seed)
    tensors = Level.from_log_snr(torch.full((3,), log_snr, dtype=torch.float64))
    floats = Level(tensors.alpha[0].item(), tensors.sigma[0].item())
    x, out = diffuse(x0, eps, tensors), target(prediction, x0, eps, tensors)
    torch.testing.assert_close(diffuse(x0, eps, floats), x)
    torch.testing.assert_close(target(prediction, x0, eps, floats), out)
    for found, wanted in zip(split(prediction, x, out, floats), split(prediction, x, out, tensors), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@given(st.sampled_from(["sample", "flow"]), st.floats(0.05, 0.95), st.integers(0, 99))
def test_levels_need_not_preserve_variance(prediction, time, seed):
    x0, eps = draw(seed)
    level = Level(1 - time, time)  # rectified flow
    for part, wanted in zip(
        split(prediction, diffuse(x0, eps, level), target(prediction, x0, eps, level), level), (x0, eps), strict=True
    ):
        torch.testing.assert_close(part, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "flow"])
@pytest.mark.parametrize("kind", ["floats", "tensors"])
def test_pure_noise_can_be_read(prediction, kind):
    x0, eps = draw(0)
    level = Level(0.0, 1.0) if kind == "floats" else Level.from_log_snr(torch.full((3,), -math.inf).double())
    found = split(prediction, eps, target(prediction, x0, eps, level), level)
    torch.testing.assert_close(found, (x0, eps))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_clean_data_can_be_read(prediction):
    x0, eps = draw(0)
    torch.testing.assert_close(split(prediction, x0, target(prediction, x0, eps, CLEAN), CLEAN), (x0, eps))


@pytest.mark.parametrize(
    ("prediction", "level", "said"),
    [
        ("epsilon", Level(0.0, 1.0), "'epsilon'.*zero terminal SNR.*v_prediction"),
        ("epsilon", Level.from_log_snr(torch.tensor([0.0, -math.inf, 0.0])), "'epsilon'.*zero terminal SNR"),
        ("sample", Level(1.0, 0.0), "'sample'.*no noise"),
        ("noise", Level(0.6, 0.8), "'noise'.*epsilon, sample, v_prediction, flow"),
    ],
)
def test_dead_ends_are_named(prediction, level, said):
    x0, eps = draw(0)
    with pytest.raises(ValueError, match=said):
        split(prediction, x0, eps, level)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_keep_the_dtype_of_the_data(dtype):
    x0, eps = (part.to(dtype) for part in draw(0))
    for level in (Level.from_log_snr(torch.zeros(3, dtype=torch.float64)), Level(0.6, 0.8)):
        results = [diffuse(x0, eps, level), score(eps, level)]
        for prediction in PREDICTIONS:
            results += [target(prediction, x0, eps, level), *split(prediction, x0, eps, level)]
        assert {result.dtype for result in results} == {dtype}


def test_score_is_the_gradient_of_the_log_density():
    x0, eps = draw(0)
    level = Level.from_log_snr(torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64))
    x = diffuse(x0, eps, level).requires_grad_()
    fitted = level.to(x0)
    torch.distributions.Normal(fitted.alpha * x0, fitted.sigma).log_prob(x).sum().backward()
    torch.testing.assert_close(score(eps, level), x.grad)
