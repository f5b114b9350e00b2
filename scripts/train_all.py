"""Trains a whole text-to-image model from nothing: text tower, autoencoder and denoiser of one folder of recipes.

    python scripts/train_all.py training/recipes/shapes
    python scripts/train_all.py training/recipes/emoji --data PATH_OF_THE_EMOJI_DATA --teacher PATH_OF_ALL_MINILM_L6_V2

Run it again to go on after an interruption: finished stages are kept, the stage that was cut off resumes. Settings for
single stages follow, such as `text-to-image:--loop.steps=100 autoencoder:--loop.batch_size=16`.

As many processes as `--processes` says share each batch, and the steps are the same. It is one unless told otherwise,
but two on a CPU, where they are faster than one with as many threads.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

try:
    from training.command import read_settings
except ImportError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from training.command import read_settings
from latentgen.cli import script
from latentgen.hardware import default_device, require_compiler
from training.checkpoint import list_checkpoints
from training.config import LoopConfig
from training.interrupt import handle_ending
from training.run_folder import MODEL, differences

STAGES = ("text-encoder", "autoencoder", "text-to-image")
PATIENCE = 60  # seconds
# Settings in which a finished stage may differ: where things are, and what leaves no mark on the model.
PLACES = ("output", "cache", "vae", "text_encoder", "loop.workers", "loop.threads", "loop.log_every")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script.Parser("train_all.py", __doc__)
    parser.add_argument(
        "recipes", type=Path, help="folder with text_encoder.yaml, autoencoder.yaml, text_to_image.yaml"
    )
    parser.add_argument("--data", help="path of the data; left out, the recipes' own")
    parser.add_argument("--teacher", help="folder of the text tower's sentence encoder")
    parser.add_argument("--output", type=Path, help="folder of all runs; left out, runs/ and the recipe folder's name")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="cpu leaves a GPU alone")
    parser.add_argument("--processes", type=int, help="how many share a batch; left out, 1 on a GPU and 2 on a CPU")
    parser.add_argument("settings", nargs="*", help="stage:--setting=value")
    given = parser.parse_intermixed_args()
    given.output = given.output or Path("runs") / given.recipes.resolve().name
    most = math.inf if on_cpu(given) else max(1, torch.cuda.device_count())
    if given.processes is not None and not 1 <= given.processes <= most:
        expected = "at least 1" if on_cpu(given) else f"1 to {most}, as many as there are GPUs"
        parser.error(f"--processes is {given.processes}; expected {expected}")
    for stage in STAGES:
        if not recipe(given.recipes, stage).is_file():
            parser.error(f"{recipe(given.recipes, stage)} is not there: {given.recipes} is no folder of recipes")
    for setting in given.settings:
        if setting.partition(":")[0] not in STAGES:
            parser.error(f"{setting!r}: begin with one of {', '.join(STAGES)} and a colon")
    return given


def on_cpu(given: argparse.Namespace) -> bool:
    """Whether the trainings run on the CPU."""
    return given.device == "cpu" or default_device().type == "cpu"


def recipe(folder: Path, stage: str) -> Path:
    """A stage's recipe in a folder of recipes."""
    return folder / f"{stage.replace('-', '_')}.yaml"


def settings(stage: str, given: argparse.Namespace) -> list[str]:
    """The arguments of a stage's `latentgen train`."""
    words = [f"--config={recipe(given.recipes, stage)}", "--resume", f"--output={given.output / stage}"]
    if given.data:
        words.append(f"--data.path={given.data}")
    if stage == "text-encoder" and given.teacher:
        words.append(f"--teacher.path={given.teacher}")
    if stage == "text-to-image":
        words += [
            f"--vae={given.output / 'autoencoder/model'}",
            f"--text_encoder={given.output / 'text-encoder/model'}",
        ]
        words.append(f"--cache={given.output / 'cache'}")
    return words + [value for setting in given.settings for name, _, value in [setting.partition(":")] if name == stage]


