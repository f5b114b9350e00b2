"""The scoring command, from captions to report, with a tiny model and a tiny judge."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentgen.cli.score_emoji import main
from latentgen.evaluation.scoring import LINES, lot
from pipelines import TextToImagePipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def score(tiny_folder: Path, tiny_judge: Path, emoji_tables: Path, tmp_path: Path):
    """Runs the command on the tiny model; returns its status and output folder."""

    def run(*more: str, out: str = "out") -> tuple[int, Path]:
        given = ["--model", tiny_folder, "--judge", tiny_judge, "--data", emoji_tables, "--out", tmp_path / out]
        settings = ["--steps", 2, "--train", 4, "--batch-size", 3, "--device", "cpu", "--dtype", "float32"]
        return main([str(word) for word in (*given, *settings, *more)]), tmp_path / out

    return run


def test_it_draws_judges_and_reports(score, capsys: pytest.CaptureFixture, tiny_judge: Path) -> None:
    status, out = score()
    assert status == 0
    report = json.loads((out / "report.json").read_text())
    counted = {split: part["compared"]["drawn"]["concept"]["total"] for split, part in report["splits"].items()}
    assert counted == {"train": 4, "pair": 3, "concept": 2, "tone": 1}
    cases = report["cases"]
    assert len(cases) == 10
    for split, part in report["splits"].items():
        members = [case for case in cases if case["split"] == split]
        for line, share in part["compared"]["drawn"].items():
            assert share["right"] == sum(case["right"].get(line, False) for case in members)
            assert share["interval"][0] <= share["share"] <= share["interval"][1]
        real = part["compared"]["real, same rows"]
        assert real["concept"]["right"] == sum(case["real_right"]["concept"] for case in members)
        assert Image.open(out / f"{split}.png").width > 128
    assert {case["caption"] for case in cases if case["split"] == "pair"} >= {"a square, twemoji style"}
    printed = capsys.readouterr().out
    assert (out / "report.txt").read_text().splitlines()[0] in printed
    assert all(text in printed for text in LINES.values())
    unseen = json.loads((tiny_judge / "config.json").read_text())["notes"]["unseen"]
    assert report["judge_accuracy"]["real pictures the judge has not seen"]["all"]["style"]["total"] == len(unseen)
    assert report["throughput"]["pictures"] == 10


def test_pictures_are_those_of_the_pipeline_with_the_seed_of_their_row(score, tiny_folder: Path) -> None:
    _, out = score("--pair", "0", "--concept", "0", "--tone", "1", "--seed", "5")
    case = json.loads((out / "report.json").read_text())["cases"][-1]
    assert case["id"] == "disc-dark_noto"
    pipe = TextToImagePipeline.from_pretrained(tiny_folder, torch_dtype="float32", device="cpu")
    seed = lot(5, case["id"]) >> 32
    (picture,) = pipe(case["caption"], num_inference_steps=2, seed=seed, show_progress=False).images
    kept = Image.open(out / "pictures" / "disc-dark_noto.png")
    assert np.array_equal(np.asarray(picture), np.asarray(kept))


def test_a_run_that_was_cut_off_goes_on(score, capsys: pytest.CaptureFixture) -> None:
    _, out = score()
    before = {path.name: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    whole = json.loads((out / "report.json").read_text())
    for written in ("report.json", "report.txt", "train.png", "pair.png", "concept.png", "tone.png"):
        (out / written).unlink()
    lost = sorted(before)[0]
    (out / "pictures" / lost).unlink()
    assert score()[0] == 0
    after = {path.name: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {lost}
    again = json.loads((out / "report.json").read_text())
    assert again["throughput"]["pictures"] == 1
    assert again["splits"] == whole["splits"]


def test_nothing_is_overwritten_unasked(score, capsys: pytest.CaptureFixture) -> None:
    _, out = score()
    report = (out / "report.json").read_bytes()
    assert score()[0] == 2
    assert "report.json exists" in capsys.readouterr().err
    (out / "report.json").unlink()
    (out / "report.txt").unlink()
    assert score()[0] == 2
    assert "train.png exists" in capsys.readouterr().err
    for split in ("train", "pair", "concept", "tone"):
        (out / f"{split}.png").unlink()
    assert score("--seed", "1")[0] == 2
    assert "other settings; choose another --out" in capsys.readouterr().err
    picture = (out / "pictures" / "disc-dark_noto.png").read_bytes()
    assert score("--seed", "1", "--overwrite")[0] == 0
    assert (out / "pictures" / "disc-dark_noto.png").read_bytes() != picture
    assert (out / "report.json").read_bytes() != report


def test_the_judge_alone_can_be_trained_and_measured(
    emoji_tables: Path, judge_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["--data", emoji_tables, "--judges", tmp_path / "judges", "--judge-recipe", judge_recipe, "--judge-only"]
    assert main([str(word) for word in (*given, "--out", tmp_path / "one")]) == 0
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert Path(report["judge"]).is_relative_to(tmp_path / "judges")
    assert "splits" not in report
    # The second run finds the judge.
    written = (Path(report["judge"]) / "model.safetensors").stat().st_mtime_ns
    assert main([str(word) for word in (*given, "--out", tmp_path / "two")]) == 0
    assert (Path(report["judge"]) / "model.safetensors").stat().st_mtime_ns == written


def test_prompts_of_a_file_make_a_sheet(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a red apple, noto style  # an apple\n\n# a remark\na happy face\n")
    out = tmp_path / "out"
    given = ["--prompts", words, "--model", tiny_folder, "--out", out, "--steps", 2, "--dtype", "float32"]
    assert main([str(word) for word in given]) == 0
    report = json.loads((out / "prompts.json").read_text())
    assert report["prompts"] == [["a red apple, noto style", "an apple"], ["a happy face", ""]]
    assert len(list((out / "pictures").iterdir())) == 2
    assert Image.open(out / "prompts.png").width > 256


@pytest.mark.parametrize("text", ["loop: {step: 2}", "loop: {steps: many}", "loop: ["])
def test_a_bad_recipe_of_the_judge_is_one_line(
    text: str, emoji_tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "judge.yaml").write_text(text)
    given = ["--data", emoji_tables, "--judges", tmp_path / "judges", "--judge-recipe", tmp_path / "judge.yaml"]
    assert main([str(word) for word in (*given, "--judge-only", "--out", tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert not any("Traceback" in line for line in errors)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--steps", "0"], "num_inference_steps=0"),
        (["--guidance-scale", "nan"], "guidance_scale=nan"),
        (["--train", "some"], "expected a whole number, or all"),
        (["--scheduler", "dimm"], "did you mean"),
        (["--data", "nowhere/here/too"], "no such file or folder"),
        (["--judge", "nowhere"], "nowhere/config.json is missing"),
        (["--model", "nowhere/at/all"], "no model folder"),
        (["--colour", "red"], "unrecognized arguments"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--threads", "0"], "--threads=0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(score, capsys: pytest.CaptureFixture, more: list[str], says: str) -> None:
    status, out = score(*more)
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert errors[-1].startswith("error: ")
    assert says in errors[-1]
    assert not any("Traceback" in line for line in errors)
    assert not (out / "report.json").exists()


def test_the_program_runs_from_a_checkout() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "score_emoji.py", "--out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*expected one argument.*--help`\n", done.stderr)


def test_the_prompts_that_are_shipped_name_a_style_and_what_they_show() -> None:
    lines = (ROOT / "scripts" / "prompts_near.txt").read_text().splitlines()
    prompts = [line.partition("#") for line in lines if line.partition("#")[0].strip()]
    assert len(prompts) == len({prompt for prompt, _, _ in prompts}) == 30
    styles = ("fluent 3d style", "fluent flat style", "noto style", "twemoji style")
    assert all(prompt.strip().endswith(styles) and shows.strip() for prompt, _, shows in prompts)
