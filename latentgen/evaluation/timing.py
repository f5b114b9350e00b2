"""Fair timing of things that do the same work: in turns, in one process, compared by medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warmups: int = 1, device: str | torch.device = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each contender in each round.

    Every round runs all of them, A B A B, so that what else the machine does falls on all alike.

    Args:
        contenders: What to time, by name.
        rounds: Timed rounds.
        warmups: Rounds before them that are not counted.
        device: Where they compute; its queue is waited for.

    Raises:
        ValueError: `rounds` is less than 1 or `warmups` less than 0.
    """
    if rounds < 1 or warmups < 0:
        raise ValueError(f"rounds={rounds} and warmups={warmups}; expected at least 1 and at least 0")
    kind = torch.device(device).type
    wait = _nothing if kind == "cpu" else getattr(torch, kind).synchronize
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmups + rounds):
        for name, run in contenders.items():
            wait()
            started = time.perf_counter()
            run()
            wait()
            if turn >= warmups:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _nothing() -> None:
    pass


def median_ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """The median of `one` divided by that of `other`."""
    return median(seconds[one]) / median(seconds[other])
