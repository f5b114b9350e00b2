"""Tiny recipes of every task on `shapes`, and a way to run them in processes that may be killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

TINY_DATA = ["--data.path=shapes", "--data.resolution=32", "--data.length=40"]
TINY_LOOP = ["--loop.threads=1", "--loop.mixed_precision=no", "--loop.log_every=2", "--loop.sample_every=0"]
TINY_TASK = {
    "autoencoder": [
        "--model.block_out_channels=[8,16]",
        "--model.norm_num_groups=4",
        "--model.latent_channels=4",
        "--loss.adversarial=0.1",
        "--loss.adversarial_start=2",
        "--loss.discriminator_channels=8",
        "--loop.batch_size=4",
    ],
    "text-encoder": [
        "--image_size=16",
        "--patch_size=8",
        "--vocabulary_size=600",
        "--projection_dim=16",
        "--text={hidden_size: 16, layers: 1, heads: 1}",
        "--vision={hidden_size: 16, layers: 1, heads: 1}",
        "--recall_weight=1",
        "--loop.batch_size=8",
    ],
    "text-to-image": [
        "--model.block_out_channels=[8,16]",
        "--model.attention=[false,true]",
        "--model.attention_heads=[1,1]",
        "--model.norm_num_groups=4",
        "--loop.batch_size=8",
        "--preview.count=2",
        "--preview.num_inference_steps=2",
    ],
}


def run_task(task: str, arguments: list[str]) -> Path:
    """Runs a task in this process. Importable, so that a child process can be told to call it."""
    from training.command import train

    return train(task, arguments)


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """A folder with a tiny trained autoencoder and text tower, for `text-to-image`."""
    folder = tmp_path_factory.mktemp("parts")
    for task in ("autoencoder", "text-encoder"):
        run_task(task, [*TINY_DATA, *TINY_LOOP, *TINY_TASK[task], "--loop.steps=2", f"--output={folder / task}"])
    return folder


@pytest.fixture(scope="session")
def tiny(parts) -> Callable[[str, Path], list[str]]:
    """Arguments of a tiny run: (task, output folder) -> list."""

    def arguments(task: str, output: Path) -> list[str]:
        given = [*TINY_DATA, *TINY_LOOP, *TINY_TASK[task], f"--output={output}"]
        if task == "text-to-image":
            given += [f"--vae={parts / 'autoencoder/model'}", f"--text_encoder={parts / 'text-encoder/model'}"]
            given += [f"--cache={parts / 'cache'}"]
        return given

    return arguments


@pytest.fixture(scope="session")
def start() -> Callable[[str, list[str]], multiprocessing.Process]:
    """Starts a task in a process of its own; it begins at once, as the imports are done in the server it forks from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["training.tasks.autoencoder", "training.tasks.text_encoder", "training.tasks.text_to_image", "training.loop"]
    )

    def begin(task: str, arguments: list[str]) -> multiprocessing.Process:
        from training.command import train

        process = context.Process(target=train, args=(task, arguments))
        process.start()
        return process

    return begin
