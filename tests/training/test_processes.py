"""The same recipe takes the same steps in one process and in two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
PLAYER = {"autoencoder": "autoencoder", "text-encoder": "clip", "text-to-image": "denoiser"}


def launch(processes: int, task: str, folder: Path, arguments: list[str]) -> None:
    # `accelerate launch --cpu` would start a single process.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launcher, "-m", "latentgen", "train", task, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(str(folder / "model")) == processes


@pytest.mark.parametrize("task", [pytest.param("autoencoder", marks=pytest.mark.slow), "text-encoder", "text-to-image"])
def test_two_processes_take_the_steps_of_one(task, tiny, tmp_path):
    weights = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        # A large epsilon makes Adam's step smooth in the gradient, so that rounding stays rounding.
        extra = ["--loop.steps=3", "--loop.optimizer.epsilon=1e-3", "--loop.optimizer.warmup_steps=0"]
        launch(processes, task, folder, [*tiny(task, folder), *extra])
        weights.append(load_file(folder / "checkpoints" / "step-00000003" / f"{PLAYER[task]}.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, one in weights[0].items():
        torch.testing.assert_close(
            one, weights[1][name], rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
