"""The diagonal Gaussian against torch.distributions and against the law of large numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from latentgen.models import DiagonalGaussian


def gaussian(seed: int, spread: float = 1.0) -> tuple[DiagonalGaussian, Independent]:
    """Ours and torch's, of shape (3, 2, 4, 5), in float64."""
    parameters = spread * torch.randn(3, 4, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean, logvar = parameters.chunk(2, dim=1)
    return DiagonalGaussian(parameters), Independent(Normal(mean, torch.exp(0.5 * logvar)), 3)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), other=st.integers(0, 10_000), spread=st.floats(0.01, 3.0))
def test_divergence_and_density(seed: int, other: int, spread: float) -> None:
    (ours, theirs), (our_other, their_other) = gaussian(seed, spread), gaussian(other)
    standard = Independent(Normal(torch.zeros_like(ours.mean), torch.ones_like(ours.mean)), 3)
    torch.testing.assert_close(ours.kl(), kl_divergence(theirs, standard))
    torch.testing.assert_close(ours.kl(our_other), kl_divergence(theirs, their_other))
    point = our_other.mean
    torch.testing.assert_close(ours.nll(point), -theirs.log_prob(point))
    torch.testing.assert_close(ours.nll(point, dims=(1,)), -theirs.base_dist.log_prob(point).sum(1))


def test_divergence_from_itself_is_zero_and_from_others_is_not() -> None:
    ours, _ = gaussian(0)
    torch.testing.assert_close(ours.kl(ours), torch.zeros(3, dtype=torch.float64))
    assert (ours.kl(gaussian(1)[0]) > 0).all()
    assert (DiagonalGaussian(torch.zeros(2, 4, 3, 3)).kl() == 0).all()


def test_draws_have_the_mean_and_the_deviation() -> None:
    parameters = torch.tensor([1.5, -2.0, -3.0, 1.0]).view(1, 4, 1, 1).expand(1, 4, 300, 300)
    ours = DiagonalGaussian(parameters)
    draw = ours.sample(torch.Generator().manual_seed(0))
    std, mean = torch.std_mean(draw, dim=(2, 3))
    torch.testing.assert_close(mean, ours.mean[..., 0, 0], atol=0.02, rtol=0)
    torch.testing.assert_close(std, ours.std[..., 0, 0], rtol=0.01, atol=0)
    torch.testing.assert_close(ours.std.square(), ours.var)
    assert torch.equal(ours.mode(), ours.mean)


def test_draws_follow_their_generator() -> None:
    ours, _ = gaussian(0)
    one, again, other = (ours.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    torch.manual_seed(3)
    first = ours.sample()
    torch.manual_seed(3)
    assert torch.equal(ours.sample(), first)


def test_a_row_with_its_own_generator_does_not_see_its_neighbours() -> None:
    ours, _ = gaussian(0)
    together = ours.sample([torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    for i, seed in enumerate((5, 6, 7)):
        alone = DiagonalGaussian(ours.parameters[i : i + 1]).sample([torch.Generator().manual_seed(seed)])
        assert torch.equal(alone, together[i : i + 1])
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        ours.sample([torch.Generator(), torch.Generator()])


def test_gradients_of_a_draw() -> None:
    parameters = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def draw(parameters: torch.Tensor) -> torch.Tensor:
        return DiagonalGaussian(parameters).sample(torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(draw, (parameters,))


def test_extreme_log_variances_stay_finite() -> None:
    ours = DiagonalGaussian(torch.tensor([0.0, 1e4]).view(1, 2, 1, 1))
    theirs = DiagonalGaussian(torch.tensor([0.0, -1e4]).view(1, 2, 1, 1))
    for posterior in (ours, theirs):
        assert posterior.sample().isfinite().all()
        assert posterior.kl().isfinite().all()
    assert ours.kl() > 0
    assert theirs.kl() > 0
