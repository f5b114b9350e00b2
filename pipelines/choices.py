"""Names that people type: schedulers and kinds of output, and what they stand for."""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from typing import Any

import torch
from diffusers import schedulers as diffusers_schedulers
from diffusers.schedulers import KarrasDiffusionSchedulers

from latentgen import schedulers as our_schedulers

# Names by which other programs know these samplers.
_ALIASES = {
    "euler": "EulerDiscreteScheduler",
    "eulera": "EulerAncestralDiscreteScheduler",
    "eulerancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "plms": "PNDMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


# Samplers whose arithmetic fits only a model that was trained for it; such a model's own folder names them.
_OF_THEIR_OWN_MODELS = frozenset(
    {
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
    }
)
# Their noise comes from no generator, so a picture would not belong to its seed.
_WITHOUT_GENERATOR = frozenset({"DPMSolverSDEScheduler"})
_MORE = ("DDIMParallelScheduler", "DDPMParallelScheduler", "LCMScheduler", "TCDScheduler")


def scheduler_names() -> list[str]:
    """The classes that suit any Stable Diffusion model and can run here, ours and diffusers'."""
    suitable = {*(scheduler.name for scheduler in KarrasDiffusionSchedulers), *_MORE}
    suitable -= _OF_THEIR_OWN_MODELS | _WITHOUT_GENERATOR
    return sorted(name for name in suitable if not _lacks(getattr(diffusers_schedulers, name)))


def scheduler_class(name: str, of_model: bool = False) -> type[Any]:
    """The scheduler class called `name`: "ddim", "DDIM" and "DDIMScheduler" are one; ours comes before diffusers'.

    Args:
        name: What a person typed or a model's index says.
        of_model: A model names it as its own, so that it may be one that suits only such models.

    Raises:
        ValueError: There is none, or it samples another kind of model; the message lists the choices.
    """
    wanted = _plain(name) if isinstance(name, str) else ""
    known = {_plain(other): other for other in dir(diffusers_schedulers) if other.endswith("Scheduler")}
    class_name = _ALIASES.get(wanted) or known.get(wanted)
    suitable = scheduler_names()
    if class_name:
        if class_name in _WITHOUT_GENERATOR:
            raise ValueError(f"{class_name} takes no seed for its noise; choose one of {', '.join(suitable)}")
        found = getattr(our_schedulers, class_name, None) or getattr(diffusers_schedulers, class_name, None)
        if lacking := _lacks(found):
            raise ValueError(f"scheduler {name!r} needs the packages {', '.join(lacking)}; install them")
        if class_name in suitable or (of_model and class_name in _OF_THEIR_OWN_MODELS):
            return found  # type: ignore[return-value]
        raise ValueError(f"{class_name} does not sample this kind of model; choose one of {', '.join(suitable)}")
    by_name = {_plain(other): other for other in suitable}
    close = difflib.get_close_matches(wanted, [*by_name, *_ALIASES], n=1)
    hint = f"did you mean {by_name.get(close[0]) or _ALIASES[close[0]]!r}? " if close else ""
    raise ValueError(f"scheduler {name!r} is not known; {hint}choose one of {', '.join(suitable)}")


def make_scheduler(choice: Any, current: Any) -> Any:
    """`current`, or another scheduler for the same noise schedule.

    Args:
        choice: None keeps `current`; a name makes one of that class with `current`'s configuration; an object is
            taken as it is.
        current: The model's own scheduler.

    Raises:
        ValueError: The name is not known, the class cannot run this model's noise schedule, or `choice` is not a
            scheduler.
    """
    if choice is None:
        return current
    if isinstance(choice, str):
        made = scheduler_class(choice)
        if (own := type(current).__name__) in _OF_THEIR_OWN_MODELS:
            raise ValueError(f"this model is sampled by its own {own}; {made.__name__} cannot run its noise schedule")
        try:
            scheduler = made.from_config(current.config)
        except (NotImplementedError, TypeError) as error:
            raise ValueError(f"{made.__name__} cannot run this model's noise schedule: {error}") from error
        scheduler.register_to_config(**_latent_rules(scheduler))
        return scheduler
    if not (hasattr(choice, "set_timesteps") and hasattr(choice, "step")):
        raise ValueError(f"scheduler {choice!r}; expected a name or an object with set_timesteps and step")
    if (name := type(choice).__name__) in _WITHOUT_GENERATOR:
        warnings.warn(f"{name} takes no seed for its noise: its pictures do not belong to their seeds", stacklevel=3)
    return choice


def check_steps(scheduler: Any, steps: int) -> None:
    """Check that a sampler can take so many steps of this model; its timesteps are set to them.

    Raises:
        ValueError: There are more than the model was trained at; or this sampler needs more, or cannot use what the
            model predicts.
    """
    name = type(scheduler).__name__
    trained = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    if trained is not None and steps > trained:
        raise ValueError(f"num_inference_steps={steps}; this model was trained at {trained} timesteps, use no more")
    try:
        scheduler.set_timesteps(steps)
        _rehearse(scheduler)
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{name} cannot sample this model in num_inference_steps={steps} ({error}); use more, or another scheduler"
        ) from error


def _rehearse(scheduler: Any) -> None:
    """Take the first step with nothing in hand: samplers look at the kind of prediction only then."""
    learns_variance = str(getattr(getattr(scheduler, "config", None), "variance_type", "")).startswith("learned")
    sample, first = torch.zeros(1, 1, 1, 1), scheduler.timesteps[0]
    if hasattr(scheduler, "scale_model_input"):
        sample = scheduler.scale_model_input(sample, first)
    prediction = torch.zeros(1, 2 if learns_variance else 1, 1, 1)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    scheduler.step(prediction, first, sample, **({"generator": torch.Generator()} if takes_generator else {}))


def adapt_scheduler(scheduler: Any) -> None:
    """Set a model's scheduler to the rules that diffusers' Stable Diffusion pipelines impose, and warn of a change."""
    if changes := _latent_rules(scheduler):
        told = ", ".join(f"{name}={scheduler.config[name]!r} to {value!r}" for name, value in changes.items())
        warnings.warn(f"changed the scheduler's {told}, as latent diffusion needs it and diffusers does", stacklevel=3)
        scheduler.register_to_config(**changes)


def _latent_rules(scheduler: Any) -> dict[str, Any]:
    """What to change: latents reach beyond -1 to 1, so nothing is clipped; leading timesteps begin at 1."""
    rules = {"clip_sample": False, "steps_offset": 1}
    config = scheduler.config
    return {name: value for name, value in rules.items() if name in config and config[name] != value}


def _lacks(found: Any) -> list[str]:
    """The packages that a class of diffusers needs and that are not installed; it is a stand-in then."""
    return [name for name in getattr(found, "_backends", ()) if name != "torch"]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower()).removesuffix("scheduler")
