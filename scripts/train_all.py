"""Trains a whole text-to-image model from nothing: text tower, autoencoder and denoiser of one folder of recipes.

    python scripts/train_all.py training/recipes/shapes
    python scripts/train_all.py training/recipes/emoji --data PATH_OF_THE_EMOJI_DATA --teacher PATH_OF_ALL_MINILM_L6_V2

Run it again to go on after an interruption: finished stages are kept, the stage that was cut off resumes. Settings for
single stages follow, such as `text-to-image:--loop.steps=100 autoencoder:--loop.batch_size=16`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

STAGES = ("text-encoder", "autoencoder", "text-to-image")


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
    given.output = given.output or Path("runs") / given.recipes.name
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


def command(stage: str, given: argparse.Namespace) -> list[str]:
    """The `latentgen train` command of a stage."""
    words = [sys.executable, "-m", "latentgen", "train", stage, f"--config={recipe(given.recipes, stage)}", "--resume"]
    words.append(f"--output={given.output / stage}")
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


def main() -> int:
    """Runs what is not finished yet; returns the exit status of the stage that failed, or 0."""
    given = arguments()
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment = os.environ | (on_cpu if given.device == "cpu" else {})
    for stage in STAGES:
        if (given.output / stage / "model").is_dir():
            print(f"{stage}: finished before, kept", flush=True)
            continue
        started = time.monotonic()
        status = subprocess.run(command(stage, given), env=environment, check=False).returncode
        if status:
            return status
        print(f"{stage}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    print(f"the model is {given.output / 'text-to-image/model'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
