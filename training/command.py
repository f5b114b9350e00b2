"""`latentgen train TASK`: from recipe, overrides and `--resume` to a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml

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
    from latentgen.hardware import require_compiler
    from training.loop import Loop, this_process
    from training.run_folder import claim

    given = read_settings(task_name, argv)
    process = this_process()
    output = Path(given.recipe.output).expanduser()
    # Of several processes one writes.
    with claim(output, given.text, given.resume) if process.is_main_process else nullcontext():
        if given.recipe.loop.compile:
            require_compiler(process.device)
        loop = Loop(_task(task_name, 2)(given.recipe, output), given.recipe.loop, output, given.text)
        return loop.run(resume=given.resume)


class Settings(NamedTuple):
    """What `latentgen train TASK` was told: the task's recipe, the same as YAML, and whether a run is to go on."""

    recipe: Any
    text: str
    resume: bool


def read_settings(task_name: str, argv: Sequence[str]) -> Settings:
    """Reads the arguments of a task, recipes that they name included; nothing is opened or made.

    Raises:
        ValueError: settings that make no sense.
        argparse.ArgumentError: an unknown key or a wrong type.
    """
    from jsonargparse import ArgumentParser

    recipe_class = _task(task_name, 1)
    description = import_module(TASKS[task_name][0]).__doc__
    parser = ArgumentParser(prog=f"latentgen train {task_name}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a recipe: YAML with any of the settings below")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    parser.add_class_arguments(recipe_class, as_group=False)
    settings = parser.parse_args(list(argv))
    # jsonargparse passes over a section of another kind.
    for path in settings.config or []:
        _require_sections(recipe_class, yaml.safe_load(path.get_content()), f"{path}: ")
    _require_sections(recipe_class, settings.as_dict())
    parts = parser.instantiate(settings)
    recipe = recipe_class(**{field.name: parts[field.name] for field in fields(recipe_class)})
    resume = settings.pop("resume")
    # Nulls too: a setting that only one of two recipes holds is taken for one of another version.
    return Settings(recipe, parser.dump(settings, skip_default=False, skip_unset=False), resume)


def _task(name: str, which: int) -> Any:
    return getattr(import_module(TASKS[name][0]), TASKS[name][which])


def _require_sections(section: Any, given: Any, where: str = "") -> None:
    """Sees that what stands for a dataclass is a mapping, all the way down."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where or 'the settings '}hold {given!r}; expected settings by their names")
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind) and name in given:
            inner = given[name]
            if not isinstance(inner, Mapping):
                raise ValueError(f"{where}{name} is {inner!r}; expected a section with settings of its own")
            _require_sections(kind, inner, f"{where}{name}.")
