"""The loop: what it asks of its settings, how it divides work, what it does when something goes wrong."""

from __future__ import annotations

import io
import json
import math

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentgen.cli.main import main
from latentgen.models import AutoencoderKL
from training.command import train
from training.config import LoopConfig
from training.data import DataConfig
from training.data.shapes import ShapesSource
from training.loop import Loop, _Numbers
from training.tasks.autoencoder import AutoencoderModelConfig, AutoencoderRecipe, AutoencoderTask


# A contrastive loss compares samples within a part, so for the text encoder more parts are another loss by nature.
@pytest.mark.parametrize("task", ["autoencoder", "text-to-image"])
def test_accumulation_takes_the_same_step(task, tiny, tmp_path):
    """A batch in one part or in four gives the same weights up to the order of summation."""
    weights = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        extra = [f"--loop.gradient_accumulation={parts}", "--loop.steps=3", "--loop.ema_decay=0"]
        train(task, [*tiny(task, folder), *extra, "--loop.optimizer.epsilon=1e-3", "--loop.optimizer.warmup_steps=0"])
        name = {"autoencoder": "autoencoder", "text-to-image": "denoiser"}[task]
        weights.append(load_file(folder / "checkpoints" / "step-00000003" / f"{name}.safetensors"))
    for key, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][key], rtol=2e-4, atol=2e-6)


def test_a_run_is_logged_previewed_and_exported(tiny, tmp_path):
    folder = train(
        "text-to-image", [*tiny("text-to-image", tmp_path / "run"), "--loop.steps=4", "--loop.sample_every=2"]
    )
    assert folder == tmp_path / "run" / "model"
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0}).Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [0, 2, 3]
    assert all(math.isfinite(event.value) for event in losses)
    assert [event.step for event in events.Images("samples")] == [2, 4]
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [
        "step-00000002.png",
        "step-00000004.png",
    ]


def test_a_finished_pipeline_opens_in_diffusers(tiny, tmp_path):
    from diffusers import StableDiffusionPipeline

    folder = train("text-to-image", [*tiny("text-to-image", tmp_path / "run"), "--loop.steps=1"])
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    picture = pipe("a red circle", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)
    (tmp_path / "note").write_text("")
    modes = {path.stat().st_mode for path in (tmp_path / "run").rglob("*.safetensors")}
    assert modes == {(tmp_path / "note").stat().st_mode}


def test_nan_stops_and_names_step_and_samples(tiny, tmp_path):
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.steps=50", "--loop.checkpoint_every=1"]
    arguments += ["--loop.optimizer.learning_rate=1e30", "--loop.optimizer.warmup_steps=0", "--loss.adversarial=0"]
    with pytest.raises(FloatingPointError, match=r"step \d+.*Samples of that step: .+last good checkpoint") as caught:
        train("autoencoder", arguments)
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved
    assert str(saved[-1]) in str(caught.value)
    tensors = load_file(saved[-1] / "autoencoder.safetensors")
    assert all(torch.isfinite(v).all() for v in tensors.values())


def test_weights_that_an_update_broke_are_not_saved(tiny, tmp_path):
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.checkpoint_every=1", "--loss.adversarial=0"]
    train("autoencoder", [*arguments, "--loop.steps=1"])
    broken = ["--loop.optimizer={learning_rate: 1.0e+39, warmup_steps: 0, schedule: constant}", "--loop.steps=2"]
    with pytest.raises(FloatingPointError, match=r"no longer finite.*step-00000001: look"):
        train("autoencoder", [*arguments, *broken, "--resume"])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    train("autoencoder", [*arguments, "--loop.steps=2", "--resume"])


def test_a_run_is_not_overwritten(tiny, tmp_path):
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.steps=1"]
    train("autoencoder", arguments)
    with pytest.raises(FileExistsError, match="--resume"):
        train("autoencoder", arguments)


