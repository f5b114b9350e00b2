"""`Studio`: draws many prompts with one model and keeps every picture, so that a run that was cut off goes on."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from latentgen.evaluation.scoring import lot
from latentgen.models.digest import digest_of_weights
from pipelines import TextToImagePipeline, inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `Studio` takes."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for what is made, the pictures included")
    add("--model", help="a model folder or a Hub id; default: the bundled model")
    add("--steps", type=int, help="how often the sampler asks the U-Net; default: the model's own")
    add("--guidance-scale", type=float, help="default: the model's own")
    add("--guidance-rescale", type=float, help="default: the model's own")
    add("--eta", type=float, help="fresh noise on the way, 0 to 1; default: the model's own")
    add("--scheduler", help="the sampler, such as ddim; default: the model's own")
    add("--seed", type=int, default=0, help="of the choice of captions and of the pictures; default 0")
    add("--batch-size", type=int, default=16, help="pictures drawn at once; default 16")
    add("--device", help="cpu, cuda, ...; default: the fastest")
    add("--dtype", help="float32, float16 or bfloat16; default: what the device is fast at")
    add("--overwrite", action="store_true", help="replace reports, and pictures of another model or other settings")


def check_arguments(options: argparse.Namespace) -> None:
    """Checks them before anything is loaded.

    Raises:
        ValueError: A number makes no sense.
    """
    inputs.Generation().but(_call(options))
    inputs.whole("--batch-size", options.batch_size)
    inputs.whole("--seed", options.seed, least=0)


def _call(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "guidance_rescale": options.guidance_rescale,
        "eta": options.eta,
    }


class Studio:
    """Draws prompts, each with a seed of its own, and keeps the pictures so that nothing is drawn twice.

    Args:
        options: See `add_arguments`.

    Raises:
        FileExistsError: The folder holds pictures of another model or other settings.
        ValueError, OSError: The model cannot be loaded, see `TextToImagePipeline.from_pretrained`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.drawn, self.seconds = options, 0, 0.0
        self.folder = options.out / "pictures"
        self.pipe = TextToImagePipeline.from_pretrained(
            options.model, torch_dtype=options.dtype, device=options.device, scheduler=options.scheduler
        )
        self.call = _call(options)
        self.settings = {
            **vars(self.pipe.generation.but(self.call)),
            "model": str(options.model or "bundled"),
            "weights": digest_of_weights(self.pipe.unet, self.pipe.vae, self.pipe.text_encoder),
            "scheduler": type(self.pipe.scheduler).__name__,
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
            "seed": options.seed,
        }
        self._take_folder()

    def _take_folder(self) -> None:
        """Keeps pictures that were drawn with these settings, and removes others if that was asked for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        noted = self.options.out / "settings.json"
        settings = json.dumps(self.settings, indent=1, sort_keys=True) + "\n"
        if noted.is_file() and noted.read_text(encoding="utf-8") != settings:
            if not self.options.overwrite and any(self.folder.glob("*.png")):
                raise FileExistsError(
                    f"{self.options.out} holds pictures of another model or other settings; choose another --out, or "
                    "pass --overwrite to replace them"
                )
            for old in self.folder.glob("*.png"):
                old.unlink()
        noted.write_text(settings, encoding="utf-8")

    def draw(self, prompts: Sequence[str], names: Sequence[str]) -> Iterator[Image.Image]:
        """A picture for each prompt; its name gives its seed and its file."""
        places = [self.folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.png" for name in names]
        missing = [index for index, place in enumerate(places) if not place.is_file()]
        with tqdm(total=len(missing), desc="drawing", unit="picture") as bar:
            for start in range(0, len(missing), self.options.batch_size):
                batch = missing[start : start + self.options.batch_size]
                seeds = [lot(self.options.seed, names[index]) >> 32 for index in batch]
                started = time.perf_counter()
                made: Any = self.pipe([prompts[index] for index in batch], seed=seeds, show_progress=False, **self.call)
                self.seconds += time.perf_counter() - started
                self.drawn += len(batch)
                for index, picture in zip(batch, made.images, strict=True):
                    part = places[index].with_suffix(".part")
                    picture.save(part, format="PNG")
                    part.replace(places[index])
                bar.update(len(batch))
        for place in places:
            with Image.open(place) as picture:
                yield picture.convert("RGB")

    def throughput(self) -> dict[str, float | int]:
        """How many pictures this run drew, and how fast."""
        return {"pictures": self.drawn, "per_second": self.drawn / self.seconds if self.drawn else 0.0}
