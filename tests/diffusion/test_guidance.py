"""Classifier-free guidance and its rescaling."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from hypothesis import given
from hypothesis import strategies as st

from latentgen.diffusion import classifier_free

CONDITIONAL, UNCONDITIONAL = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_ends_are_exact():
    assert torch.equal(classifier_free(CONDITIONAL, UNCONDITIONAL, 1.0), CONDITIONAL)
    assert torch.equal(classifier_free(CONDITIONAL, UNCONDITIONAL, 0.0), UNCONDITIONAL)
    torch.testing.assert_close(classifier_free(CONDITIONAL, UNCONDITIONAL, 1.0, rescale=1.0), CONDITIONAL)


@given(st.floats(-5, 30), st.floats(0, 1))
def test_equals_diffusers(scale, rescale):
    wanted = UNCONDITIONAL + scale * (CONDITIONAL - UNCONDITIONAL)
    if rescale:
        wanted = rescale_noise_cfg(wanted, CONDITIONAL, guidance_rescale=rescale)
    torch.testing.assert_close(
        classifier_free(CONDITIONAL, UNCONDITIONAL, scale, rescale), wanted, rtol=1e-4, atol=1e-4
    )


@given(st.floats(1.1, 30))
def test_full_rescaling_restores_the_deviation_of_each_sample(scale):
    guided = classifier_free(CONDITIONAL, UNCONDITIONAL, scale, rescale=1.0)
    torch.testing.assert_close(guided.flatten(1).std(1), CONDITIONAL.flatten(1).std(1), rtol=1e-4, atol=0)


def test_a_constant_prediction_stays_finite():
    assert classifier_free(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 5.0, rescale=0.7).isfinite().all()


@pytest.mark.parametrize(
    ("scale", "rescale", "said"),
    [(math.inf, 0.0, "inf.*finite"), (math.nan, 0.0, "nan.*finite"), (5.0, 1.5, "1.5.*between 0 and 1")],
)
def test_bad_values_are_named(scale, rescale, said):
    with pytest.raises(ValueError, match=said):
        classifier_free(CONDITIONAL, UNCONDITIONAL, scale, rescale)
