"""The held-out part of a source, for previews and validation."""

from __future__ import annotations

from dataclasses import replace

from training.data.sources import DataConfig, MissingSplitError, Source, open_source


def held_out_source(config: DataConfig) -> Source | None:
    """The split `validation` of the same data, or None where it has none."""
    try:
        return open_source(replace(config, split="validation"))
    except MissingSplitError:
        return None
