"""Contenders take turns; what is reported is what was timed."""

from __future__ import annotations

import time

import pytest

from latentgen.evaluation import interleaved, median_ratio


def test_contenders_take_turns_and_warm_up_uncounted() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmups=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_each_is_charged_with_its_own_time() -> None:
    seconds = interleaved({"idle": lambda: None, "sleeper": lambda: time.sleep(0.01)}, rounds=2)
    assert all(time_of_one >= 0.01 for time_of_one in seconds["sleeper"])
    assert min(seconds["idle"]) < min(seconds["sleeper"])


def test_the_ratio_is_that_of_the_medians() -> None:
    assert median_ratio({"a": [1.0, 2.0, 90.0], "b": [4.0, 1.0, 7.0]}, "a", "b") == 0.5


@pytest.mark.parametrize(("rounds", "warmups"), [(0, 1), (1, -1)])
def test_no_rounds_are_refused(rounds: int, warmups: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        interleaved({"a": lambda: None}, rounds, warmups)
