"""The command that measures an autoencoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen.cli.score_autoencoder import main, rebuild
from latentgen.evaluation import Mean, psnr, ssim
from pipelines.loading import load_autoencoder
from training.data import DataConfig, open_source, to_tensor


def command(folder: Path, data: object, *more: object) -> int:
    given = ["--model", folder, "--data", data, "--resolution", 32, "--dtype", "float32", "--device", "cpu", *more]
    return main([str(word) for word in given])


def test_it_measures_every_picture(
    tiny_folder: Path, emoji_tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, sheet = tmp_path / "new" / "figures.json", tmp_path / "sheet.png"
    assert command(tiny_folder, emoji_tables, "--batch-size", 4, "--json", out, "--sheet", sheet) == 0
    report = json.loads(out.read_text())
    source = open_source(DataConfig(str(emoji_tables), "validation", caption_template="emoji"))
    assert [one["id"] for one in report["pictures"]] == [source.id(row) for row in range(len(source))]
    vae = load_autoencoder(tiny_folder / "vae", torch.float32)
    pictures = torch.stack([to_tensor(source.image(row), 32) for row in range(len(source))])
    with torch.no_grad():
        rebuilt = rebuild(vae, pictures)
    for name, measure in (("psnr", psnr), ("ssim", ssim)):
        expected = measure((rebuilt + 1) / 2, (pictures + 1) / 2).tolist()
        assert [one[name] for one in report["pictures"]] == pytest.approx(expected, rel=1e-4)
        assert report[name]["mean"] == pytest.approx(Mean.of(expected).mean, rel=1e-4)
        assert report[name]["error"] == pytest.approx(Mean.of(expected).error, rel=1e-3)
    assert f"PSNR {report['psnr']['mean']:.3f} ± {report['psnr']['error']:.3f} dB" in capsys.readouterr().out


def test_the_sheet_shows_pictures_above_what_was_made_of_them(
    tiny_folder: Path, emoji_tables: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    assert command(tiny_folder, emoji_tables, "--split", "train", "--limit", 10, "--sheet", sheet) == 0
    page = np.asarray(Image.open(sheet))
    assert page.shape[:2] == (4 * 34 - 2, 8 * 34 - 2)  # two rows of eight, each above its own
    source = open_source(DataConfig(str(emoji_tables), "train", caption_template="emoji"))
    assert np.array_equal(page[:32, 34:66], np.asarray(source.image(1)))
    assert np.array_equal(page[68:100, :32], np.asarray(source.image(8)))
    assert not np.array_equal(page[34:66, 34:66], page[:32, 34:66])


def test_it_reads_shapes_too(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(tiny_folder, "shapes", "--limit", 3) == 0
    assert capsys.readouterr().out.startswith("3 pictures of 32x32, split validation")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--model", "nowhere"], "nowhere holds no autoencoder"),
        (["--resolution", "33"], "not a multiple of 2"),
        (["--split", "test"], "data.split is 'test'"),
        (["--data", "nowhere/here/too"], "no such file or folder"),
        (["--batch-size", "0"], "--batch-size=0"),
        (["--dtype", "int8"], "dtype 'int8' is not known"),
        (["--json", "."], "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tiny_folder: Path, emoji_tables: Path, capsys: pytest.CaptureFixture, more: list[str], says: str
) -> None:
    assert command(tiny_folder, emoji_tables, *more) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert says in errors[-1]


def test_files_are_not_overwritten_unasked(
    tiny_folder: Path, emoji_tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "figures.json"
    out.write_text("kept")
    assert command(tiny_folder, emoji_tables, "--json", out) == 2
    assert out.read_text() == "kept"
    assert "pass --overwrite" in capsys.readouterr().err
    assert command(tiny_folder, emoji_tables, "--json", out, "--overwrite", "--limit", 2) == 0
    assert len(json.loads(out.read_text())["pictures"]) == 2
