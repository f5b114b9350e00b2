"""The folder of a run: who writes into it, and whether a run may begin or go on there."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from training import checkpoint

RECIPE = "recipe.yaml"
MODEL = "model"

# What a run may change when it goes on: how long, how fast, where, and what it shows; a trailing dot takes a section.
_FREE = (
    *("output", "cache", "save_dtype", "preview.", "loop.", "data.max_bad_share"),
    # Places: the same files may have moved.
    *("data.path", "validation.path", "vae", "text_encoder", "tokenizer", "teacher.path"),
    *("model.init", "loss.perceptual_features"),
)
_FIXED = ("loop.seed", "loop.batch_size")


@contextmanager
def claim(output: Path, recipe: str, resume: bool) -> Iterator[None]:
    """Makes the folder of a run this process's own while it is entered.

    Args:
        output: The folder; made if it is not there.
        recipe: The run's whole configuration as YAML.
        resume: Whether a run in that folder is to go on.

    Warns:
        UserWarning: Settings that a run may change differ from those that it was begun with.

    Raises:
        FileExistsError: The folder holds a run and `resume` is false, or a model without the run that made it.
        BlockingIOError: Another process trains into it.
        ValueError: The run was begun with other settings, or is past the last step already.
    """
    if not resume:
        checkpoint.newest(output / "checkpoints", resume)
    saved = checkpoint.list_checkpoints(output / "checkpoints")
    if not saved and (output / MODEL).exists():
        raise FileExistsError(
            f"{output / MODEL} is a finished model, and {output} has no checkpoint to go on from: choose another "
            "--output, or move the model away."
        )
    if saved:
        _require_same_run(output, recipe, checkpoint.step_of(saved[-1]))
    require_writable(output, "output")
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BlockingIOError(
            f"{output} is being written by another training run: wait for it or stop it, or choose another --output."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _require_same_run(output: Path, recipe: str, step: int) -> None:
    steps = settings_of(recipe).get("loop.steps", step)
    if steps < step:
        raise ValueError(
            f"{output} is at step {step} already, but loop.steps is {steps}: raise loop.steps, or choose another "
            "--output."
        )
    found = differences(output, recipe)
    fixed = {name: told for name, told in found.items() if name in _FIXED or not _is_free(name)}
    if fixed:
        raise ValueError(
            f"{output} was begun with other settings: {'; '.join(fixed.values())}. Resume it with its own "
            f"{RECIPE}, or choose another --output to begin a new run."
        )
    if found:
        warnings.warn(f"{output} goes on with changed settings: {'; '.join(found.values())}", stacklevel=2)


def _is_free(name: str) -> bool:
    return any(name.startswith(free) if free.endswith(".") else name == free for free in _FREE)


def differences(output: Path, recipe: str) -> dict[str, str]:
    """Settings in which `recipe` differs from that kept in a run's folder: dotted name -> "name: old, now new".

    A setting that only one of them knows is passed over: it is of another version.
    """
    try:
        before = settings_of((output / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    now = settings_of(recipe)
    both = [name for name in now if name in before and before[name] != now[name]]
    return {name: f"{name} was {before[name]!r}, is now {now[name]!r}" for name in both}


def settings_of(recipe: str) -> dict[str, Any]:
    """A recipe's settings by their dotted names."""
    return dict(_flat(yaml.safe_load(recipe) or {}))


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def require_writable(folder: Path, setting: str) -> None:
    """Makes a folder, and sees that files can be made in it.

    Raises:
        OSError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{setting} is {str(folder)!r}, where nothing can be written ({error.strerror or error}): choose a folder "
            "that may be written to."
        ) from error
