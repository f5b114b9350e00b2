"""The scoring command of `shapes` with a tiny model: what it counts is what the oracle reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from latentgen.cli.score_shapes import main
from training.data.shapes import ShapesSource, agrees, held_out, read

COUNT = 6


@pytest.fixture
def score(tiny_folder: Path, tmp_path: Path):
    """Runs the command on the tiny model; returns its status and output folder."""

    def run(*more: str) -> tuple[int, Path]:
        given = ["--model", tiny_folder, "--out", tmp_path / "out", "--count", COUNT, "--steps", 2, "--device", "cpu"]
        return main([str(word) for word in (*given, *more)]), tmp_path / "out"

    return run


def test_it_draws_held_out_captions_and_counts_what_the_oracle_reads(score, capsys: pytest.CaptureFixture) -> None:
    status, out = score()
    assert status == 0
    report = json.loads((out / "report.json").read_text())
    source = ShapesSource("validation", COUNT, 64, 0)
    assert [case["caption"] for case in report["cases"]] == [source.caption(index) for index in range(COUNT)]
    for index, case in enumerate(report["cases"]):
        assert case["held_out"] == list(held_out(source.facts(index)))
        with Image.open(out / "pictures" / f"{source.id(index)}.png") as picture:
            assert case["right"] == agrees(read(picture), source.facts(index))
    shares = report["shares"]
    assert shares["all"]["of"] == COUNT == sum(share["of"] for name, share in shares.items() if name != "all")
    assert shares["all"]["drawn"] == sum(case["right"] for case in report["cases"]) / COUNT
    assert (out / "report.txt").read_text() in capsys.readouterr().out
    assert Image.open(out / "sheet.png").width > 128


def test_pictures_as_the_world_draws_them_are_all_right(score) -> None:
    _, out = score()
    source = ShapesSource("validation", COUNT, 64, 0)
    for index in range(COUNT):
        source.image(index).save(out / "pictures" / f"{source.id(index)}.png")
    for name in ("report.json", "report.txt", "sheet.png"):
        (out / name).unlink()
    status, out = score()
    report = json.loads((out / "report.json").read_text())
    assert status == 0
    assert report["shares"]["all"]["drawn"] == report["shares"]["all"]["oracle"] == 1
    assert report["throughput"]["pictures"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [(("--count", "0"), "--count"), (("--world-seed", "-1"), "--world-seed"), (("--split", "test"), "--split")],
)
def test_bad_arguments_are_one_line(score, capsys: pytest.CaptureFixture, more: tuple[str, str], message: str) -> None:
    status, out = score(*more)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_report_is_not_overwritten(score, capsys: pytest.CaptureFixture) -> None:
    score()
    status, _ = score()
    assert status == 2
    assert "--overwrite" in capsys.readouterr().err
