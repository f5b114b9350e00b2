"""Scores a text-to-image model on the emoji data: how often do its pictures show what their captions say?

    python scripts/score_emoji.py --data data/emoji --out runs/score            # the bundled model
    python scripts/score_emoji.py --data data/emoji --out runs/score --model runs/emoji/model --steps 30
    python scripts/score_emoji.py --out runs/words --prompts scripts/prompts_near.txt   # a labelled sheet, no score

A judge, a network trained on real pictures of all splits, looks at every picture. The first run trains it (half an hour
on two cores) and keeps it in runs/judge; its own accuracy on real pictures that it has not seen is printed beside.
Pictures that were drawn are kept in the output folder, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

import training
from latentgen.cli import script, studio
from latentgen.cli.studio import Studio
from latentgen.evaluation import scoring, sheets
from latentgen.evaluation.judge import Judge
from latentgen.evaluation.scoring import ATTRIBUTES, CONCEPT, STYLE, TONE, Case, Tally, Verdict
from pipelines import inputs
from training.data import DataConfig, Source, open_source, to_tensor
from training.tasks.judge import trained_judge

SPLITS = ("train", "pair", "concept", "tone")
RECIPE = Path(training.__file__).parent / "recipes" / "emoji" / "judge.yaml"


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = script.Parser("score_emoji.py", __doc__)
    studio.add_arguments(made)
    add = made.add_argument
    add("--data", help="the emoji data: a folder of parquet files")
    add("--train", type=_count, default=400, metavar="N", help="training captions, as many of each style; default 400")
    for split in SPLITS[1:]:
        add(f"--{split}", type=_count, metavar="N", help=f"captions of the kind {split} of validation; default all")
    add("--prompts", type=Path, help="draw the prompts of this file, one a line, instead; '# words' say what is right")
    add("--judge", type=Path, help="folder of a finished judge; default: that of this data in --judges, or a new one")
    add("--judges", type=Path, default=Path("runs/judge"), help="where trained judges are kept; default runs/judge")
    add("--judge-recipe", type=Path, default=RECIPE, help="how the judge is trained")
    add("--judge-only", action="store_true", help="train the judge and print its accuracy; draw nothing")
    add("--sheet-pictures", type=int, default=96, help="pictures on each sheet; default 96")
    add("--threads", type=int, help="CPU threads")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 for an error that the user can mend."""
    return script.run(lambda: _work(parser().parse_args(words)))


def _work(options: argparse.Namespace) -> None:
    studio.check_arguments(options)
    inputs.whole("--sheet-pictures", options.sheet_pictures, least=0)
    if options.threads is not None:
        torch.set_num_threads(inputs.whole("--threads", options.threads))
    (draw_prompts if options.prompts else score)(options)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, or all")
    return int(text)


# --- the data


@dataclass(frozen=True)
class Data:
    """The rows of both splits, each with where its picture is."""

    rows: list[dict[str, Any]]
    places: list[tuple[Source, int]]

    def picture(self, index: int) -> Image.Image:
        """The real picture of a row."""
        source, row = self.places[index]
        return source.image(row)

    def caption(self, index: int) -> str:
        """The canonical caption of a row."""
        source, row = self.places[index]
        return source.caption(row)


def open_data(path: str | None) -> Data:
    """Opens both splits of the emoji data."""
    if not path:
        raise ValueError("--data is missing; give the folder of the emoji data, or draw words alone with --prompts")
    rows, places = [], []
    for split in ("train", "validation"):
        source = open_source(DataConfig(path=path, split=split, caption_template="emoji"))
        for index in range(len(source)):
            row = source.row(index)
            if absent := {"id", "split_kind", *ATTRIBUTES} - set(row):
                raise ValueError(f"{path} has no column {', '.join(sorted(absent))}; expected the emoji data")
            rows.append(row)
            places.append((source, index))
    return Data(rows, places)


