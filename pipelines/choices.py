"""Names that people type: schedulers and kinds of output, and what they stand for."""

from __future__ import annotations

import difflib
import re
from typing import Any

from diffusers import schedulers as diffusers_schedulers
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

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


def scheduler_names() -> list[str]:
    """The classes that suit a Stable Diffusion model and can run here, ours and diffusers'."""
    suitable = {*(scheduler.name for scheduler in KarrasDiffusionSchedulers), "LCMScheduler", "TCDScheduler"}
    return sorted(name for name in suitable if not _lacks(getattr(diffusers_schedulers, name)))


def scheduler_class(name: str) -> type[Any]:
    """The scheduler class called `name`: "ddim", "DDIM" and "DDIMScheduler" are one; ours comes before diffusers'.

    Raises:
        ValueError: There is none; the message lists the choices.
    """
    wanted = _plain(name) if isinstance(name, str) else ""
    known = {_plain(other): other for other in dir(diffusers_schedulers) if other.endswith("Scheduler")}
    class_name = _ALIASES.get(wanted) or known.get(wanted)
    if class_name:
        found = getattr(our_schedulers, class_name, None) or getattr(diffusers_schedulers, class_name, None)
        if isinstance(found, type) and issubclass(found, SchedulerMixin):
            return found
        if lacking := _lacks(found):
            raise ValueError(f"scheduler {name!r} needs the packages {', '.join(lacking)}; install them")
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {known[close[0]]!r}? " if close else ""
    raise ValueError(f"scheduler {name!r} is not known; {hint}choose one of {', '.join(scheduler_names())}")


def make_scheduler(choice: Any, current: Any) -> Any:
    """`current`, or another scheduler for the same noise schedule.

    Args:
        choice: None keeps `current`; a name makes one of that class with `current`'s configuration; an object is
            taken as it is.
        current: The model's own scheduler.

    Raises:
        ValueError: The name is not known, or `choice` is not a scheduler.
    """
    if choice is None:
        return current
    if isinstance(choice, str):
        return scheduler_class(choice).from_config(current.config)
    if not (hasattr(choice, "set_timesteps") and hasattr(choice, "step")):
        raise ValueError(f"scheduler {choice!r}; expected a name or an object with set_timesteps and step")
    return choice


def _lacks(found: Any) -> list[str]:
    """The packages that a class of diffusers needs and that are not installed; it is a stand-in then."""
    return [name for name in getattr(found, "_backends", ()) if name != "torch"]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower()).removesuffix("scheduler")
