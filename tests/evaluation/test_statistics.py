"""Shares with Wilson's interval, and means with their standard errors."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgen.evaluation import Mean, Share


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.1, 4))
def test_the_ends_of_wilsons_interval_are_where_the_score_test_is_just_passed(
    counts: tuple[int, int], z: float
) -> None:
    share = Share(*counts)
    low, high = share.interval(z)
    assert 0 <= low <= share.share <= high <= 1
    for end in (low, high):
        # The defining equation: |p - end| = z sqrt(end (1 - end) / n).
        assert abs(share.share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / share.total), abs=1e-7)


def test_a_share_of_nothing_says_nothing() -> None:
    assert math.isnan(Share(0, 0).share)
    assert Share(0, 0).interval() == (0.0, 1.0)


@pytest.mark.parametrize("counts", [(2, 1), (-1, 3)])
def test_impossible_shares_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="right of"):
        Share(*counts)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_mean_and_its_standard_error(values: list[float]) -> None:
    found = Mean.of(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), rel=1e-6, abs=1e-6)
    assert found.count == len(values)


def test_one_value_has_no_standard_error_and_none_has_no_mean() -> None:
    assert math.isnan(Mean.of([3.0]).error)
    with pytest.raises(ValueError, match="at least one"):
        Mean.of([])
