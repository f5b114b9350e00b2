"""The benchmark runs both libraries on one folder; its figures are never judged here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from latentgen.cli.benchmark import main
from latentgen.hardware import default_dtype


def test_generate_times_both_and_compares_their_pictures(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "new" / "figures.json"
    given = ["generate", "--model", tiny_folder, "--steps", 3, "--rounds", 2, "--batch-size", 2, "--device", "cpu"]
    assert main([str(word) for word in (*given, "--dtype", "float32", "--json", out)]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert {name: len(times) for name, times in result["seconds"].items()} == {"latentgen": 2, "diffusers": 2}
    assert result["dtype"] == "float32"
    assert result["difference"] < 1e-3
    assert "3 steps of DDIMScheduler" in capsys.readouterr().out


def test_networks_are_timed_forward_and_backward(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    given = ["networks", "--model", tiny_folder, "--rounds", 1, "--warmups", 0, "--batch-size", 2, "--device", "cpu"]
    assert main([str(word) for word in (*given, "--dtype", "fp32", "--json", out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert [result["what"].split(",")[:2] for result in results] == [
        [network, how]
        for network in ("UNet2DConditionModel", "AutoencoderKL")
        for how in (" forward", " forward and backward")
    ]
    assert all(result["difference"] < 1e-4 for result in results)


def test_by_default_only_fast_formats_are_timed(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    given = ["generate", "--model", tiny_folder, "--steps", 1, "--rounds", 1, "--device", "cpu", "--json", out]
    assert main([str(word) for word in given]) == 0
    timed = [result["dtype"] for result in json.loads(out.read_text())["results"]]
    expected = dict.fromkeys((torch.float32, default_dtype("cpu")))
    assert timed == [str(dtype).removeprefix("torch.") for dtype in expected]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "arguments are required"),
        (["draw"], "invalid choice"),
        (["generate", "--rounds", "0"], "--rounds=0"),
        (["generate", "--steps", "0"], "num_inference_steps=0"),
        (["generate", "--prompt", " "], "is empty"),
        (["generate", "--scheduler", "dimm"], "did you mean"),
        (["generate", "--dtype", "int8"], "dtype 'int8' is not known"),
        (["networks", "--batch-size", "x"], "invalid int value"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tiny_folder: Path, given: list[str], says: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([*given, "--model", str(tiny_folder)] if given else given) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert says in errors[-1]


def test_a_folder_that_is_not_whole_is_refused(tiny_copy: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree(tiny_copy / "vae")
    for subcommand in ("networks", "generate"):
        assert main([subcommand, "--model", str(tiny_copy), "--rounds", "1", "--dtype", "float32"]) == 2
        assert "vae" in capsys.readouterr().err.strip().splitlines()[-1]
