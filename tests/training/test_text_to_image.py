"""The denoiser's task: its loss, its draws, its cached latents."""

from __future__ import annotations

import copy
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from latentgen.cli.main import main
from latentgen.diffusion.schedule import noise_schedule
from latentgen.models import AutoencoderKL
from latentgen.schedulers import DDPMScheduler
from training.command import read_settings, train
from training.data import DataConfig, open_source, to_tensor
from training.data.latents import encode_latents
from training.tasks.text_to_image import (
    DenoiserConfig,
    Denoising,
    DiffusionConfig,
    LatentSamples,
    TextToImageRecipe,
    TextToImageTask,
    make_unet,
)

MODEL = DenoiserConfig(block_out_channels=(8, 16), attention=(False, True), attention_heads=(1, 1), norm_num_groups=4)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    unet = make_unet(MODEL, 8, 4, 16)
    with torch.no_grad():
        for p in unet.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return unet


@pytest.fixture
def batch() -> dict:
    g = torch.Generator().manual_seed(1)
    return {
        "x0": torch.randn(6, 4, 8, 8, generator=g),
        "eps": torch.randn(6, 4, 8, 8, generator=g),
        "timesteps": torch.arange(50, 1000, 160),
        "embeddings": torch.randn(6, 5, 16, generator=g),
    }


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loss_is_the_squared_error_against_diffusers_target(prediction_type, unet, batch):
    from diffusers import DDPMScheduler as Theirs

    config = DiffusionConfig(prediction_type=prediction_type, weighting="simple", beta_schedule="scaled_linear")
    loss, _ = Denoising(unet, config)(batch)
    scheduler = Theirs(beta_schedule="scaled_linear", beta_start=config.beta_start, beta_end=config.beta_end)
    timesteps = batch["timesteps"]
    noisy = scheduler.add_noise(batch["x0"], batch["eps"], timesteps)
    out = unet(noisy, timesteps, batch["embeddings"]).sample
    velocity = scheduler.get_velocity(batch["x0"], batch["eps"], timesteps)
    aim = {"epsilon": batch["eps"], "v_prediction": velocity, "sample": batch["x0"]}[prediction_type]
    torch.testing.assert_close(loss, (out - aim).square().mean(), rtol=1e-4, atol=1e-5)


def test_min_snr_is_the_papers_weight_for_v(unet, batch):
    losses = [
        Denoising(unet, DiffusionConfig(weighting=weighting, gamma=gamma))({k: v[i : i + 1] for k, v in batch.items()})[
            0
        ]
        for weighting, gamma in (("simple", None), ("min_snr", 5.0))
        for i in range(6)
    ]
    snr = noise_schedule("squaredcos_cap_v2").log_snr.exp()[batch["timesteps"]]
    expected = snr.clamp(max=5) / (snr + 1)
    torch.testing.assert_close(
        torch.stack(losses[6:]) / torch.stack(losses[:6]), expected.float(), rtol=1e-4, atol=1e-6
    )


@pytest.fixture(scope="module")
def latent_samples(parts, tmp_path_factory):
    source = open_source(DataConfig(resolution=32, length=16))
    vae = AutoencoderKL.from_pretrained(parts / "autoencoder" / "model")
    latents = encode_latents(source, list(range(16)), vae, 32, tmp_path_factory.mktemp("cache"))
    recipe = TextToImageRecipe(vae="", text_encoder="")
    recipe.loop.batch_size = 8
    return LatentSamples(source, list(range(16)), latents, recipe, seed=3), vae, source


def test_samples_are_functions_of_their_number(latent_samples):
    samples, _, _ = latent_samples
    for number in (0, 5, 1000):
        a, b = samples[number], samples[number]
        assert a["caption"] == b["caption"]
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in ("x0", "eps", "u"))
    assert not samples[0]["eps"].equal(samples[16]["eps"])


def test_an_epoch_shows_every_row_once_and_drops_captions_at_the_set_rate(latent_samples):
    samples, _, _ = latent_samples
    for epoch in range(3):
        assert len({samples[epoch * 16 + i]["row"] for i in range(16)}) == 16
    dropped = np.mean([samples[i]["caption"] == "" for i in range(2000)])
    # Four standard deviations around the configured tenth.
    assert abs(dropped - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 2000)


def test_places_of_a_step_are_spread_evenly(latent_samples):
    samples, _, _ = latent_samples
    for step in range(5):
        places = np.sort([samples[step * 8 + i]["u"] for i in range(8)])
        assert np.allclose(np.diff(places), 1 / 8)
        assert 0 <= places[0] < 1 / 8


def test_posterior_draw_has_the_posteriors_moments(latent_samples):
    samples, _, _ = latent_samples
    draws = {}
    for number in range(16 * 60):
        item = samples[number]
        draws.setdefault(item["row"], []).append(item["x0"])
    row, values = next(iter(draws.items()))
    index = next(i for i in range(16) if samples.source.id(i) == row)
    mean, std = samples.latents.mean[index], samples.latents.std[index]
    z = (torch.stack(values) - mean) / std
    assert abs(z.mean()) < 4 / np.sqrt(z.numel())
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.numel())


