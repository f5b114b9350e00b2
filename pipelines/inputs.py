"""Checks of what a caller asks of a pipeline, made before any long work begins; the command line makes them too."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

_SEED_LIMIT = 2**63  # what torch.Generator.manual_seed takes
_LONGEST_SIDE = 2**16  # pixels; no memory holds a picture of more


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
        _require_text("prompt", one)
    return list(prompts)


def negative_list(negative_prompt: Any, count: int) -> list[str]:
    """What each of `count` prompts is to lead away from; the empty sentence where nothing was said.

    Raises:
        ValueError: Not None, a string or a list of `count` strings.
    """
    given = [negative_prompt or ""] * count if negative_prompt is None or isinstance(negative_prompt, str) else None
    if given is None:
        if not isinstance(negative_prompt, (list, tuple)) or not all(isinstance(one, str) for one in negative_prompt):
            raise ValueError(f"negative_prompt={negative_prompt!r}; expected a sentence or a list of sentences")
        given = list(negative_prompt)
    if len(given) != count:
        raise ValueError(f"{len(given)} negative prompts for {count} prompts; give one, or one for each")
    for one in given:
        _require_text("negative_prompt", one)
    return given


def _require_text(name: str, text: str) -> None:
    """Refuse bytes that the shell could not decode, which Python carries as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} {text!r} is not valid text; pass it encoded in UTF-8") from error


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


def side(name: str, value: Any, default: int | None, step: int) -> int:
    """Height or width of the pictures in pixels.

    Raises:
        ValueError: Not a positive multiple of `step`, the pixels that one latent stands for; no picture has such a
            side; or nobody states a size.
    """
    pixels = default if value is None else whole(name, value)
    if pixels is None:
        raise ValueError(f"this model does not state the size that it was trained at; give {name} in pixels")
    if pixels > _LONGEST_SIDE:
        raise ValueError(f"{name}={pixels}; expected at most {_LONGEST_SIDE} pixels")
    if pixels % step:
        below = pixels // step * step
        near = f"{below} or {below + step}" if below else f"{step}"
        raise ValueError(f"{name}={pixels} is not a multiple of {step}, this model's latent step; use {near}")
    return pixels


def images_each(number: Any, seed: Any, prompts: int) -> int:
    """Pictures of each of `prompts`; where nobody said, a single prompt gets one for each seed of a list.

    Raises:
        ValueError: `number` is not a whole number, at least 1.
    """
    if number is not None:
        return whole("num_images_per_prompt", number)
    return len(seed) if prompts == 1 and _is_list(seed) and len(seed) else 1


def image_seeds(seed: Any, count: int) -> list[int]:
    """One seed for each of `count` pictures: s, s + 1, ... from a single s, and from chance when there is none.

    Raises:
        ValueError: Not a whole number in [0, 2**63), or a list of another length than `count`.
    """
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    if _is_list(seed):
        seeds = [whole("seed", one, least=0) for one in seed]
        if len(seeds) != count:
            raise ValueError(f"{len(seeds)} seeds for {count} pictures; give one for each, or a single one")
    else:
        first = whole("seed", seed, least=0)
        seeds = list(range(first, first + count))
    if max(seeds) >= _SEED_LIMIT:
        raise ValueError(f"seed={max(seeds)}; expected less than 2**63")
    return seeds


def _is_list(seed: Any) -> bool:
    is_array = hasattr(seed, "tolist") and getattr(seed, "ndim", 0) == 1
    return is_array or (isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)))


@dataclass(frozen=True)
class Generation:
    """What a call takes where the caller says nothing; a model folder may state its own."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        whole("num_inference_steps", self.num_inference_steps)
        real("guidance_scale", self.guidance_scale, least=0)
        real("guidance_rescale", self.guidance_rescale, least=0, most=1)
        real("eta", self.eta, least=0, most=1)

    def but(self, given: Mapping[str, Any]) -> Generation:
        """These settings with those of `given` that are not None.

        Raises:
            ValueError: An unknown name or a value that makes no sense.
        """
        if unknown := sorted(set(given) - set(SETTINGS)):
            raise ValueError(f"generation settings {', '.join(unknown)} are not known; expected {', '.join(SETTINGS)}")
        return replace(self, **{name: value for name, value in given.items() if value is not None})


SETTINGS = tuple(field.name for field in fields(Generation))
