"""Scores a text-to-image model on `shapes`: how often does a picture show every fact of its caption?

    python scripts/score_shapes.py --model runs/shapes/text-to-image/model --out runs/shapes/score

The captions are of the validation split: each has a combination of attributes that training never showed. An exact
oracle reads the pictures back; its own accuracy, on the pictures that the world draws for the same captions, is printed
beside, as the ceiling. Pictures that were drawn are kept, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from latentgen.cli import script, studio
from latentgen.cli.studio import Studio
from latentgen.evaluation import scoring, sheets
from latentgen.evaluation.statistics import Share
from pipelines import inputs
from training.data.shapes import COUNTS, Facts, ShapesSource, agrees, canonical_caption, held_out, read
from training.data.shapes.world import SPLITS

_SIDE = 64


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = script.Parser("score_shapes.py", __doc__)
    studio.add_arguments(made)
    add = made.add_argument
    add("--count", type=int, default=400, help="captions to draw; default 400")
    add("--split", choices=SPLITS, default="validation", help="validation has combinations that training has not")
    add("--world-seed", type=int, default=0, help="the seed of the world's scenes; default 0, that of the recipes")
    add("--sheet-pictures", type=int, default=64, help="pictures on the sheet; default 64")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 for an error that the user can mend."""
    return script.run(lambda: _score(parser().parse_args(words)))


@dataclass(frozen=True)
class _Case:
    facts: Facts
    seen: Facts
    ceiling: bool  # whether the oracle finds the world's own picture right

    @property
    def right(self) -> bool:
        return agrees(self.seen, self.facts)

    def groups(self) -> list[str]:
        """What the case is counted under."""
        if self.facts.relation:
            kind = "two things and their relation"
        else:
            kind = "one thing" if len(self.facts.things) == 1 else "two to five alike"
        return ["all", kind]


def _score(options: argparse.Namespace) -> None:
    studio.check_arguments(options)
    for name, least in (("--count", 1), ("--world-seed", 0), ("--sheet-pictures", 0)):
        inputs.whole(name, getattr(options, name[2:].replace("-", "_")), least=least)
    report_json, report_text, sheet = (
        script.new_file(options.out / name, options.overwrite) for name in ("report.json", "report.txt", "sheet.png")
    )
    artist = Studio(options)
    source = ShapesSource(options.split, options.count, _SIDE, options.world_seed)
    scenes = [source.facts(index) for index in range(options.count)]
    captions = [canonical_caption(facts) for facts in scenes]
    cases, tiles = [], []
    pictures = artist.draw(captions, [source.id(index) for index in range(options.count)])
    for index, (facts, picture) in enumerate(zip(scenes, pictures, strict=True)):
        case = _Case(facts, read(picture), agrees(read(source.image(index)), facts))
        cases.append(case)
        if index < options.sheet_pictures:
            tiles.append(_tile(captions[index], case, picture))
    text, shares = _report(cases)
    text += f"\ndrew {artist.drawn} pictures in this run, {artist.throughput()['per_second']:.2f} a second"
    print(text)
    report = {
        "settings": artist.settings,
        "throughput": artist.throughput(),
        "shares": shares,
        "cases": [
            {"caption": caption, "held_out": held_out(case.facts), "right": case.right, "seen": _words(case.seen)}
            for caption, case in zip(captions, cases, strict=True)
        ],
    }
    report_json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    report_text.write_text(text + "\n", encoding="utf-8")
    if tiles:
        sheets.contact_sheet(tiles).save(sheet)
    print(report_json)


def _report(cases: Sequence[_Case]) -> tuple[str, dict[str, dict[str, float]]]:
    """A table of the share with every fact right, for each kind of picture, and the same as plain values."""
    counted: dict[str, list[_Case]] = {}
    for case in cases:
        for group in case.groups():
            counted.setdefault(group, []).append(case)
    lines, plain = [f"{'every fact right':<32}{'drawn':<32}the world's own pictures"], {}
    for group, members in counted.items():
        drawn = Share(sum(case.right for case in members), len(members))
        ceiling = Share(sum(case.ceiling for case in members), len(members))
        lines.append(f"{group:<32}{scoring.percent(drawn):<32}{scoring.percent(ceiling)}")
        plain[group] = {"drawn": drawn.share, "oracle": ceiling.share, "of": len(members)}
    return "\n".join(lines), plain


def _tile(caption: str, case: _Case, picture: Image.Image) -> sheets.Tile:
    """A drawn picture, its caption, and what the oracle reads where that is something else."""
    verdict = sheets.Line("all right", sheets.GOOD)
    if not case.right:
        verdict = sheets.Line(f"no: {_words(case.seen)}", sheets.BAD, rows=4)
    return sheets.Tile(picture, (sheets.Line(caption, rows=4), verdict))


def _words(seen: Facts) -> str:
    """What the oracle sees, in a few words."""
    things = [" ".join(filter(None, (thing.size or "odd-sized", thing.colour, thing.shape))) for thing in seen.things]
    if seen.relation:
        return f"{things[0]} {seen.relation} {things[1]} on {seen.background}"
    listed = f"{COUNTS[len(things) - 1]} {things[0]}" if len(set(things)) == 1 and len(things) <= len(COUNTS) else ""
    return f"{listed or ', '.join(things) or 'nothing'} on {seen.background}"
