"""Owns the emoji tables: it draws every emoji in every style, splits the rows, and writes parquet and a card."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.data.decoding import BadPictureError
from training.data.emoji.artwork import STYLES, draw, open_artwork
from training.data.emoji.splits import Candidate, split_kinds
from training.data.emoji.unicode import TONES, Emoji, bare, read_emoji

__all__ = ["Summary", "prepare"]

_ROW_GROUP = 200
_SHARD_BYTES = 32 << 20
_KINDS = ("train", "pair", "concept", "tone")


@dataclass(frozen=True)
class Summary:
    """What was written: rows by (style, split_kind), and how many pictures were left out."""

    rows: Counter[tuple[str, str]]
    left_out: int


def prepare(
    checkouts: Mapping[str, str | Path],
    emoji_test: str | Path,
    cldr: str | Path,
    output: str | Path,
    seed: int = 0,
    overwrite: bool = False,
) -> Summary:
    """Builds the emoji tables.

    Args:
        checkouts: The checkout of each style's repository; styles without one are not made.
        emoji_test: Unicode's emoji-test.txt.
        cldr: A checkout of unicode-org/cldr.
        output: The folder to write: train-*.parquet, validation-*.parquet, README.md, left_out.jsonl. They are put
            there when all are whole.
        seed: The seed of the splits and of the rows' order.
        overwrite: Replaces files of these names that are already there.

    Raises:
        FileExistsError: If the folder has some of them and `overwrite` is false, or has other tables.
        FileNotFoundError: If a source is not where it was said to be.
        ValueError: If no style is given, an SVG needs a rasteriser, or nothing was found to draw.
    """
    folder = Path(output)
    if not checkouts:
        raise ValueError(f"no checkout is given; give at least one of: {', '.join(STYLES)}")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    made = [name for name in there if _MADE.fullmatch(name)]
    others = [name for name in there if name.endswith(".parquet") and name not in made]
    if others:
        raise FileExistsError(f"{folder} has other tables, such as {others[0]}; choose another folder")
    if made and not overwrite:
        raise FileExistsError(
            f"{folder} already has {', '.join(made[:3])}; choose another folder, or replace them with --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        summary = _make(checkouts, read_emoji(emoji_test, cldr), Path(part), seed)
        for name in made:
            (folder / name).unlink()
        for path in Path(part).iterdir():
            path.replace(folder / path.name)
    return summary


_MADE = re.compile(r"(train|validation)-\d{5}-of-\d{5}\.parquet|README\.md|left_out\.jsonl")


def _make(checkouts: Mapping[str, str | Path], emoji: list[Emoji], folder: Path, seed: int) -> Summary:
    """Draws, splits and writes everything into an empty folder."""
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    for style, root in checkouts.items():
        made, lost = _draw_style(style, Path(root), emoji)
        rows += made
        left_out += lost
    if not rows:
        raise ValueError(f"none of {len(emoji)} emoji has a picture in {', '.join(map(str, checkouts.values()))}")
    kinds = split_kinds([row.pop("candidate") for row in rows], seed)
    for row, kind in zip(rows, kinds, strict=True):
        row["split_kind"] = kind
    rows.sort(key=lambda row: hashlib.blake2b(f"{seed} {row['id']}".encode()).digest())
    counts = Counter((row["style"], row["split_kind"]) for row in rows)

    _write(folder, "train", [row for row in rows if row["split_kind"] == "train"])
    _write(folder, "validation", [row for row in rows if row["split_kind"] != "train"])
    (folder / "left_out.jsonl").write_text("".join(json.dumps(one) + "\n" for one in left_out), encoding="utf-8")
    (folder / "README.md").write_text(_card(counts, list(checkouts)), encoding="utf-8")
    return Summary(counts, len(left_out))


def _draw_style(style: str, root: Path, emoji: list[Emoji]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Returns the rows of one style and the pictures left out of it."""
    artwork = open_artwork(style, root, {bare(one.codepoints): one.name for one in emoji})
    lost = {path.relative_to(root).as_posix(): reason for path, reason in artwork.left_out.items()}
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[str, str], str] = {}
    # Toneless ones first: a toned picture that equals one of its concept before it shows that tone, not its own.
    for one in tqdm(sorted(emoji, key=lambda one: one.skin_tone != "none"), desc=style, unit="emoji"):
        path = artwork.files.get(bare(one.codepoints))
        if path is None:
            continue
        try:
            picture = draw(path)
        except BadPictureError as error:
            lost[path.relative_to(root).as_posix()] = str(error)
            continue
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest()
        first = seen.setdefault((one.concept, digest), one.name)
        if first != one.name:
            lost[path.relative_to(root).as_posix()] = f"{one.name!r} is drawn exactly as {first!r}"
            continue
        content = io.BytesIO()
        picture.save(content, "WEBP", lossless=True, quality=100, method=4)
        tones = tuple(TONES[part] for part in one.codepoints.split("-") if part in TONES)
        identity = f"{one.codepoints}_{style}"
        rows.append(
            {
                "id": identity,
                "codepoints": one.codepoints,
                "concept": one.concept,
                "skin_tone": one.skin_tone,
                "name": one.name,
                "keywords": list(one.keywords),
                "group": one.group,
                "subgroup": one.subgroup,
                "style": style,
                "image": {"bytes": content.getvalue(), "path": f"{identity}.webp"},
                # Two people of one tone are spelt with it twice: as a tone to hold out it is one.
                "candidate": Candidate(one.concept, style, tones if len(set(tones)) > 1 else tones[:1], digest),
            }
        )
    return rows, [{"style": style, "file": file, "reason": reason} for file, reason in lost.items()]


