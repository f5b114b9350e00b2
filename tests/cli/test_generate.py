"""`latentgen generate`, on a real model folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentgen
from latentgen import TextToImagePipeline
from latentgen.cli import output
from latentgen.cli.main import main

APPLE = "a red apple, noto style"


@pytest.fixture
def generate(tiny_folder, tmp_path, monkeypatch, capsys):
    """Run `latentgen generate` in an empty folder; gives the status, stdout's lines and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, list[str], str]:
        model = [] if "--model" in arguments else ["--model", tiny_folder]
        steps = [] if "--steps" in arguments else ["--steps", 2]
        common = [*steps, "--device", "cpu", "--dtype", "float32"]
        status = main(["generate", *map(str, [*arguments, *model, *common])])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err

    return run


def test_a_picture_is_that_of_the_pipeline_and_says_what_it_was_made_from(generate, tiny_folder, tmp_path) -> None:
    status, lines, _ = generate(
        APPLE, "--seed", 7, "--out", "new/apple.png", "--guidance-scale", 3, "--negative-prompt", "é", "--width", 20
    )
    assert (status, lines) == (0, ["new/apple.png"])
    pipe = TextToImagePipeline.from_pretrained(tiny_folder, torch_dtype=torch.float32, device="cpu")
    (expected,) = pipe(
        APPLE, seed=7, num_inference_steps=2, guidance_scale=3, negative_prompt="é", width=20, show_progress=False
    ).images
    with Image.open("new/apple.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
        text = picture.text
    assert {name: text[name] for name in ("prompt", "seed", "num_inference_steps", "negative_prompt")} == {
        "prompt": APPLE,
        "seed": "7",
        "num_inference_steps": "2",
        "negative_prompt": "é",
    }
    assert text["guidance_scale"] == "3.0"
    assert text["guidance_rescale"] == "0.0"
    assert (text["width"], text["height"]) == ("20", "16")
    assert (text["scheduler"], text["dtype"], text["model"]) == ("DDIMScheduler", "float32", tiny_folder.name)
    assert text["software"] == f"latentgen {latentgen.__version__}"
    assert [path.name for path in Path("new").iterdir()] == ["apple.png"]


def test_a_variant_of_the_weights_can_be_asked_for(generate, tiny_folder, tmp_path) -> None:
    TextToImagePipeline.from_pretrained(tiny_folder, dtype="float32").save_pretrained(tmp_path / "m", variant="fp16")
    status, _, error = generate(APPLE, "--model", tmp_path / "m", "--out", "x.png")
    assert status == 2
    assert "pass variant='fp16'" in error
    status, lines, _ = generate(APPLE, "--model", tmp_path / "m", "--variant", "fp16", "--out", "x.png")
    assert (status, lines) == (0, ["x.png"])


def test_several_pictures_are_numbered_or_named_in_a_folder(generate) -> None:
    status, lines, _ = generate(APPLE, "a face", "--num-images", 2, "--seed", 5, "--out", "x.webp", "--batch-size", 3)
    assert (status, lines) == (0, ["x-0.webp", "x-1.webp", "x-2.webp", "x-3.webp"])
    told = json.loads(Image.open("x-3.webp").getexif()[0x010E])
    assert (told["prompt"], told["seed"]) == ("a face", 8)
    status, lines, _ = generate(APPLE, "--seed", "3,1", "--out", "folder/")
    assert lines == ["folder/a-red-apple-noto-style-3.png", "folder/a-red-apple-noto-style-1.png"]
    with Image.open(lines[1]) as picture:
        assert picture.text["seed"] == "1"
    status, lines, _ = generate(APPLE)
    assert len(lines) == 1
    assert Path(lines[0]).is_file()
    assert Path(lines[0]).parent == Path(".")


def test_prompts_of_one_file_name_are_numbered(generate) -> None:
    long = "a firefighter with dark skin and a big red helmet on the head"
    prompts = [f"{long}, noto style", f"{long}, twemoji style", "A cat!", "a cat?"]
    status, lines, _ = generate(*prompts, "--seed", "7,7,7,7", "--out", "folder/")
    assert status == 0
    told = []
    for line in lines:
        with Image.open(line) as picture:
            told.append(picture.text["prompt"])
    assert told == prompts
    assert [Path(line).name for line in lines[2:]] == ["a-cat-7.png", "a-cat-2-7.png"]


def test_paths_that_the_terminal_cannot_print_do_not_end_the_job(tiny_folder, tmp_path) -> None:
    words = [sys.executable, "-m", "latentgen", "generate", "猫", "犬", "--model", str(tiny_folder), "--steps", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*words, "--seed", "1", "--quiet"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "\\u732b-1.png\n\\u72ac-2.png\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["犬-2.png", "猫-1.png"]


def test_a_description_longer_than_exif_is_cut_and_the_picture_kept(generate) -> None:
    status, _, _ = generate(APPLE, "--negative-prompt", "é" * 30000, "--out", "a.jpg", "--quiet")
    assert status == 0
    told = json.loads(Image.open("a.jpg").getexif()[0x010E])
    assert told["prompt"] == APPLE
    assert set(told["negative_prompt"]) == {"é"}


def test_links_are_not_followed_into_nothing(generate) -> None:
    Path("link.png").symlink_to("target.png")
    assert generate(APPLE, "--out", "link.png")[0] == 2
    assert Path("link.png").is_symlink()
    Path("sub").symlink_to("gone")
    status, _, err = generate(APPLE, "--out", "sub/a.png")
    assert status == 2
    assert "sub is a file, no folder can be made in it" in err


def test_files_are_replaced_only_when_told_to(generate) -> None:
    Path("a.jpg").write_text("mine")
    status, lines, err = generate(APPLE, "--out", "a.jpg")
    assert (status, lines) == (2, [])
    assert err == "latentgen: error: a.jpg exists; choose another --out, or pass --overwrite to replace it\n"
    assert Path("a.jpg").read_text() == "mine"
    assert generate(APPLE, "--out", "a.jpg", "--overwrite")[0] == 0
    assert Image.open("a.jpg").format == "JPEG"


def test_quiet_prints_paths_only(generate) -> None:
    long = " ".join(["apple"] * 40)
    status, lines, err = generate(long, "--out", "a.png")
    assert status == 0
    assert "latentgen: warning: the prompt 'apple apple" in err
    assert "2/2" in err
    status, lines, err = generate(long, "--out", "b.png", "--quiet")
    assert (status, lines, err) == (0, ["b.png"], "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: PROMPT"),
        ([" "], "prompt ' ' is empty"),
        ([APPLE, "--steps", "0"], "num_inference_steps=0"),
        ([APPLE, "--steps", "few"], "invalid int value: 'few'"),
        ([APPLE, "--guidance-scale", "nan"], "guidance_scale=nan"),
        ([APPLE, "--guidance-rescale", "2"], "guidance_rescale=2.0"),
        ([APPLE, "--eta", "-1"], "eta=-1.0"),
        ([APPLE, "--seed", "x"], "'x'; expected a whole number, or several as 1,2,3"),
        ([APPLE, "--seed", "-3"], "seed=-3"),
        ([APPLE, "b", "--seed", "1,2,3"], "3 seeds for 2 pictures"),
        ([APPLE, "--num-images", "0"], "num_images_per_prompt=0"),
        ([APPLE, "--batch-size", "0"], "--batch-size=0"),
        ([APPLE, "--height", "-8"], "--height=-8"),
        ([APPLE, "--colour", "red"], "unrecognized arguments: --colour red"),
        ([APPLE, "--out", ""], "--out is empty"),
        ([APPLE, "--out", ".png"], "--out .png is a suffix without a name"),
        ([APPLE, "--out", "a.gif"], "suffix '.gif'; use .png, .jpg, .jpeg, .webp"),
        ([APPLE, "--out", "file/a.png"], "file is a file, no folder can be made in it"),
        ([APPLE, APPLE, "--seed", "1,1"], "two pictures have the same prompt and seed"),
        ([APPLE, "--out", "x" * 300 + ".png"], "File name too long"),
    ],
    ids=str,
)
def test_bad_arguments_are_found_before_the_model_is_looked_for(
    tmp_path, monkeypatch, capsys, arguments, message
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(["generate", *arguments, "--model", "./no-such-model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("latentgen: error: ")
    assert message in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./no-such-model"], "there is no model folder ./no-such-model"),
        (["--scheduler", "dimm"], "scheduler 'dimm' is not known; did you mean 'DDIMScheduler'"),
        (["--height", "15"], "height=15 is not a multiple of 2"),
        (["--height", "1180591620717411303424"], "expected at most 65536 pixels"),
        (["--steps", "100000000000000000000"], "this model was trained at 1000 timesteps"),
        (["--scheduler", "pndm", "--steps", "2"], "PNDMScheduler cannot sample this model in num_inference_steps=2"),
        (["--scheduler", "k_euler"], "did you mean 'EulerDiscreteScheduler'"),
        (["--model", "~nobody-of-that-name/x"], "there is no model folder ~nobody-of-that-name/x"),
    ],
    ids=str,
)
def test_what_only_the_model_knows_is_one_line_too(generate, arguments, message) -> None:
    status, lines, err = generate(APPLE, "--out", "a.png", "--quiet", *arguments)
    assert (status, lines) == (2, [])
    assert err.count("\n") == 1
    assert message in err
    assert not Path("a.png").exists()


def test_a_folder_that_cannot_be_written_is_found_before_the_model(tmp_path, capsys) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):
        # The superuser may write everywhere but where the kernel keeps its own files.
        closed = Path("/proc/1")
        if not closed.is_dir():
            pytest.skip("no folder here that cannot be written")
    assert main(["generate", APPLE, "--out", str(closed / "new" / "a.png"), "--model", "./gone"]) == 2
    assert f"{closed} cannot be written" in capsys.readouterr().err


def test_a_picture_that_cannot_be_finished_leaves_nothing(tmp_path) -> None:
    broken = Image.new("P", (4, 4))
    with pytest.raises(OSError, match="cannot write mode P as JPEG"):
        output.save(broken, tmp_path / "a.jpg", {}, overwrite=False)
    (tmp_path / "b.png").write_text("made meanwhile")
    with pytest.raises(FileExistsError, match="while this picture was drawn"):
        output.save(broken, tmp_path / "b.png", {}, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


def test_ctrl_c_is_quiet_and_leaves_no_file(generate, tmp_path) -> None:
    asked = []

    def interrupt(module: torch.nn.Module, _: object) -> None:
        asked.append(isinstance(module, latentgen.UNet2DConditionModel))
        if sum(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    # As the terminal does it: a signal to this process while it draws.
    handle = torch.nn.modules.module.register_module_forward_pre_hook(interrupt)
    try:
        status, lines, err = generate(APPLE, "--out", "a.png", "--steps", 900)
    finally:
        handle.remove()
    assert (status, lines) == (130, [])
    assert "2/900" in err
    assert "Traceback" not in err
    assert "error" not in err
    assert not list(tmp_path.iterdir())