def test_latents_are_the_autoencoders_and_are_kept(latent_samples, tmp_path):
    _, vae, source = latent_samples
    rows = list(range(16))
    first = encode_latents(source, rows, vae, 32, tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    again = encode_latents(source, rows, vae, 32, tmp_path)
    assert file.stat().st_mtime_ns == before
    assert first.mean.equal(again.mean)
    from training.data import to_tensor

    image = to_tensor(source.image(3), 32)[None]
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
    torch.testing.assert_close(first.mean[3:4], vae.scale_latents(posterior.mean), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.std[3:4], posterior.std * vae.config.scaling_factor, atol=1e-5, rtol=1e-3)


def test_processes_that_share_the_encoding_keep_what_one_does(latent_samples, tmp_path):
    _, vae, source = latent_samples
    rows = list(range(11))
    alone = encode_latents(source, rows, vae, 32, tmp_path / "alone", batch_size=2)
    with ThreadPoolExecutor(7) as processes:
        work = partial(encode_latents, source, rows, vae, 32, tmp_path / "shared", 2)
        shared = [one.result() for one in [processes.submit(work, (number, 7)) for number in range(7)]]
    for one in shared:
        assert one.mean.equal(alone.mean)
        assert one.std.equal(alone.std)
    kept = [[path.name for path in (tmp_path / folder).iterdir()] for folder in ("alone", "shared")]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 1


@pytest.mark.parametrize("change", ["weights", "rows", "resolution", "pictures"])
def test_latents_are_never_stale(change, latent_samples, parts, tmp_path):
    _, _, source = latent_samples
    vae = AutoencoderKL.from_pretrained(parts / "autoencoder" / "model")
    rows, resolution = list(range(4)), 32
    encode_latents(source, rows, vae, resolution, tmp_path)
    if change == "weights":
        with torch.no_grad():
            next(vae.parameters()).add_(1e-4)
    elif change == "rows":
        rows = rows[::-1]
    elif change == "resolution":
        resolution = 16
    else:
        source = open_source(DataConfig(resolution=32, length=16, seed=1))
    encode_latents(source, rows, vae, resolution, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_timesteps_follow_the_mean_from_its_beginning_to_its_end(tiny, tmp_path):
    density = ["timestep_density=logit_normal", "density_mean=2.0", "density_mean_end=-1.0", "density_deviation=0.5"]
    given = [*tiny("text-to-image", tmp_path / "run"), *(f"--diffusion.{word}" for word in density), "--loop.steps=40"]
    task = TextToImageTask(read_settings("text-to-image", given).recipe, tmp_path / "run")
    u = (torch.arange(999, dtype=torch.float64) + 0.5) / 999
    for step in (0, 10, 40):
        drawn = task.prepare({"caption": ["a red ring"], "u": u.numpy()}, step)["timesteps"]
        # The median's logit is the mean.
        assert torch.logit((drawn[499] + 0.5) / 1000).item() == pytest.approx(2.0 - 3.0 * step / 40, abs=0.01)


def test_scheduler_of_the_saved_model_is_the_one_trained_under(tiny, tmp_path):
    model = train("text-to-image", [*tiny("text-to-image", tmp_path / "run"), "--loop.steps=1"])
    scheduler = DDPMScheduler.from_pretrained(model / "scheduler")
    torch.testing.assert_close(
        scheduler.alphas_cumprod.double(), noise_schedule("squaredcos_cap_v2").alphas_cumprod, rtol=1e-5, atol=1e-9
    )
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--vae=/nowhere", "nowhere"),
        ("--text_encoder=/nowhere", "text_encoder"),
        ("--diffusion={prediction_type: epsilon, rescale_betas_zero_snr: true}", "epsilon"),
        ("--diffusion.weighting=wrong", "weighting"),
        ("--diffusion.timestep_density=wrong", "timestep_density"),
        ("--diffusion.caption_dropout=1.5", "caption_dropout"),
        ("--model.attention=[true]", "attention"),
        ("--diffusion.gamma=0", "gamma"),
        ("--diffusion.density_deviation=0", "density_deviation"),
        ("--diffusion.density_mean=.nan", "density_mean"),
        ("--preview.num_inference_steps=1001", "num_train_timesteps"),
        ("--model.layers_per_block=0", "layers_per_block"),
        ("--model={block_out_channels: [], attention: [], attention_heads: []}", "block_out_channels"),
        ("--cache=/dev/null/cache", "cache"),
    ],
)
def test_bad_settings_are_refused(argument, message, tiny, tmp_path, capsys):
    with pytest.raises((ValueError, OSError, SystemExit)) as caught:
        train("text-to-image", [*tiny("text-to-image", tmp_path / "run"), argument])
    assert message in str(caught.value) + capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def spoil(folder: Path, how: str) -> None:
    """Leaves a text tower's folder as an interrupted copy, or a mistake, may."""
    if how == "weights cut short":
        os.truncate(folder / "text_encoder" / "model.safetensors", 3000)
    elif how == "weights lost":
        (folder / "text_encoder" / "model.safetensors").unlink()
    elif how == "no tokenizer in its folder":
        for path in (folder / "tokenizer").iterdir():
            path.unlink()
    elif how == "a tokenizer of more words":
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        tokenizer.add_tokens([f"word{number}" for number in range(9)])
        tokenizer.save_pretrained(folder / "tokenizer")
    else:
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 2 if how == "layers" else 1}))
        if how == "pictures' tower too":
            shutil.copytree(folder / "clip", folder / "text_encoder", dirs_exist_ok=True)