def _write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    """Writes a split as parquet that `datasets` reads with its features; an empty split has no file."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    text = datasets.Value("string")
    columns = (
        "id",
        "codepoints",
        "concept",
        "skin_tone",
        "name",
        "keywords",
        "group",
        "subgroup",
        "style",
        "split_kind",
    )
    features = datasets.Features({name: datasets.List(text) if name == "keywords" else text for name in columns})
    features["image"] = datasets.Image()
    size = sum(len(row["image"]["bytes"]) for row in rows)
    shards = -(-size // _SHARD_BYTES)
    for shard in range(shards):
        part = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]
        table = pyarrow.Table.from_pylist(part, schema=features.arrow_schema)
        name = f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        pyarrow.parquet.write_table(table, folder / name, row_group_size=_ROW_GROUP)


# --- the card

_HEAD = """---
license: other
task_categories:
- text-to-image
language:
- en
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.parquet
  - split: validation
    path: validation-*.parquet
---

# Captioned emoji in several drawing styles

Made by latentgen's `scripts/prepare_emoji.py`. Pictures are RGB on white, 128 x 128, lossless WebP. Country and
subdivision flags are not included. `left_out.jsonl` lists artwork that was not used, with reasons.

Rows of the validation split have in `split_kind` what they ask: `pair`, the concept is in train but not in this style;
`concept`, the concept is in train in no style; `tone`, concept and style are in train but not with this skin tone.

"""
_CREDITS = {
    "fluent": "Fluent Emoji, (c) Microsoft Corporation, MIT, https://github.com/microsoft/fluentui-emoji",
    "noto": "Noto Emoji, Copyright 2013 Google, Inc., Apache License 2.0, https://github.com/googlefonts/noto-emoji",
    "twemoji": "Twemoji graphics by Twitter, Inc and other contributors, CC-BY 4.0, https://github.com/jdecked/twemoji",
}
_UNICODE = (
    "Names, keywords, groups: Unicode CLDR and emoji-test.txt, (c) Unicode, Inc., https://www.unicode.org/license.txt"
)


def _card(counts: Counter[tuple[str, str]], styles: list[str]) -> str:
    lines = [f"| style | {' | '.join(_KINDS)} |", "|---" * (len(_KINDS) + 1) + "|"]
    lines += [f"| {style} | {' | '.join(str(counts[style, kind]) for kind in _KINDS)} |" for style in styles]
    credits = [text for name, text in _CREDITS.items() if any(style.startswith(name) for style in styles)]
    credits.append(_UNICODE)
    closing = "Changes made to the artwork: drawn or scaled to 128 x 128 on a white background.\n"
    sources = "\n".join(f"- {text}" for text in credits)
    return f"{_HEAD}{chr(10).join(lines)}\n\n## Sources and licences\n\n{sources}\n\n{closing}"
