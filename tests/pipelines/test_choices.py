"""Schedulers by name."""

from __future__ import annotations

import importlib.util

import diffusers
import pytest

import latentgen
from pipelines.choices import make_scheduler, scheduler_class, scheduler_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("ddim", "DDIM", "DDIMScheduler", "ddim-scheduler"), latentgen.DDIMScheduler),
        (("ddpm", "DDPMScheduler"), latentgen.DDPMScheduler),
        (("euler_a", "Euler a", "EulerAncestralDiscreteScheduler"), diffusers.EulerAncestralDiscreteScheduler),
        (("dpm++", "dpmsolver", "DPMSolverMultistep"), diffusers.DPMSolverMultistepScheduler),
        (("unipc",), diffusers.UniPCMultistepScheduler),
        (("lcm",), diffusers.LCMScheduler),
    ],
)
def test_names_lead_to_classes_ours_first(names: tuple[str, ...], expected: type) -> None:
    assert {scheduler_class(name) for name in names} == {expected}


def test_every_choice_that_errors_list_is_one() -> None:
    assert {scheduler_class(name).__name__ for name in scheduler_names()} == set(scheduler_names())


@pytest.mark.parametrize("name", ["", "dimm", "Scheduler", "SchedulerMixin", "nonsense", None, 7])
def test_unknown_names_are_refused_with_the_choices(name: object) -> None:
    with pytest.raises(ValueError, match=r"choose one of .*DDIMScheduler.*EulerDiscreteScheduler"):
        scheduler_class(name)


def test_a_scheduler_whose_package_is_missing_says_so() -> None:
    if importlib.util.find_spec("torchsde"):
        pytest.skip("torchsde is installed")
    with pytest.raises(ValueError, match="'DPMSolverSDEScheduler' needs the packages torchsde; install"):
        scheduler_class("DPMSolverSDEScheduler")
    assert "DPMSolverSDEScheduler" not in scheduler_names()


def test_another_sampler_keeps_the_noise_schedule() -> None:
    current = latentgen.DDIMScheduler(beta_end=0.05, prediction_type="v_prediction", num_train_timesteps=500)
    for name in ("ddpm", "euler", "dpm++"):
        made = make_scheduler(name, current)
        for key in ("beta_end", "prediction_type", "num_train_timesteps"):
            assert made.config[key] == current.config[key]
    assert make_scheduler(None, current) is current
    assert make_scheduler(made, current) is made
    with pytest.raises(ValueError, match="expected a name or an object"):
        make_scheduler(3, current)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_named_sampler_never_clips_latents_because_the_models_own_does_not_say(name: str) -> None:
    current = getattr(diffusers, name)()
    for wanted in ("ddim", "ddpm"):
        assert make_scheduler(wanted, current).config.clip_sample is False


def test_a_noise_schedule_that_a_sampler_does_not_have_is_said() -> None:
    with pytest.raises(ValueError, match="EulerDiscreteScheduler cannot run this model's noise schedule"):
        make_scheduler("euler", latentgen.DDIMScheduler(beta_schedule="sigmoid"))


def test_a_model_with_a_sampler_of_its_own_takes_no_other_by_name() -> None:
    with pytest.raises(ValueError, match="sampled by its own FlowMatchEulerDiscreteScheduler; DDIMScheduler cannot"):
        make_scheduler("ddim", diffusers.FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize(
    "name", ["RePaintScheduler", "FlowMatchEulerDiscreteScheduler", "CMStochasticIterativeScheduler"]
)
def test_samplers_of_other_models_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} does not sample this kind of model; choose one of"):
        scheduler_class(name)
