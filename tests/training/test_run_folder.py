"""What a run's folder protects: models and runs that are there, one writer at a time, checkpoints that are whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file, save_file

from latentgen.cli.main import main
from training import checkpoint
from training.command import read_settings, train
from training.data.shapes import ShapesSource
from training.run_folder import claim, differences

ROOT = Path(__file__).parents[2]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    files = sorted((run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"))
    return {f"{file.name}:{key}": value for file in files for key, value in load_file(file).items()}


def command_line(*arguments: str, **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "latentgen", "train", *arguments]
    return subprocess.Popen(words, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("resume", [True, False])
def test_a_finished_model_is_never_replaced_by_another_run(resume, tiny, tmp_path):
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.steps=1"]
    model = train("autoencoder", arguments)
    for saved in checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints"):
        saved.rename(tmp_path / saved.name)
    before = (model / "diffusion_pytorch_model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="finished model"):
        train("autoencoder", [*arguments, "--loop.seed=1", *(["--resume"] if resume else [])])
    assert (model / "diffusion_pytorch_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "change", ["loop.seed=1", "loop.batch_size=2", "data.seed=5", "data.resolution=16", "loss.l2=0.5", "crop=16"]
)
def test_another_run_is_not_mixed_into_one(change, tiny, tmp_path):
    arguments = tiny("autoencoder", tmp_path / "run")
    train("autoencoder", [*arguments, "--loop.steps=1"])
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    name, value = change.split("=")
    with pytest.raises(ValueError, match=rf"other settings: {name} was .*, is now {value}"):
        train("autoencoder", [*arguments, "--loop.steps=2", "--resume", f"--{change}"])
    assert (tmp_path / "run" / "recipe.yaml").read_text() == recipe
    train("autoencoder", [f"--config={tmp_path / 'run' / 'recipe.yaml'}", "--loop.steps=2", "--resume"])


def disturb(weights: Path) -> None:
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("which", ["vae", "text_encoder"])
def test_a_run_goes_on_with_the_networks_that_it_was_begun_with_or_not_at_all(which, tiny, parts, tmp_path):
    places = {"vae": parts / "autoencoder/model", "text_encoder": parts / "text-encoder/model"}
    copy = shutil.copytree(places[which], tmp_path / "copy")
    arguments = [*tiny("text-to-image", tmp_path / "run"), f"--{which}={copy}", "--loop.steps=1"]
    train("text-to-image", arguments)
    moved = copy.rename(tmp_path / "moved")
    more = [*arguments, f"--{which}={moved}", "--resume"]
    with pytest.warns(UserWarning, match=f"changed settings: {which} was"):
        train("text-to-image", [*more, "--loop.steps=2"])
    disturb(next(moved.glob("*.safetensors" if which == "vae" else "text_encoder/*.safetensors")))
    with pytest.raises(ValueError, match=f"another content of {which}: "):
        train("text-to-image", [*more, "--loop.steps=3"])


@pytest.mark.parametrize("task", ["autoencoder", "text-encoder", "text-to-image"])
def test_a_run_goes_on_with_the_data_that_it_was_begun_with_or_not_at_all(task, tiny, tmp_path):
    def write(seed: int) -> str:
        source, rows = ShapesSource("train", 16, 32, seed), range(16)
        table = {"image": [source.image(row) for row in rows], "caption": [source.caption(row) for row in rows]}
        datasets.Dataset.from_dict(table).cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
        return f"--data.path={tmp_path / 'a.parquet'}"

    arguments = [*tiny(task, tmp_path / "run"), write(seed=0)]
    train(task, [*arguments, "--loop.steps=1"])
    write(seed=1)
    with pytest.raises(ValueError, match="another content of data: "):
        train(task, [*arguments, "--loop.steps=2", "--resume"])
    write(seed=0)
    train(task, [*arguments, "--loop.steps=2", "--resume"])


def test_what_may_change_is_told(tiny, tmp_path):
    arguments = tiny("autoencoder", tmp_path / "run")
    train("autoencoder", [*arguments, "--loop.steps=1"])
    with pytest.warns(UserWarning, match=r"changed settings: loop\.steps was 1, is now 2; loop\.log_every was 2"):
        train("autoencoder", [*arguments, "--loop.steps=2", "--loop.log_every=1", "--resume"])
    with pytest.raises(ValueError, match=r"at step 2 already, but loop\.steps is 1"):
        train("autoencoder", [*arguments, "--loop.steps=1", "--resume"])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.limit=5", "data.limit was None, is now 5"),
        ("diffusion.gamma=2", "diffusion.gamma was None, is now 2.0"),
        ("diffusion.density_mean_end=0", "diffusion.density_mean_end was None, is now 0.0"),
        ("loop.steps=7", "loop.steps was 10000, is now 7"),
    ],
)
def test_differences_are_seen_where_a_setting_is_or_was_null(setting, told, tmp_path):
    name = setting.partition("=")[0]
    one, other = (
        read_settings("text-to-image", ["--vae=a", "--text_encoder=b", "--loop.steps=10000", *more]).text
        for more in ([], [f"--{setting}"])
    )
    (tmp_path / "recipe.yaml").write_text(one)
    assert differences(tmp_path, other) == {name: told}
    assert differences(tmp_path, one) == {}
    (tmp_path / "recipe.yaml").write_text(other)
    assert list(differences(tmp_path, one)) == [name]


def test_a_setting_of_another_version_is_passed_over(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: {b: 1, gone: 3}")
    assert differences(tmp_path, "a: {b: 2, new: 3}") == {"a.b": "a.b was 1, is now 2"}
    assert differences(tmp_path / "nothing", "a: 1") == {}


def test_a_folder_has_one_writer(tiny, tmp_path):
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.steps=1"]
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(BlockingIOError, match="another training run"):
        train("autoencoder", arguments)
    train("autoencoder", arguments)
    with claim(tmp_path / "run", read_settings("autoencoder", arguments).text, resume=True):
        assert checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")


def damage(saved: Path, how: str) -> None:
    if how == "weights cut short":
        os.truncate(saved / "autoencoder.safetensors", 1000)
    elif how == "weights lost":
        (saved / "discriminator.safetensors").unlink()
    else:
        (saved / "state.json").write_text("")


@pytest.mark.parametrize("how", ["weights cut short", "weights lost", "state empty"])
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(how, tiny, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    extra = ["--loop.steps=4", "--loop.checkpoint_every=1", "--loop.keep_checkpoints=1"]
    train("autoencoder", [*tiny("autoencoder", whole), *extra])
    arguments = [*tiny("autoencoder", run), *extra, "--loop.keep_checkpoints=2"]
    train("autoencoder", arguments)
    damage(run / "checkpoints" / "step-00000004", how)
    with pytest.warns(UserWarning, match="step-00000004 is damaged"):
        train("autoencoder", [*arguments, "--resume", "--loop.keep_checkpoints=1"])
    one, other = weights(whole, 4), weights(run, 4)
    assert all(one[key].equal(other[key]) for key in one)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_run_of_which_no_checkpoint_is_whole_says_so(tiny, tmp_path, capsys):
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.steps=1"]
    train("autoencoder", arguments)
    damage(tmp_path / "run" / "checkpoints" / "step-00000001", "state empty")
    assert main(["train", "autoencoder", *arguments, "--resume"]) == 2
    assert "no checkpoint in" in capsys.readouterr().err.splitlines()[-1]


def test_a_disk_that_is_full_costs_one_checkpoint(tiny, tmp_path):
    resource = pytest.importorskip("resource", reason="Windows does not limit the size of files")
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.checkpoint_every=1"]
    train("autoencoder", [*arguments, "--loop.steps=1"])
    size = max(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))

    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))

    process = command_line("autoencoder", *arguments, "--loop.steps=2", "--resume", preexec_fn=fill_disk)
    told = process.communicate()[1].splitlines()
    assert process.returncode == 2
    assert told[-1].startswith("latentgen: error:")
    assert "cannot be written" in told[-1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    train("autoencoder", [*arguments, "--loop.steps=2", "--resume"])


def test_ctrl_c_while_pictures_are_encoded_stops_at_once(tiny, tmp_path):
    arguments = [*tiny("text-to-image", tmp_path / "run"), "--data.length=100000", f"--cache={tmp_path / 'cache'}"]
    # A shell has its background jobs ignore SIGINT, these tests' own process perhaps among them.
    process = command_line("text-to-image", *arguments, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    read = ""
    while "encoding pictures:   0%" not in read and process.poll() is None:
        read += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "recipe",
    ["model: 5", "data: null", "loop: [1]", "loss: text", "loop: {optimizer: 3}", "data: {caption_weights: 1}"],
)
def test_a_section_of_another_kind_is_one_line(recipe, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    assert main(["train", "autoencoder", f"--config={path}", f"--output={tmp_path / 'run'}"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert next(iter(yaml.safe_load(recipe))) in error
    assert not (tmp_path / "run").exists()
