"""From no model at all to a picture, by the commands that a user types."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.inputs import Generation

ROOT = Path(__file__).parents[2]
RECIPES = {
    "text_encoder": """
data: {path: shapes, resolution: 32, length: 40}
image_size: 16
patch_size: 8
vocabulary_size: 600
projection_dim: 16
text: {hidden_size: 16, layers: 1, heads: 1}
vision: {hidden_size: 16, layers: 1, heads: 1}
loop: {steps: 2, batch_size: 8, sample_every: 0}
""",
    "autoencoder": """
data: {path: shapes, resolution: 32, length: 40}
model: {block_out_channels: [8, 16], latent_channels: 4, norm_num_groups: 4}
loop: {steps: 2, batch_size: 4, sample_every: 0}
""",
    "text_to_image": """
vae: will be given
text_encoder: will be given
data: {path: shapes, resolution: 32, length: 40}
model:
  block_out_channels: [8, 16]
  attention: [false, true]
  attention_heads: [1, 1]
  norm_num_groups: 4
  pooled_text_heads: 1
  time_scale_shift: true
preview: {num_inference_steps: 3, guidance_scale: 2.0, eta: 0.5}
save_dtype: float16
loop: {steps: 2, batch_size: 8, sample_every: 0}
""",
}


def write_recipes(folder: Path) -> None:
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)


def run(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    write_recipes(folder)
    words = ["scripts/train_all.py", str(folder), "--output", str(folder / "out"), "--device=cpu"]
    words += ["--processes=2", "autoencoder:--loss.edges=0.5"]
    done = run(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "edges: 0.5" in (folder / "out" / "autoencoder" / "recipe.yaml").read_text()
    again = run(*words)
    assert again.stdout.count("finished before") == 3
    other = run(*words, "text-encoder:--loop.steps=5")
    assert other.returncode == 2
    assert "loop.steps was 2, is now 5" in other.stderr
    return folder / "out" / "text-to-image" / "model"


def test_the_trained_model_draws_from_the_command_line(trained, tmp_path):
    picture = tmp_path / "picture.png"
    done = run("-m", "latentgen", "generate", "a red circle", "--model", str(trained), "--seed=7", f"--out={picture}")
    assert done.returncode == 0, done.stderr
    assert Image.open(picture).size == (32, 32)
    refused = run("-m", "latentgen", "generate", "a red circle", "--model", str(trained), f"--out={picture}")
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_diffusers_draws_the_same_picture(trained):
    from diffusers import StableDiffusionPipeline

    from latentgen import TextToImagePipeline

    settings = {"num_inference_steps": 5, "guidance_scale": 3.0, "eta": 0.0, "output_type": "np"}
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = TextToImagePipeline.from_pretrained(trained, torch_dtype=torch.float32)
    theirs = StableDiffusionPipeline.from_pretrained(trained, torch_dtype=torch.float32)
    prompts = ["a red circle", "two blue stars"]
    a, b = (pipe(prompts, latents=latents, **settings).images for pipe in (ours, theirs))
    assert np.abs(a - b).max() < 1e-3
    assert ours.generation == Generation(3, 2.0, eta=0.5)


def test_a_folder_without_recipes_is_refused(tmp_path):
    done = run("scripts/train_all.py", str(tmp_path))
    assert done.returncode == 2
    assert "no folder of recipes" in done.stderr


def test_a_setting_of_the_last_stage_is_refused_before_the_first_begins(tmp_path):
    write_recipes(tmp_path)
    done = run("scripts/train_all.py", str(tmp_path), f"--output={tmp_path / 'out'}", "text-to-image:--loop.steps=0")
    assert done.returncode == 2
    assert "text-to-image: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_processes_that_cannot_share_a_batch_are_refused_before_the_first_stage_begins(tmp_path):
    write_recipes(tmp_path)
    done = run("scripts/train_all.py", str(tmp_path), f"--output={tmp_path / 'out'}", "--device=cpu", "--processes=8")
    assert done.returncode == 2
    assert "autoencoder: batch_size 4 cannot be divided into 8 process(es)" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_whose_parts_are_gone_is_not_taken_for_theirs(trained):
    parts = trained.parents[1]
    (parts / "autoencoder").rename(parts / "elsewhere")
    done = run("scripts/train_all.py", str(parts.parent), f"--output={parts}", "--device=cpu")
    (parts / "elsewhere").rename(parts / "autoencoder")
    assert done.returncode == 2
    assert "was made on a model of autoencoder that is not there any more" in done.stderr


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGINT, 2), pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow)]
)
def test_a_stage_that_is_told_to_end_saves_first(number, processes, tmp_path):
    write_recipes(tmp_path)
    words = [sys.executable, "scripts/train_all.py", str(tmp_path), f"--output={tmp_path / 'out'}", "--device=cpu"]
    words += [f"--processes={processes}"]
    words += ["text-encoder:--loop.steps=100000", "text-encoder:--loop.checkpoint_every=20"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = {"env": environment, "cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    # A shell has its background jobs ignore SIGINT, these tests' own process perhaps among them.
    process = subprocess.Popen(words, **options, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    checkpoints = tmp_path / "out" / "text-encoder" / "checkpoints"
    end = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"stopped by {number.name} after step" in told
    saved = max(int(path.name.removeprefix("step-")) for path in checkpoints.iterdir())
    assert f"after step {saved};" in told
