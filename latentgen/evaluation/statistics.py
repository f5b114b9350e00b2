"""What samples say of the whole: means with standard errors, shares with confidence intervals, medians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95% of the normal distribution.
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """So many right of so many."""

    right: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.total:
            raise ValueError(f"{self.right} right of {self.total}; expected a number from 0 to {self.total}")

    @property
    def share(self) -> float:
        """The share itself; NaN of none."""
        return self.right / self.total if self.total else math.nan

    def interval(self, z: float = _Z95) -> tuple[float, float]:
        """Wilson's score interval (1927), by default at 95%; it stays in [0, 1] and is never empty.

        Returns:
            The two ends; (0, 1) where nothing was counted.
        """
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # At 0 and 1 an end is exact, whatever rounding says.
        return (0.0 if self.right == 0 else middle - half), (1.0 if self.right == n else middle + half)


@dataclass(frozen=True)
class Mean:
    """A sample's mean and the standard error of it."""

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Mean of `values`; the standard error is their deviation (n - 1) over sqrt(n), NaN of one value.

        Raises:
            ValueError: There are no values.
        """
        if not values:
            raise ValueError("the mean of no values; expected at least one")
        n, mean = len(values), math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else math.nan
        return cls(mean, math.sqrt(variance / n), n)