def test_a_refused_run_leaves_the_folder_as_it_is(tiny, tmp_path):
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.steps=1"]
    train("autoencoder", arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(FileExistsError):
        train("autoencoder", arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_the_optimizer_settings_of_the_recipe_hold_after_resuming(tiny, tmp_path):
    arguments = tiny("autoencoder", tmp_path / "run")
    train("autoencoder", [*arguments, "--loop.steps=1"])
    changed = [
        "--loop.optimizer.betas=[0.5,0.6]",
        "--loop.optimizer.weight_decay=0.25",
        "--loop.optimizer.epsilon=1e-3",
    ]
    train("autoencoder", [*arguments, *changed, "--loop.steps=2", "--resume"])
    saved = json.loads((tmp_path / "run" / "checkpoints" / "step-00000002" / "autoencoder.json").read_text())
    matrices, vectors = saved["param_groups"]
    assert (matrices["betas"], matrices["weight_decay"], matrices["eps"]) == ([0.5, 0.6], 0.25, 1e-3)
    assert (vectors["betas"], vectors["weight_decay"]) == ([0.5, 0.6], 0.0)


@pytest.mark.parametrize("change", ["model.layers_per_block=2", "model.block_out_channels=[8,8]", "loop.ema_decay=0"])
def test_a_checkpoint_of_another_network_is_refused_in_a_line(change, tiny, tmp_path, capsys):
    arguments = tiny("autoencoder", tmp_path / "run")
    train("autoencoder", [*arguments, "--loop.steps=1"])
    (tmp_path / "run" / "recipe.yaml").unlink()
    assert main(["train", "autoencoder", *arguments, "--loop.steps=2", "--resume", f"--{change}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("latentgen: error:")
    assert "step-00000001" in error or "ema_decay" in error


def test_a_model_that_is_not_whole_does_not_appear(tiny, tmp_path):
    class CutOff(AutoencoderTask):
        def export(self, folder):
            super().export(folder)
            raise OSError("no space left")

    recipe = AutoencoderRecipe(
        data=DataConfig(path="shapes", resolution=32, length=8),
        model=AutoencoderModelConfig(block_out_channels=(8, 16), norm_num_groups=4),
        loop=LoopConfig(steps=1, batch_size=2, sample_every=0, mixed_precision="no"),
    )
    run = tmp_path / "run"
    with pytest.raises(OSError, match="no space"):
        Loop(CutOff(recipe, run), recipe.loop, run, "").run()
    assert not (run / "model").exists()
    assert Loop(AutoencoderTask(recipe, run), recipe.loop, run, "").run(resume=True) == run / "model"
    assert AutoencoderKL.from_pretrained(run / "model").config.latent_channels == 4
    assert sorted(path.name for path in run.glob(".*")) == []


@pytest.mark.parametrize("task", ["autoencoder", "text-encoder", "text-to-image"])
def test_bad_pictures_and_missing_captions_stop_no_task(task, tiny, tmp_path):
    good = io.BytesIO()
    ShapesSource("train", 1, 32).image(0).save(good, "PNG")
    contents = [b"no picture", *[good.getvalue()] * 10, None]
    captions = ["a", " ", *["a red circle"] * 9, "b"]
    images = [None if content is None else {"bytes": content, "path": None} for content in contents]
    table = datasets.Dataset.from_dict({"image": images, "caption": captions})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    data = [f"--data.path={tmp_path / 'a.parquet'}", "--data.max_bad_share=0.5", "--loop.sample_every=1"]
    assert train(task, [*tiny(task, tmp_path / "run"), *data, "--loop.steps=1"]).is_dir()
    listed = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert len(listed) == (2 if task == "autoencoder" else 3)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--loop.steps=0", "steps"),
        ("--loop.batch_size=3", "multiple of 2"),
        ("--loop.optimizer.learning_rate=-1", "learning_rate"),
        ("--loop.optimizer.betas=[0.9,1.0]", "betas"),
        ("--loop.optimizer.epsilon=0", "epsilon"),
        ("--loop.optimizer.weight_decay=-1", "weight_decay"),
        ("--loop.optimizer.momentum=1", "momentum"),
        ("--data.path=/nowhere/at/all", "nowhere"),
        ("--data.resolution=33", "multiple"),
        ("--crop=64", "crop"),
        ("--crop=-8", "crop"),
        ("--loop.seed=18446744073709551616", "seed"),
        ("--loop.ema_decay=1", "ema_decay"),
        ("--model.latent_channels=0", "latent_channels"),
        ("--model.block_out_channels=[8,-8]", "block_out_channels"),
        ("--model.block_out_channels=[]", "block_out_channels"),
        ("--model.layers_per_block=0", "layers_per_block"),
        ("--loss.discriminator_channels=0", "discriminator_channels"),
        ("--loss.perceptual=1 --loss.perceptual_features=/nowhere", "/nowhere"),
        ("--loss.l1=-1", "loss.l1"),
        ("--model.norm_num_groups=5", "norm_num_groups"),
    ],
)
def test_bad_settings_are_refused_before_training(argument, message, tiny, tmp_path, capsys):
    arguments = [*tiny("autoencoder", tmp_path / "run"), "--loop.gradient_accumulation=2", *argument.split()]
    with pytest.raises((ValueError, OSError, SystemExit)) as caught:
        train("autoencoder", arguments)
    assert message in str(caught.value) + capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("line", ["loop: {stepz: 3}", "loop: {steps: many}", "unknown: 1"])
def test_a_recipe_with_an_unknown_key_or_a_wrong_type_is_one_line_and_status_2(line, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(line)
    status = main(["train", "autoencoder", f"--config={recipe}", f"--output={tmp_path / 'run'}"])
    assert status == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert any(word in error for word in ("stepz", "many", "unknown"))
    assert not (tmp_path / "run").exists()


def test_printed_config_is_a_recipe(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train("autoencoder", [*tiny("autoencoder", tmp_path / "run"), "--loop.steps=2", "--print_config"])
    assert caught.value.code == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(capsys.readouterr().out)
    assert train("autoencoder", [f"--config={recipe}"]).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["autoencoder", "text-encoder", "text-to-image"])
def test_compiled_networks_take_the_same_steps(task, tiny, tmp_path):
    extra = ["--loop.steps=2", "--loop.optimizer.epsilon=1e-3", "--loop.optimizer.warmup_steps=0"]
    models = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        train(task, [*tiny(task, folder), *extra, f"--loop.compile={compiled}".lower()])
        (file, *_) = sorted((folder / "checkpoints" / "step-00000002").glob("*.safetensors"))
        models.append(load_file(file))
    assert models[0].keys() == models[1].keys()
    for key, one in models[0].items():
        torch.testing.assert_close(one, models[1][key], rtol=1e-3, atol=1e-5)


def test_the_recipe_beside_a_run_repeats_it(tiny, tmp_path):
    model = train("autoencoder", [*tiny("autoencoder", tmp_path / "run"), "--loop.steps=2"])
    again = train("autoencoder", [f"--config={tmp_path / 'run' / 'recipe.yaml'}", f"--output={tmp_path / 'again'}"])
    name = "diffusion_pytorch_model.safetensors"
    one, other = load_file(model / name), load_file(again / name)
    assert all(one[key].equal(other[key]) for key in one)


def test_batches_do_not_depend_on_the_number_of_processes():
    config = LoopConfig(steps=5, batch_size=8)
    whole = list(_Numbers(config, 2, 0, 1))
    for processes in (2, 4):
        parts = [list(_Numbers(config, 2, process, processes)) for process in range(processes)]
        share = 8 // processes
        joined = [n for step in range(3) for part in parts for n in part[step * share : (step + 1) * share]]
        assert joined == whole
