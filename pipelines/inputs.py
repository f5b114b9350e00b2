"""Checks of what a caller asks of a pipeline, made before any long work begins."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any


def prompt_list(prompt: Any) -> list[str]:
    """One prompt or several, as a list of sentences.

    Raises:
        ValueError: Not a string or a list of strings; or nothing is written in one.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise ValueError(f"prompt={prompt!r}; expected a sentence or a list of sentences")
    for one in prompts:
        if not isinstance(one, str):
            raise ValueError(f"prompt {one!r} is a {type(one).__name__}; expected a string")
        if not one.strip():
            raise ValueError(f"prompt {one!r} is empty; say in words what the picture shows")
    return list(prompts)


def negative_list(negative_prompt: Any, count: int) -> list[str]:
    """What each of `count` prompts is to lead away from; the empty sentence where nothing was said.

    Raises:
        ValueError: Not None, a string or a list of `count` strings.
    """
    if negative_prompt is None or isinstance(negative_prompt, str):
        return [negative_prompt or ""] * count
    if not isinstance(negative_prompt, (list, tuple)) or not all(isinstance(one, str) for one in negative_prompt):
        raise ValueError(f"negative_prompt={negative_prompt!r}; expected a sentence or a list of sentences")
    if len(negative_prompt) != count:
        raise ValueError(f"{len(negative_prompt)} negative prompts for {count} prompts; give one, or one for each")
    return list(negative_prompt)


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int.

    Raises:
        ValueError: Not a whole number, or less than `least`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name}={value!r}; expected a whole number, at least {least}")
    return number


def real(name: str, value: Any, least: float, most: float = math.inf) -> float:
    """`value` as a float.

    Raises:
        ValueError: Not a finite number between `least` and `most`.
    """
    is_number = isinstance(value, (int, float)) or (hasattr(value, "__float__") and not isinstance(value, str))
    number = math.nan if isinstance(value, bool) or not is_number else float(value)
    if not (math.isfinite(number) and least <= number <= most):
        bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"{name}={value!r}; expected a finite number {bounds}")
    return number


def side(name: str, value: Any, default: int, step: int) -> int:
    """Height or width of the pictures in pixels.

    Raises:
        ValueError: Not a positive multiple of `step`, the pixels that one latent stands for.
    """
    pixels = default if value is None else whole(name, value)
    if pixels % step:
        below = pixels // step * step
        near = f"{below} or {below + step}" if below else f"{step}"
        raise ValueError(f"{name}={pixels} is not a multiple of {step}, this model's latent step; use {near}")
    return pixels


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value`, when it is among `choices`.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r}; expected one of {', '.join(choices)}")
    return value
