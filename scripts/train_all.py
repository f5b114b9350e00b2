"""Trains a whole text-to-image model from nothing: text tower, autoencoder and denoiser of one folder of recipes.

    python scripts/train_all.py training/recipes/shapes
    python scripts/train_all.py training/recipes/emoji --data PATH_OF_THE_EMOJI_DATA --teacher PATH_OF_ALL_MINILM_L6_V2

Run it again to go on after an interruption: finished stages are kept, the stage that was cut off resumes. Settings for
single stages follow, such as `text-to-image:--loop.steps=100 autoencoder:--loop.batch_size=16`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

try:
    from training.command import read_settings
except ImportError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from training.command import read_settings
from training.interrupt import handle_ending
from training.run_folder import MODEL, differences

STAGES = ("text-encoder", "autoencoder", "text-to-image")
# Settings in which a finished stage may differ: where things are, and what leaves no mark on the model.
PLACES = ("output", "cache", "vae", "text_encoder", "loop.workers", "loop.threads", "loop.log_every")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "recipes", type=Path, help="folder with text_encoder.yaml, autoencoder.yaml, text_to_image.yaml"
    )
    parser.add_argument("--data", help="path of the data; left out, the recipes' own")
    parser.add_argument("--teacher", help="folder of the text tower's sentence encoder")
    parser.add_argument("--output", type=Path, help="folder of all runs; left out, runs/ and the recipe folder's name")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="cpu leaves a GPU alone")
    parser.add_argument("settings", nargs="*", help="stage:--setting=value")
    given = parser.parse_intermixed_args()
    given.output = given.output or Path("runs") / given.recipes.resolve().name
    for stage in STAGES:
        if not recipe(given.recipes, stage).is_file():
            parser.error(f"{recipe(given.recipes, stage)} is not there: {given.recipes} is no folder of recipes")
    for setting in given.settings:
        if setting.partition(":")[0] not in STAGES:
            parser.error(f"{setting!r}: begin with one of {', '.join(STAGES)} and a colon")
    return given


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


def check(stage: str, given: argparse.Namespace) -> None:
    """Reads a stage's settings, and compares them with those of a model that is there.

    Raises:
        ValueError, argparse.ArgumentError: They make no sense, or the model was made with others.
    """
    try:
        text = read_settings(stage, settings(stage, given)).text
    except (ValueError, argparse.ArgumentError) as error:
        raise ValueError(f"{stage}: {error}") from error
    folder = given.output / stage
    changed = {name: told for name, told in differences(folder, text).items() if name not in PLACES}
    if (folder / MODEL).is_dir() and changed:
        raise ValueError(
            f"{folder / MODEL} was made with other settings: {'; '.join(changed.values())}. Choose another --output, "
            f"or move {folder} away to train that stage again."
        )


def run(command: list[str], environment: dict[str, str]) -> int:
    """Runs a stage and returns its exit status. A signal to end is passed on once, and the stage saves and leaves."""
    # In a session of its own the terminal's Ctrl-C does not reach it as well, which would count as a second one.
    with subprocess.Popen(command, env=environment, start_new_session=True) as stage:
        before = handle_ending(lambda number, _: stage.send_signal(number))
        try:
            status = stage.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def main() -> int:
    """Runs what is not finished yet; returns the exit status of the stage that failed, or 0."""
    given = arguments()
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment = os.environ | (on_cpu if given.device == "cpu" else {})
    try:
        for stage in STAGES:
            check(stage, given)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for stage in STAGES:
        if (given.output / stage / MODEL).is_dir():
            print(f"{stage}: finished before, kept", flush=True)
            continue
        started = time.monotonic()
        status = run([sys.executable, "-m", "latentgen", "train", stage, *settings(stage, given)], environment)
        if status:
            return status
        print(f"{stage}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    print(f"the model is {given.output / 'text-to-image/model'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
