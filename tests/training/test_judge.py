"""The judge learns, sees nothing of what is held out, and a killed run resumes to the same judge."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import datasets
import pytest
from PIL import Image
from safetensors.torch import load_file

from latentgen.evaluation import Judge
from latentgen.evaluation.scoring import alike_concepts
from training.command import train
from training.data import DataConfig
from training.tasks.judge import hold_out, read_pictures, trained_judge

TINY = [
    "--data.resolution=16",
    "--data.caption_template=emoji",
    "--model.widths=[8,16]",
    "--model.blocks=[1,1]",
    "--held_out_share=0.2",
    "--loop.batch_size=16",
    "--loop.threads=1",
    "--loop.mixed_precision=no",
    "--loop.sample_every=0",
    "--loop.optimizer.learning_rate=0.01",
    "--loop.optimizer.warmup_steps=2",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def rows_of(*pairs: str, tones: int = 1) -> list[dict[str, str]]:
    """Rows "concept style", each so many times."""
    return [dict(zip(("concept", "style"), pair.split(), strict=True)) for pair in pairs for _ in range(tones)]


# --- what is held out


def many(concepts: int, styles: int) -> list[dict[str, str]]:
    return rows_of(*(f"c{c} s{s}" for c in range(concepts) for s in range(styles)), tones=2)


def test_about_the_asked_share_is_held_out_whole_and_every_concept_stays() -> None:
    rows = many(50, 4)
    held = hold_out(rows, {}, 0.1, seed=3)
    assert 0.1 <= sum(held) / len(rows) <= 0.11
    pairs = {(row["concept"], row["style"]) for row, is_held in zip(rows, held, strict=True) if is_held}
    assert [(row["concept"], row["style"]) in pairs for row in rows] == held
    assert {row["concept"] for row, is_held in zip(rows, held, strict=True) if not is_held} == {
        f"c{c}" for c in range(50)
    }


def test_even_all_that_is_asked_for_leaves_each_concept_a_style() -> None:
    rows = [*many(6, 3), *rows_of("alone s0")]
    held = hold_out(rows, {}, 0.99, seed=0)
    kept = [row["concept"] for row, is_held in zip(rows, held, strict=True) if not is_held]
    assert sorted(set(kept)) == ["alone", *(f"c{c}" for c in range(6))]
    assert len(kept) == 6 * 2 + 1


def test_lots_hang_on_the_seed_and_on_names_alone() -> None:
    rows = many(20, 3)
    held = hold_out(rows, {}, 0.2, seed=5)
    assert hold_out(rows[::-1], {}, 0.2, seed=5) == held[::-1]
    assert hold_out(rows, {}, 0.2, seed=6) != held


def test_concepts_that_share_a_picture_are_held_out_together() -> None:
    rows = rows_of("a s0", "b s0", "c s0", "a s1", "b s1", "c s1", "d s0", "d s1")
    alike = alike_concepts(rows, ["1", "1", "1", "2", "3", "4", "5", "6"])
    for seed in range(8):
        held = hold_out(rows, alike, 0.1, seed)
        assert len(set(held[:3])) == 1
    # "b" is in s0 alone: with it, none of those that share its picture there can go.
    rows = rows_of("a s0", "b s0", "a s1")
    alike = alike_concepts(rows, ["1", "1", "2"])
    assert all(hold_out(rows, alike, 0.3, seed)[:2] == [False, False] for seed in range(8))


# --- training


def test_all_splits_are_read_once_and_kept_small(emoji_tables: Path, tmp_path: Path) -> None:
    data = read_pictures(DataConfig(path=str(emoji_tables), caption_template="emoji"), 16, tmp_path / "bad")
    assert len(data.rows) == len(data.pictures) == len(data.digests) == 18
    assert {row["split_kind"] for row in data.rows} == {"train", "pair", "concept", "tone"}
    assert data.pictures.shape == (18, 3, 16, 16)
    assert data.pictures[:, :, 0, 0].eq(255).all()
    assert (tmp_path / "bad-train.jsonl").read_text() == (tmp_path / "bad-validation.jsonl").read_text() == ""


def test_a_trained_judge_recognises_pictures(emoji_tables: Path, tmp_path: Path) -> None:
    folder = train("judge", [*TINY, "--loop.steps=80", f"--data.path={emoji_tables}", f"--output={tmp_path / 'run'}"])
    judge = Judge.load(folder)
    data = read_pictures(DataConfig(path=str(emoji_tables), caption_template="emoji"), 16)
    unseen = set(judge.notes["unseen"])
    assert 0 < len(unseen) < 9
    assert unseen < {row["id"] for row in data.rows}
    verdicts = judge.look(data.pictures.float() / 127.5 - 1)
    seen = [(row, verdict) for row, verdict in zip(data.rows, verdicts, strict=True) if row["id"] not in unseen]
    for attribute in ("concept", "style", "skin_tone"):
        assert sum(verdict.first(attribute) == row[attribute] for row, verdict in seen) / len(seen) > 0.8


def test_a_killed_run_resumes_to_the_same_judge(emoji_tables: Path, tmp_path: Path, start) -> None:
    given = [*TINY, "--loop.steps=10", "--loop.checkpoint_every=1", f"--data.path={emoji_tables}"]
    whole = train("judge", [*given, f"--output={tmp_path / 'whole'}"])
    arguments = [*given, f"--output={tmp_path / 'cut'}", "--resume"]
    process = start("judge", arguments)
    end = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("checkpoints/step-*")) and process.is_alive() and time.monotonic() < end:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "cut" / "model").exists()
    cut = train("judge", arguments)
    assert (cut / "config.json").read_text() == (whole / "config.json").read_text()
    weights, others = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(others[name]) for name in weights)


def test_one_recipe_and_data_are_trained_once(emoji_tables: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "judge.yaml"
    recipe.write_text("loop: {steps: 2, seed: 4}\n")
    folder = trained_judge(recipe, str(emoji_tables), tmp_path / "judges", TINY)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert trained_judge(recipe, str(emoji_tables), tmp_path / "judges", TINY) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    recipe.write_text("loop: {steps: 2, seed: 5}\n")
    assert trained_judge(recipe, str(emoji_tables), tmp_path / "judges", TINY) != folder
    with pytest.raises(FileNotFoundError, match="no recipe"):
        trained_judge(tmp_path / "none.yaml", str(emoji_tables), tmp_path / "judges")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("--held_out_share=1", "held_out_share is 1"),
        ("--attributes={colour: 1.0}", "column colour"),
    ],
)
def test_bad_settings_are_refused(setting: str, says: str, emoji_tables: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises((ValueError, SystemExit)) as raised:
        train("judge", [*TINY, setting, f"--data.path={emoji_tables}", f"--output={tmp_path}"])
    assert re.search(says, f"{raised.value} {capsys.readouterr().err}")


def test_bad_pictures_are_left_out_and_listed(emoji_tables: Path, tmp_path: Path) -> None:
    table = datasets.Dataset.from_parquet(str(emoji_tables / "train-00000-of-00001.parquet"))
    rows = [dict(row) for row in table.cast_column("image", datasets.Image(decode=False))]
    rows[3]["image"] = {"bytes": b"no picture", "path": None}
    features = datasets.Features({**table.features, "image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train-0.parquet")
    config = DataConfig(path=str(tmp_path), caption_template="emoji", max_bad_share=0.2)
    data = read_pictures(config, 16, tmp_path / "bad")
    assert len(data.rows) == len(rows) - 1
    assert rows[3]["id"] in (tmp_path / "bad-train.jsonl").read_text()
    assert isinstance(rows[0]["image"], (dict, Image.Image))