def check(stage: str, given: argparse.Namespace) -> int:
    """Reads a stage's settings, and compares them with those of a model that is there; returns how many processes.

    Raises:
        ValueError, argparse.ArgumentError: They make no sense, or the model was made with others.
    """
    try:
        told = read_settings(stage, settings(stage, given))
        processes = processes_of(told.recipe.loop, given)
        if told.recipe.loop.compile and not (given.output / stage / MODEL).is_dir():
            require_compiler("cpu" if on_cpu(given) else default_device())
    except (ValueError, argparse.ArgumentError) as error:
        raise ValueError(f"{stage}: {error}") from error
    folder = given.output / stage
    changed = {name: words for name, words in differences(folder, told.text).items() if name not in PLACES}
    if (folder / MODEL).is_dir() and changed:
        raise ValueError(
            f"{folder / MODEL} was made with other settings: {'; '.join(changed.values())}. Choose another --output, "
            f"or move {folder} away to train that stage again."
        )
    return processes


def processes_of(loop: LoopConfig, given: argparse.Namespace) -> int:
    """How many processes train a stage.

    Raises:
        ValueError: As many as were asked for cannot share its batches.
    """
    if given.processes:
        loop.part_size(given.processes)
        return given.processes
    several = on_cpu(given) and torch.get_num_threads() > 1 and loop.batch_size % (2 * loop.gradient_accumulation) == 0
    return 2 if several else 1


def environments(given: argparse.Namespace, processes: int) -> list[dict[str, str]]:
    """The environment of each process of a stage, in the variables by which torch.distributed finds the others."""
    common = dict(os.environ)
    if on_cpu(given):
        threads = max(1, torch.get_num_threads() // processes)
        common |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
    if processes == 1:
        return [common]
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.getsockname()[1])}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run(command: list[str], places: list[dict[str, str]]) -> int:
    """Runs a stage in one process for each environment of `places`; returns the exit status of one that failed, or 0.

    A signal to end is passed on once, and the stage saves and leaves. When one process has failed the others, which
    may wait for it, have `PATIENCE` to leave by themselves.
    """
    # In sessions of their own the terminal's Ctrl-C does not reach them as well, which would count as a second one.
    group: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        for process in group:
            process.send_signal(number)

    before = handle_ending(pass_on)
    try:
        for environment in places:
            signals = len(told)
            group.append(subprocess.Popen(command, env=environment, start_new_session=True))
            if len(told) > signals:  # while it was started
                group[-1].send_signal(told[-1])
        while None in (ended := [process.poll() for process in group]) and not any(ended):
            time.sleep(0.1)
        end = time.monotonic() + PATIENCE
        for process in group:
            try:
                process.wait(max(0.0, end - time.monotonic()) if any(ended) else None)
            except subprocess.TimeoutExpired:
                process.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    status = next((status for status in ended if status), 0)
    return status if status >= 0 else 128 - status


def main() -> int:
    """Runs what is not finished yet; returns the exit status of the stage that failed, or 0."""
    return script.run(lambda: train_all(arguments()))


def train_all(given: argparse.Namespace) -> int:
    """Checks all stages, then runs them; returns the exit status of the one that failed, or 0.

    Raises:
        ValueError: Settings make no sense, or are not those of a model that is there.
    """
    processes = {stage: check(stage, given) for stage in STAGES}
    *before, last = STAGES
    begun = given.output / last
    missing = [stage for stage in before if not (given.output / stage / MODEL).is_dir()]
    if missing and ((begun / MODEL).is_dir() or list_checkpoints(begun / "checkpoints")):
        raise ValueError(
            f"{begun} was made on a model of {' and '.join(missing)} that is not there any more: bring it back, or "
            f"move {begun} away to train all anew."
        )
    for stage in STAGES:
        if (given.output / stage / MODEL).is_dir():
            print(f"{stage}: finished before, kept", flush=True)
            continue
        started = time.monotonic()
        command = [sys.executable, "-m", "latentgen", "train", stage, *settings(stage, given)]
        status = run(command, environments(given, processes[stage]))
        if status:
            return status
        print(f"{stage}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    print(f"the model is {given.output / 'text-to-image/model'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
