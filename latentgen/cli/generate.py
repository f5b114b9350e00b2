"""`latentgen generate`: pictures from sentences, saved with what they were made from."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import latentgen
from latentgen.cli import output, script
from pipelines import inputs

_BATCH = 8


def parser() -> argparse.ArgumentParser:
    """The arguments of `latentgen generate`."""
    made = script.Parser("latentgen generate", "Draw pictures from sentences.")
    add = made.add_argument
    add("prompts", metavar="PROMPT", nargs="+", help="what the picture shows; several sentences for several pictures")
    add("--model", metavar="MODEL", help="a model folder or a Hub id; default: the bundled model")
    add("--variant", metavar="NAME", help="which weights to take where the model has several, such as fp16")
    add("--out", metavar="PATH", help="a .png, .jpg or .webp file, or a folder; default: the current folder")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--num-images", metavar="N", type=int, help="pictures of each prompt; default: 1, or one for each seed")
    add("--seed", metavar="S", type=_seeds, help="a number s for s, s+1, ..., or one for each picture, as 1,2,3")
    add("--negative-prompt", metavar="TEXT", help="what to lead away from")
    add("--steps", metavar="N", type=int, help="how often the sampler asks the U-Net; default: the model's own")
    add("--guidance-scale", metavar="X", type=float, help="how closely to follow the prompt; default: the model's own")
    add("--guidance-rescale", metavar="X", type=float, help="0 to 1, against washed-out colours at high guidance")
    add("--height", metavar="PIXELS", type=int, help="default: as the model was trained")
    add("--width", metavar="PIXELS", type=int, help="default: as the model was trained")
    add("--scheduler", metavar="NAME", help="the sampler, such as ddim, ddpm or euler; default: the model's own")
    add("--eta", metavar="X", type=float, help="fresh noise on the way, 0 to 1, for samplers that know it")
    add("--batch-size", metavar="N", type=int, default=_BATCH, help=f"pictures drawn at once, default {_BATCH}")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:0, mps or xpu; default: the fastest")
    add("--dtype", metavar="NAME", help="float32, float16 or bfloat16; default: what the device is fast at")
    add("--quiet", action="store_true", help="no progress bar and no warnings; paths are still printed")
    return made


def run(argv: list[str]) -> int:
    """Draw what `argv` asks for and print the path of each picture.

    Raises:
        ValueError: An argument makes no sense.
        OSError: A file cannot be read or written, or would have to be replaced.
    """
    options = parser().parse_args(argv)
    inputs.prompt_list(options.prompts)
    inputs.whole("--batch-size", options.batch_size)
    each = inputs.images_each(options.num_images, options.seed, len(options.prompts))
    prompts = [prompt for prompt in options.prompts for _ in range(each)]
    wanted = _wanted(options)
    seeds = inputs.image_seeds(options.seed, len(prompts))
    paths = output.plan(options.out, prompts, seeds)
    output.check(paths, options.overwrite)
    if options.quiet:
        warnings.simplefilter("ignore")

    # The imports that take seconds come when the command line is known to be good.
    from pipelines import TextToImagePipeline

    pipe = TextToImagePipeline.from_pretrained(
        options.model,
        torch_dtype=options.dtype,
        device=options.device,
        variant=options.variant,
        scheduler=options.scheduler,
    )
    told = _parameters(pipe, options.model, wanted)
    for first in range(0, len(prompts), options.batch_size):
        batch = slice(first, first + options.batch_size)
        pictures, _ = pipe(
            prompts[batch], seed=seeds[batch], show_progress=not options.quiet, return_dict=False, **wanted
        )
        for picture, prompt, seed, path in zip(pictures, prompts[batch], seeds[batch], paths[batch], strict=True):
            size = {"width": picture.width, "height": picture.height}
            output.save(picture, path, {"prompt": prompt, "seed": seed, **told, **size}, options.overwrite)
            output.tell(path)
    return 0


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    """The call's keywords; checked as far as that can be done without the model."""
    settings = {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "guidance_rescale": options.guidance_rescale,
        "eta": options.eta,
    }
    inputs.Generation().but(settings)
    sides = {"height": options.height, "width": options.width}
    for name, pixels in sides.items():
        if pixels is not None:
            inputs.whole(f"--{name}", pixels)
    return {**settings, **sides, "negative_prompt": options.negative_prompt}


def _parameters(pipe: Any, model: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, or the model's own setting where nothing was."""
    own = vars(pipe.generation)
    settings = {name: own.get(name) if value is None else value for name, value in wanted.items()}
    return {
        **{name: value for name, value in settings.items() if value is not None},
        "scheduler": type(pipe.scheduler).__name__,
        "model": _model_name(model),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "software": f"latentgen {latentgen.__version__}",
    }


def _model_name(model: str | None) -> str:
    """A Hub id as it is, a folder by its name alone: where it lies is nobody's business who gets the picture."""
    if model is None:
        return "bundled"
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def _seeds(text: str) -> int | list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, or several as 1,2,3") from error
    return numbers if len(numbers) > 1 else numbers[0]
