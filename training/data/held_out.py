"""The held-out part of a source, for previews and validation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

from training.data.quarantine import fault
from training.data.sources import DataConfig, MissingSplitError, Source, open_source

__all__ = ["Shown", "held_out_source", "rows_to_show"]


@dataclass(frozen=True)
class Shown:
    """Rows to look at while a model is trained.

    Attributes:
        source: Where they are.
        rows: Good rows of it.
        held_out: Whether training does not see them; what is measured on them is called `validation_` then, and
            `training_` otherwise.
    """

    source: Source
    rows: list[int]
    held_out: bool

    def name(self, what: str) -> str:
        """What a measurement on these rows is called."""
        return f"{'validation' if self.held_out else 'training'}_{what}"


def held_out_source(config: DataConfig, captions: bool = True) -> Source | None:
    """The split `validation` of the same data, or None where it has none or is `config` itself.

    `captions` as in `open_source`.
    """
    if config.split == "validation":
        return None
    try:
        return open_source(replace(config, split="validation"), captions)
    except MissingSplitError:
        return None


def rows_to_show(held_out: Source | None, source: Source, rows: list[int], count: int, captions: bool = True) -> Shown:
    """Up to `count` good rows, evenly spread over the held-out source, or over training's own good rows.

    Args:
        held_out: What training does not see; None where there is nothing.
        source: What it sees.
        rows: The good rows of `source`.
        count: How many.
        captions: Whether a row needs a caption to be good.
    """
    if held_out is not None:
        good = (row for row in _spread(range(len(held_out)), count) if fault(held_out, row, captions) is None)
        if found := list(islice(good, count)):
            return Shown(held_out, found, True)
    return Shown(source, list(islice(_spread(rows, count), count)), False)


def _spread(rows: Iterable[int], count: int) -> Iterable[int]:
    """First `count` of the rows, evenly spread, then those between them."""
    rows = list(rows)
    every = max(1, len(rows) // max(1, count))
    return [row for first in range(every) for row in rows[first::every]]
