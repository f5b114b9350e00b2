"""The model in the package: it opens in diffusers, draws there what it draws here, and shows what a prompt says."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open

from latentgen import TextToImagePipeline
from pipelines.loading import BUNDLED

PROMPTS = ["a red apple, noto style", "a firefighter with dark skin, fluent 3d style"]
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def bundled() -> TextToImagePipeline:
    pipe = TextToImagePipeline.from_pretrained(torch_dtype=torch.float32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_diffusers_draws_the_same_pictures(bundled: TextToImagePipeline) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(BUNDLED, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    latents = torch.randn(len(PROMPTS), 8, 16, 16, generator=torch.Generator().manual_seed(3))
    call = {"prompt": PROMPTS, "num_inference_steps": 20, "guidance_scale": 5.0, "output_type": "np"}
    ours = bundled(latents=latents, scheduler="ddim", **call).images
    assert np.abs(ours - theirs(latents=latents, **call).images).max() <= 1e-3


def test_the_folder_is_small_half_precision_and_names_no_other_place() -> None:
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 80 * MEGABYTE
    for path in BUNDLED.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    for path in BUNDLED.rglob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text())
    card = (BUNDLED / "README.md").read_text()
    assert all(name in card for name in ("Fluent", "Noto", "Twemoji", "license"))


@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_heart_has_the_colour_that_is_asked_for(bundled: TextToImagePipeline, colour: str, channel: int) -> None:
    prompts = [f"a {colour} heart, {style} style" for style in ("twemoji", "noto")]
    for picture in bundled(prompts, seed=[0, 1], output_type="np").images:
        assert picture.shape == (128, 128, 3)
        middle = picture[48:80, 48:80].mean((0, 1))
        assert middle.argmax() == channel
        assert picture[:6, :6].mean() > 0.9  # the corner is the paper