def make_cases(data: Data, wanted: dict[str, int | None], seed: int, judge: Judge) -> dict[int, Case]:
    """Row -> what to ask for, for `wanted` rows of each kind."""
    toned = scoring.toned_concepts(data.rows)
    alike = {(concept, style): frozenset(others) for concept, style, *others in judge.notes.get("alike", [])}
    cases = {}
    for split, count in wanted.items():
        members = [index for index, row in enumerate(data.rows) if row["split_kind"] == split]
        for choice in scoring.choose([data.rows[index] for index in members], count, seed) if count != 0 else []:
            row = data.rows[members[choice]]
            cases[members[choice]] = Case(
                split=split,
                id=row["id"],
                caption=data.caption(members[choice]),
                truth={name: row[name] for name in ATTRIBUTES},
                alike=alike.get((row[CONCEPT], row[STYLE]), frozenset()),
                toned=row[CONCEPT] in toned,
            )
    return cases


# --- the judge's own accuracy


def look_at_real(judge: Judge, data: Data, indices: Sequence[int]) -> list[Verdict]:
    """What the judge sees in real pictures."""
    verdicts = []
    for start in tqdm(range(0, len(indices), 64), desc="judging real pictures", unit="batch", leave=False):
        pictures = [data.picture(index) for index in indices[start : start + 64]]
        verdicts += judge.look(torch.stack([to_tensor(picture, min(picture.size)) for picture in pictures]))
    return verdicts


def ceilings(judge: Judge, data: Data, seed: int) -> dict[str, dict[str, Tally]]:
    """The judge's accuracy on pictures that it has not seen: title -> style (and "all") -> tally."""
    unseen_ids = set(judge.notes.get("unseen", []))
    cases = make_cases(data, dict.fromkeys(SPLITS), seed, judge)
    unseen = {index: case for index, case in cases.items() if case.id in unseen_ids}
    verdicts = dict(zip(unseen, look_at_real(judge, data, list(unseen)), strict=True))
    groups = {
        "real pictures the judge has not seen": unseen,
        "of these, validation rows": {index: case for index, case in unseen.items() if case.split != "train"},
    }
    return {
        title: by_style(list(group.values()), [verdicts[index] for index in group]) for title, group in groups.items()
    }


def by_style(cases: Sequence[Case], verdicts: Sequence[Verdict]) -> dict[str, Tally]:
    """A tally for all and for each style."""
    tallies = {"all": scoring.tally(cases, verdicts)}
    for style in sorted({case.truth[STYLE] for case in cases}):
        pairs = [pair for pair in zip(cases, verdicts, strict=True) if pair[0].truth[STYLE] == style]
        tallies[style] = scoring.tally(*zip(*pairs, strict=True))
    return tallies


# --- what is written


def tile(case: Case, verdict: Verdict, drawn: Image.Image, real: Image.Image, names: dict[str, str]) -> sheets.Tile:
    """A drawn picture with the real one beside, the caption, and what the judge says."""
    right = case.right(verdict)
    saw = {CONCEPT: names.get(verdict.first(CONCEPT), ""), STYLE: verdict.first(STYLE), TONE: verdict.first(TONE)}
    lines = [sheets.Line(case.caption, rows=3)]
    for attribute, line in ((CONCEPT, "concept"), (STYLE, "style"), (TONE, "tone")):
        if not right[line]:
            lines.append(sheets.Line(f"no: {saw[attribute]}", sheets.BAD, rows=2))
    if right["all"]:
        lines.append(sheets.Line("all right", sheets.GOOD))
    return sheets.Tile(drawn, tuple(lines), beside=real)


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """Prompts, one a line, each with the words after its '#', that say what it should show."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; expected one prompt a line") from error
    split = [line.partition("#") for line in lines]
    prompts = [(prompt.strip(), shows.strip()) for prompt, _, shows in split if prompt.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompt; write one a line")
    return prompts


def _name_of(number: int, prompt: str) -> str:
    """Readable, and another for another prompt in whatever script."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
    return f"prompt-{number:03}-{prompt[:60]}-{digest}"


def draw_prompts(options: argparse.Namespace) -> None:
    """Draws the prompts of a file on one labelled sheet."""
    prompts = read_prompts(options.prompts)
    sheet, listed = (script.new_file(options.out / name, options.overwrite) for name in ("prompts.png", "prompts.json"))
    artist = Studio(options)
    names = [_name_of(number, prompt) for number, (prompt, _) in enumerate(prompts)]
    tiles = [
        sheets.Tile(picture, (sheets.Line(prompt, rows=3), sheets.Line(shows, sheets.QUIET, rows=2)))
        for picture, (prompt, shows) in zip(artist.draw([one for one, _ in prompts], names), prompts, strict=True)
    ]
    sheets.contact_sheet(tiles, columns=6).save(sheet)
    report = {"settings": artist.settings, "throughput": artist.throughput(), "prompts": prompts}
    listed.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(sheet)


