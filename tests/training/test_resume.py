"""A run that was killed and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

TASKS = ["autoencoder", "text-encoder", "text-to-image"]
STEPS = 12


def all_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint (optimizer and averages included) and of the finished model."""
    files = [*sorted((folder / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors"))]
    files += sorted((folder / "model").rglob("*.safetensors"))
    assert len(files) >= 2
    return {f"{file.relative_to(folder)}:{k}": v for file in files for k, v in load_file(file).items()}


def assert_same_run(one: Path, other: Path) -> None:
    a, b = all_weights(one), all_weights(other)
    assert a.keys() == b.keys()
    different = {
        name: (a[name].double() - b[name].double()).abs().max().item() for name in a if not a[name].equal(b[name])
    }
    assert not different


def wait_until(condition, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.002)


def kill_and_resume(start, arguments: list[str], task: str, folder: Path, delays: list[float]) -> int:
    """Kills the run after each delay from its first sign of progress, then lets it end; returns the kills that hit."""
    hits = 0
    for delay in delays:
        progress = sorted(folder.glob("checkpoints/*"))
        process = start(task, [*arguments, "--resume"])
        wait_until(lambda before=progress: sorted(folder.glob("checkpoints/*")) != before, process)
        time.sleep(delay)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            hits += 1
        process.join()
        if process.exitcode == 0:
            return hits
    process = start(task, [*arguments, "--resume"])
    process.join()
    assert process.exitcode == 0
    return hits


@pytest.fixture(scope="module")
def uninterrupted(tiny, start, tmp_path_factory):
    """task -> the folder of its run from beginning to end, made once."""
    folders: dict[str, Path] = {}

    def of(task: str) -> Path:
        if task not in folders:
            folders[task] = tmp_path_factory.mktemp(task) / "run"
            process = start(task, [*tiny(task, folders[task]), f"--loop.steps={STEPS}", "--loop.checkpoint_every=3"])
            process.join()
            assert process.exitcode == 0
        return folders[task]

    return of


@pytest.mark.parametrize("task", TASKS)
def test_killed_run_resumes_to_the_same_weights(task, tiny, start, uninterrupted, tmp_path):
    arguments = [*tiny(task, tmp_path / "run"), f"--loop.steps={STEPS}", "--loop.checkpoint_every=1"]
    hits = kill_and_resume(start, arguments, task, tmp_path / "run", [0.0, 0.01])
    assert hits
    assert_same_run(uninterrupted(task), tmp_path / "run")


def test_a_killed_run_with_muon_resumes_to_the_same_weights(tiny, start, tmp_path):
    # Wide enough for hidden layers that Muon takes.
    extra = ["--loop.optimizer.name=muon", "--model.block_out_channels=[16,16]", f"--loop.steps={STEPS}"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    process = start("text-to-image", [*tiny("text-to-image", whole), *extra, "--loop.checkpoint_every=3"])
    process.join()
    assert process.exitcode == 0
    arguments = [*tiny("text-to-image", folder), *extra, "--loop.checkpoint_every=1"]
    assert kill_and_resume(start, arguments, "text-to-image", folder, [0.2, 0.1])
    assert_same_run(whole, folder)
    assert any("momentum_buffer" in name for name in all_weights(folder))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_twenty_kills_at_random_moments(task, tiny, start, uninterrupted, tmp_path):
    generator = torch.Generator().manual_seed(TASKS.index(task))
    kills = 0
    for attempt in range(12):
        folder = tmp_path / f"run{attempt}"
        arguments = [*tiny(task, folder), f"--loop.steps={STEPS}", "--loop.checkpoint_every=1"]
        delays = (torch.rand(4, generator=generator) * 0.15).tolist()
        kills += kill_and_resume(start, arguments, task, folder, delays)
        assert_same_run(uninterrupted(task), folder)
    assert kills >= 20


@pytest.mark.parametrize("workers", [0, 2])
def test_a_terminated_run_saves_and_resumes(workers, tiny, start, uninterrupted, tmp_path):
    task = "autoencoder"
    arguments = [*tiny(task, tmp_path / "run"), f"--loop.steps={STEPS}", "--loop.checkpoint_every=3"]
    arguments.append(f"--loop.workers={workers}")
    process = start(task, arguments)
    checkpoints = tmp_path / "run" / "checkpoints"
    wait_until(lambda: (checkpoints / "step-00000003").exists(), process)
    # As schedulers of clusters do, the processes that prepare data are told as well.
    for one in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
        one.send_signal(signal.SIGTERM)
    process.join()
    assert process.exitcode != 0
    assert not (tmp_path / "run" / "model").exists()
    saved = max(path.name for path in checkpoints.iterdir())
    assert saved < f"step-{STEPS:08d}"
    process = start(task, [*arguments, "--resume"])
    process.join()
    assert_same_run(uninterrupted(task), tmp_path / "run")
