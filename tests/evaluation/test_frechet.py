"""The Fréchet distance against its analytic cases."""

from __future__ import annotations

import pytest
import torch

from latentgen.evaluation import FeatureStatistics, frechet_distance


def features(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: list[float], covariance: torch.Tensor) -> FeatureStatistics:
    return FeatureStatistics(torch.tensor(mean, dtype=torch.float64), covariance.double(), 100)


def test_statistics_do_not_hang_on_the_batches_even_far_from_zero() -> None:
    whole = features(50, 4) + 1e6
    found = FeatureStatistics.of(iter(whole.split([1, 7, 30, 12])))
    assert found.count == 50
    assert torch.allclose(found.mean, whole.mean(0), rtol=1e-12)
    assert torch.allclose(found.covariance, torch.cov(whole.T), rtol=1e-6, atol=1e-6)


def test_of_the_same_set_it_is_zero() -> None:
    one = FeatureStatistics.of([features(40, 6)])
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_between_moved_sets_it_is_the_squared_distance_of_the_means() -> None:
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    one, other = FeatureStatistics.of([features(40, 3)]), FeatureStatistics.of([features(40, 3) + shift])
    assert frechet_distance(one, other) == pytest.approx(shift.square().sum().item(), rel=1e-9)


def test_between_diagonal_gaussians_deviations_are_subtracted() -> None:
    a, b = torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 16.0, 25.0])
    one, other = gaussian([0, 0, 0], torch.diag(a)), gaussian([1, 0, 0], torch.diag(b))
    assert frechet_distance(one, other) == pytest.approx(1 + (a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-9)


def test_it_is_the_same_in_a_turned_basis_and_the_other_way_round() -> None:
    turn, _ = torch.linalg.qr(features(5, 5, seed=3))
    sets = features(60, 5), features(60, 5, seed=1) @ features(5, 5, seed=2) + 1
    one, other = (FeatureStatistics.of([part]) for part in sets)
    turned = [FeatureStatistics.of([part @ turn]) for part in sets]
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other), rel=1e-9)
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(one, other), rel=1e-9)


def test_fewer_pictures_than_features_still_give_a_distance() -> None:
    one, other = (FeatureStatistics.of([features(4, 16, seed)]) for seed in (0, 1))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, other) > 1


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([features(1, 3)], "1 feature vectors; expected at least 2"),
        ([], "0 feature vectors"),
        ([features(3, 3), features(3, 4)], r"expected \(B, 3\)"),
        ([features(3, 3)[0]], r"expected \(B, D\)"),
        ([features(3, 3) * torch.nan], "NaN"),
    ],
)
def test_bad_features_are_refused(batches: list[torch.Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FeatureStatistics.of(batches)


def test_distances_need_equal_features() -> None:
    with pytest.raises(ValueError, match="same features twice"):
        frechet_distance(*(FeatureStatistics.of([features(9, width)]) for width in (3, 4)))