def score(options: argparse.Namespace) -> None:
    """Trains or loads the judge, draws, judges, and writes the report."""
    report_json, report_text = (
        script.new_file(options.out / name, options.overwrite) for name in ("report.json", "report.txt")
    )
    pages = {}
    if not options.judge_only:
        pages = {split: script.new_file(options.out / f"{split}.png", options.overwrite) for split in SPLITS}
    data = open_data(options.data)
    artist = None if options.judge_only else Studio(options)
    folder = options.judge or trained_judge(options.judge_recipe, options.data, options.judges)
    judge = Judge.load(folder)
    if absent := set(ATTRIBUTES) - set(judge.config.labels):
        raise ValueError(f"the judge in {folder} does not tell {', '.join(sorted(absent))}; train one on this data")
    tallies = ceilings(judge, data, options.seed)
    texts = [scoring.table(title, columns) for title, columns in tallies.items() if columns["all"]["style"].total]
    print("\n\n".join(texts), flush=True)
    drawn_sheets: dict[str, Image.Image | None] = {}
    report: dict[str, Any] = {"judge": str(folder), "judge_accuracy": _plain(tallies)}
    if artist:
        report |= {"settings": artist.settings, "splits": {}, "cases": []}
        wanted = {split: getattr(options, split) for split in SPLITS}
        cases = make_cases(data, wanted, options.seed, judge)
        for split in SPLITS:
            chosen = {index: case for index, case in cases.items() if case.split == split}
            if chosen:
                tables, drawn_sheets[split] = _score_split(split, chosen, data, judge, artist, report)
                texts += tables
        report["throughput"] = artist.throughput()
        drawn = report["throughput"]
        texts.append(f"drew {drawn['pictures']} pictures in this run, {drawn['per_second']:.2f} a second")
        print(texts[-1])
    for split, page in drawn_sheets.items():
        if page:
            page.save(pages[split])
    report_json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    report_text.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    print(report_json)


def _score_split(
    split: str, chosen: dict[int, Case], data: Data, judge: Judge, artist: Studio, report: dict[str, Any]
) -> tuple[list[str], Image.Image | None]:
    """Draws and judges one split and adds to the report; returns its tables, and its sheet where one is wanted."""
    cases, unseen_ids = list(chosen.values()), set(judge.notes.get("unseen", []))
    drawn = list(artist.draw([case.caption for case in cases], [case.id for case in cases]))
    verdicts, of_real = judge.look_at(drawn), look_at_real(judge, data, list(chosen))
    new = [number for number, case in enumerate(cases) if case.id in unseen_ids]
    columns = {
        "drawn": scoring.tally(cases, verdicts),
        "real, same rows": scoring.tally(cases, of_real),
        "real, not seen by the judge": scoring.tally([cases[i] for i in new], [of_real[i] for i in new]),
    }
    styles = by_style(cases, verdicts)
    texts = [scoring.table(f"{len(cases)} captions: {split}", columns), scoring.table(f"{split}, drawn", styles)]
    print("", *texts, sep="\n\n", flush=True)
    report["splits"][split] = _plain({"compared": columns, "drawn": styles})
    names = {row[CONCEPT]: row["name"] for row in reversed(data.rows) if row[TONE] == scoring.NO_TONE}
    tiles: list[sheets.Tile] = []
    for index, case, verdict, real, picture in zip(chosen, cases, verdicts, of_real, drawn, strict=True):
        report["cases"].append(
            {
                "split": split,
                "id": case.id,
                "caption": case.caption,
                "right": case.right(verdict),
                "seen": {name: list(labels) for name, labels in verdict.labels.items()},
                "confidence": dict(verdict.confidence),
                "real_right": case.right(real),
            }
        )
        if len(tiles) < artist.options.sheet_pictures:
            tiles.append(tile(case, verdict, picture, data.picture(index), names))
    return texts, sheets.contact_sheet(tiles) if tiles else None


def _plain(tallies: dict[str, dict[str, Tally]]) -> dict[str, Any]:
    return {title: {name: scoring.as_json(one) for name, one in group.items()} for title, group in tallies.items()}
