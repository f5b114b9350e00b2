"""Owns the look through a source before training: bad rows are set aside and listed, never deleted."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from training.data.decoding import BadPictureError
from training.data.sources import Source

__all__ = ["Bad", "Scan", "fault", "scan"]


@dataclass(frozen=True)
class Bad:
    """A row that is set aside: its index in the source, its id, and why. A file that is no row has no index."""

    index: int | None
    id: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """The outcome of looking at every row once."""

    good: list[int]
    bad: list[Bad]


def scan(
    source: Source,
    quarantine: str | Path | None = None,
    max_bad_share: float = 0.05,
    workers: int = 2,
    captions: bool = True,
) -> Scan:
    """Decodes every picture once and reads every caption, so that training meets no bad row.

    Nothing is changed in the source. A source that makes its own pictures (`source.trusted`) is not read. Files that
    the source could make no row of (`source.left_out`) are listed and counted too.

    Args:
        source: The source to look through.
        quarantine: The run's `quarantine.jsonl`, written anew with one line for each bad row: index, id, reason.
        max_bad_share: The share of bad rows above which the scan fails.
        workers: Threads that decode.
        captions: Whether a row needs a caption to be good.

    Returns:
        The good rows' indices in their order, and the bad rows.

    Warns:
        UserWarning: Rows are left out, and listed in `quarantine`.

    Raises:
        ValueError: If the share of bad rows is above `max_bad_share`, or no row is good; the list is written first.
    """
    if getattr(source, "trusted", False):
        reasons: list[str | None] = [None] * len(source)
    else:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            reasons = list(pool.map(lambda index: fault(source, index, captions), range(len(source))))
    good = [index for index, reason in enumerate(reasons) if reason is None]
    bad = [Bad(index, source.id(index), reason) for index, reason in enumerate(reasons) if reason is not None]
    bad += [Bad(None, name, reason) for name, reason in getattr(source, "left_out", {}).items()]
    total = len(good) + len(bad)
    if quarantine is not None:
        path = Path(quarantine)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in bad), encoding="utf-8")
    if len(bad) > max_bad_share * total or not good:
        where = f"; all are listed in {quarantine}" if quarantine is not None else ""
        raise ValueError(
            f"{len(bad)} of {total} rows are bad ({len(bad) / max(1, total):.1%}, "
            f"at most {max_bad_share:.1%} may be), the first is {bad[0].id}: {bad[0].reason}{where}; "
            "mend or remove them, or raise data.max_bad_share"
        )
    if bad and quarantine is not None:
        warnings.warn(f"{len(bad)} of {total} rows are bad and left out; {quarantine} lists them", stacklevel=2)
    return Scan(good, bad)


def fault(source: Source, index: int, captions: bool = True) -> str | None:
    """Why a row is bad; None for a good one. `captions`: whether it needs a caption."""
    try:
        source.image(index)
    except BadPictureError as error:
        return str(error)
    return None if not captions or source.caption(index) else "no caption"