@pytest.mark.parametrize(
    "how",
    [
        "weights cut short",
        "weights lost",
        "no tokenizer in its folder",
        "a tokenizer of more words",
        "layers",
        "pictures' tower too",
    ],
)
def test_a_text_tower_that_is_not_whole_is_refused_in_a_line(how, parts, tiny, tmp_path, capsys):
    folder = tmp_path / "tower"
    shutil.copytree(parts / "text-encoder" / "model", folder)
    spoil(folder, how)
    arguments = [*tiny("text-to-image", tmp_path / "run"), f"--text_encoder={folder}", "--loop.steps=1"]
    assert main(["train", "text-to-image", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("latentgen: error:")
    assert str(folder) in error or "tokens" in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_latents_cut_short_are_computed_again(parts, tmp_path):
    vae = AutoencoderKL.from_pretrained(parts / "autoencoder/model").eval()
    source = open_source(DataConfig(path="shapes", resolution=32, length=4))
    # A copy: what is read from a file stays tied to it.
    first = copy.deepcopy(encode_latents(source, [0, 1, 2, 3], vae, 32, tmp_path))
    (file,) = tmp_path.iterdir()
    os.truncate(file, file.stat().st_size - 8)
    with pytest.warns(UserWarning, match="computed again"):
        again = encode_latents(source, [0, 1, 2, 3], vae, 32, tmp_path)
    assert again.mean.equal(first.mean)
    assert again.std.equal(first.std)


def test_latents_are_float32_whatever_the_run_computes_in(parts, tmp_path):
    vae = AutoencoderKL.from_pretrained(parts / "autoencoder/model").eval()
    source = open_source(DataConfig(path="shapes", resolution=32, length=8))
    plain = encode_latents(source, list(range(8)), vae, 32, tmp_path / "plain")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encode_latents(source, list(range(8)), vae, 32, tmp_path / "mixed")
    assert mixed.mean.equal(plain.mean)
    assert mixed.std.equal(plain.std)
    pictures = torch.stack([to_tensor(source.image(row), 32) for row in range(8)])
    posterior = vae.encode(pictures).latent_dist
    torch.testing.assert_close(plain.std, posterior.std * vae.config.scaling_factor, rtol=1e-4, atol=1e-6)


def test_latents_that_are_no_numbers_are_not_kept(parts, tmp_path):
    vae = AutoencoderKL.from_pretrained(parts / "autoencoder/model").eval()
    with torch.no_grad():
        vae.encoder.conv_in.weight.fill_(float("inf"))
    source = open_source(DataConfig(path="shapes", resolution=32, length=2))
    with pytest.raises(FloatingPointError, match="shapes-train-0-0"):
        encode_latents(source, [0, 1], vae, 32, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_saved_in_half_precision_gives_its_tower(tiny, parts, tmp_path):
    saved = train("text-to-image", [*tiny("text-to-image", tmp_path / "one"), "--loop.steps=1", "--save_dtype=float16"])
    given = [f"--vae={saved / 'vae'}", f"--text_encoder={saved}", "--loop.steps=1", "--loop.sample_every=1"]
    assert train("text-to-image", [*tiny("text-to-image", tmp_path / "two"), *given]).is_dir()


def test_going_on_from_a_network_of_another_prediction_is_told(tiny, tmp_path):
    model = train("text-to-image", [*tiny("text-to-image", tmp_path / "one"), "--loop.steps=1"])
    given = [*tiny("text-to-image", tmp_path / "two"), "--loop.steps=1", f"--model.init={model / 'unet'}"]
    with pytest.warns(UserWarning, match="predicts 'v_prediction', and is trained to predict 'sample'"):
        train("text-to-image", [*given, "--diffusion.prediction_type=sample"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [("--preview.count=0", "preview.count"), ("--preview.columns=0", "preview.columns"), ("unet", "U-Net reads 7")],
)
def test_what_would_fail_later_is_refused_at_the_start(setting, message, tiny, tmp_path):
    if setting == "unet":
        make_unet(MODEL, 8, 7, 16).save_pretrained(tmp_path / "unet")
        setting = f"--model.init={tmp_path / 'unet'}"
    with pytest.raises(ValueError, match=message):
        train("text-to-image", [*tiny("text-to-image", tmp_path / "run"), setting])
    assert not (tmp_path / "run" / "checkpoints").exists()
