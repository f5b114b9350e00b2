"""`latentgen train TASK`: from recipe, overrides and `--resume` to a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# Task -> (module, recipe class, task class); imported when asked for.
TASKS = {
    "text-encoder": ("training.tasks.text_encoder", "TextEncoderRecipe", "TextEncoderTask"),
    "autoencoder": ("training.tasks.autoencoder", "AutoencoderRecipe", "AutoencoderTask"),
    "text-to-image": ("training.tasks.text_to_image", "TextToImageRecipe", "TextToImageTask"),
    "judge": ("training.tasks.judge", "JudgeRecipe", "JudgeTask"),
}


def train(task_name: str, argv: Sequence[str]) -> Path:
    """Runs a training task with command-line arguments; returns the folder of the finished model.

    Raises:
        ValueError, OSError: bad settings or data, before any long work.
        FloatingPointError: the loss is no longer a number.
        argparse.ArgumentError: an unknown key or a wrong type in the recipe or the arguments.
    """
    from jsonargparse import ArgumentParser

    module, recipe_name, class_name = TASKS[task_name]
    tasks = import_module(module)
    parser = ArgumentParser(prog=f"latentgen train {task_name}", description=tasks.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a recipe: YAML with any of the settings below")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    recipe_class = getattr(tasks, recipe_name)
    parser.add_class_arguments(recipe_class, as_group=False)
    return _run(parser, recipe_class, getattr(tasks, class_name), argv)


def _run(parser: ArgumentParser, recipe_class: type, task_class: type, argv: Sequence[str]) -> Path:
    from accelerate import PartialState

    from latentgen.hardware import require_compiler
    from training import checkpoint
    from training.loop import Loop

    settings = parser.parse_args(list(argv))
    parts = parser.instantiate(settings)
    recipe = recipe_class(**{field.name: parts[field.name] for field in fields(recipe_class)})
    output = Path(recipe.output)
    checkpoint.newest(output / "checkpoints", settings.resume)  # before anything is written there
    if recipe.loop.compile:
        require_compiler(PartialState().device)  # the loop's own
    loop = Loop(task_class(recipe, output), recipe.loop, output, parser.dump(settings, skip_default=False))
    return loop.run(resume=settings.resume)
