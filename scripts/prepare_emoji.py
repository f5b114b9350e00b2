#!/usr/bin/env python
"""Rebuilds the captioned emoji tables (the form that the emoji recipes train on) from checkouts of the public sources.

Columns, form and split rules are those of the tables that the bundled model was trained on. Which concepts are held out
hangs on `--seed`, and on what the sources hold on the day: compare scores only between runs on the same tables.

Get the sources once; `--depth 1` leaves their history out:

    git clone --depth 1 https://github.com/microsoft/fluentui-emoji
    git clone --depth 1 https://github.com/adobe-fonts/noto-emoji-svg
    git clone --depth 1 https://github.com/jdecked/twemoji
    git clone --depth 1 https://github.com/unicode-org/cldr
    curl -O https://unicode.org/Public/emoji/latest/emoji-test.txt

then, with `pip install 'latentgen[prepare]'` for the SVG rasteriser:

    python scripts/prepare_emoji.py --fluent fluentui-emoji --noto noto-emoji-svg --twemoji twemoji \
        --cldr cldr --emoji-test emoji-test.txt --output data/emoji
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from latentgen.cli import script
except ImportError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from latentgen.cli import script
from training.data.emoji import prepare


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = script.Parser("prepare_emoji.py", __doc__)
    parser.add_argument("--fluent", type=Path, help="checkout of microsoft/fluentui-emoji: fluent-3d and fluent-flat")
    parser.add_argument("--noto", type=Path, help="checkout of adobe-fonts/noto-emoji-svg or googlefonts/noto-emoji")
    parser.add_argument("--twemoji", type=Path, help="checkout of jdecked/twemoji")
    parser.add_argument("--cldr", type=Path, required=True, help="checkout of unicode-org/cldr")
    parser.add_argument("--emoji-test", type=Path, required=True, help="Unicode's emoji-test.txt")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits and of the rows' order")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 for an error that the user can mend."""
    return script.run(lambda: _prepare(_arguments(words)))


def _prepare(given: argparse.Namespace) -> None:
    places = {"fluent-3d": given.fluent, "fluent-flat": given.fluent, "noto": given.noto, "twemoji": given.twemoji}
    checkouts = {style: place for style, place in places.items() if place is not None}
    summary = prepare(checkouts, given.emoji_test, given.cldr, given.output, given.seed, given.overwrite)
    print(f"{sum(summary.rows.values())} rows in {given.output}, {summary.left_out} pictures left out")
    for (style, kind), count in sorted(summary.rows.items()):
        print(f"  {style:12} {kind:8} {count}")


if __name__ == "__main__":
    sys.exit(main())
