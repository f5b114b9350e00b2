"""PSNR and SSIM against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgen.evaluation import psnr, ssim


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.floats(1e-3, 0.5), min_size=1, max_size=4))
@settings(max_examples=20)
def test_psnr_of_a_constant_error_is_its_logarithm(errors: list[float]) -> None:
    offset = torch.tensor(errors, dtype=torch.float64)
    flat = torch.zeros(len(errors), 3, 4, 4, dtype=torch.float64)
    measured = psnr(flat + offset[:, None, None, None], flat)
    assert measured.tolist() == pytest.approx([-20 * math.log10(error) for error in errors])


def test_psnr_of_equal_pictures_is_infinite_and_each_picture_stands_alone() -> None:
    a, b = pictures(2, 3, 8, 8), pictures(2, 3, 8, 8, seed=1)
    both = psnr(torch.cat([a, b]), torch.cat([a, a]))
    assert both[:2].isinf().all()
    assert torch.equal(both[2:], psnr(b, a))


def test_ssim_of_flat_pictures_is_the_comparison_of_their_means() -> None:
    # Without any variance only the first factor of Eq. 13 is left: (2 a b + c1) / (a² + b² + c1), c1 = 0.01².
    a, b = 0.3, 0.8
    flat = torch.ones(1, 3, 16, 16)
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(flat * a, flat * b).tolist() == pytest.approx([expected], rel=1e-5)


def test_ssim_is_one_for_equal_pictures_and_is_measured_for_each() -> None:
    a, b = pictures(2, 3, 16, 16), pictures(2, 3, 16, 16, seed=1)
    both = ssim(torch.cat([a, b]), torch.cat([a, a]))
    assert both.shape == (4,)
    assert both[:2].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert torch.allclose(both[2:], ssim(b, a), atol=1e-5)
    assert ssim(b[:1], a[:1]).shape == (1,)


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (pictures(1, 3, 16, 16), pictures(2, 3, 16, 16), "expected one shape"),
        (pictures(3, 16, 16), pictures(3, 16, 16), "expected one shape"),
        (pictures(1, 3, 16, 16) * 2 - 1, pictures(1, 3, 16, 16), r"pictures range over .* expected \[0, 1\]"),
        (pictures(1, 3, 16, 16), pictures(1, 3, 16, 16) * math.nan, "targets range over"),
    ],
)
def test_what_cannot_be_compared_is_refused(measure, one, other, says) -> None:
    with pytest.raises(ValueError, match=says):
        measure(one, other)


def test_ssim_needs_room_for_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        ssim(pictures(1, 3, 8, 16), pictures(1, 3, 8, 16))
