"""The Fréchet distance between two sets of pictures, in whatever features they are seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and covariance (D, D), both float64, of `count` feature vectors."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> FeatureStatistics:
        """Statistics of features (B, D) that come in batches; the covariance is that of a sample (n - 1).

        Raises:
            ValueError: Fewer than two vectors, a batch of another shape, or features that are not finite.
        """
        count, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
        for batch in batches:
            if batch.ndim != 2 or (count and batch.shape[1] != len(mean)):
                raise ValueError(f"features {tuple(batch.shape)}; expected (B, {len(mean) if count else 'D'})")
            if not batch.isfinite().all():
                raise ValueError("some features are NaN or infinite; look at the pictures that they come from")
            if not len(batch):
                continue
            batch = batch.detach().double().cpu()
            own = batch.mean(0)
            spread = (batch - own).T @ (batch - own)
            if not count:
                count, mean, scatter = len(batch), own, spread
                continue
            # Two groups' scatter about their common mean (Chan, Golub and LeVeque 1979), stable where sums are not.
            total, shift = count + len(batch), own - mean
            scatter = scatter + spread + torch.outer(shift, shift) * (count * len(batch) / total)
            mean = mean + shift * (len(batch) / total)
            count = total
        if count < 2:
            raise ValueError(f"statistics of {count} feature vectors; expected at least 2")
        return cls(mean, scatter / (count - 1), count)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Squared Wasserstein-2 distance of two Gaussians (Eq. 6 of TTUR, arXiv 1706.08500).

    |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½), which with Inception's features is known as FID. It is biased by the
    number of pictures: compare only distances of equal numbers, in equal features.

    Raises:
        ValueError: The features have different widths.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"features of {len(one.mean)} and {len(other.mean)} values; expected the same features twice")
    values, vectors = torch.linalg.eigh(one.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # The product is symmetric, so its root's trace needs no matrix root; rounding may leave tiny negative values.
    cross = torch.linalg.eigvalsh(root @ other.covariance @ root).clamp_min(0).sqrt().sum()
    apart = (one.mean - other.mean).square().sum()
    return max(0.0, float(apart + one.covariance.trace() + other.covariance.trace() - 2 * cross))
