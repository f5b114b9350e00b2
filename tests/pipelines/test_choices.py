"""Schedulers by name."""

from __future__ import annotations

import inspect
import re

import diffusers
import pytest
import torch

import latentgen
from pipelines.choices import check_steps, make_scheduler, scheduler_class, scheduler_names


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


def test_a_scheduler_whose_package_is_missing_says_so(monkeypatch) -> None:
    monkeypatch.setattr(diffusers.schedulers.EulerDiscreteScheduler, "_backends", ["torch", "torchsde"], raising=False)
    with pytest.raises(ValueError, match="'euler' needs the packages torchsde; install"):
        scheduler_class("euler")
    assert "EulerDiscreteScheduler" not in scheduler_names()


def test_a_sampler_whose_noise_has_no_seed_is_no_choice() -> None:
    with pytest.raises(ValueError, match="DPMSolverSDEScheduler takes no seed for its noise; choose one of"):
        scheduler_class("dpmsolversde")
    assert "DPMSolverSDEScheduler" not in scheduler_names()
    unseeded = type("DPMSolverSDEScheduler", (latentgen.DDIMScheduler,), {})()
    with pytest.warns(UserWarning, match="DPMSolverSDEScheduler takes no seed"):
        assert make_scheduler(unseeded, None) is unseeded


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers under numpy 2
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", scheduler_names())
def test_a_sampler_takes_what_the_model_predicts_or_says_so_before_it_begins(name: str, prediction_type: str) -> None:
    sampler = make_scheduler(name, latentgen.DDIMScheduler(prediction_type=prediction_type))
    refusal = ""
    try:
        check_steps(sampler, 8)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert prediction_type != "epsilon"
        assert re.search(rf"{name} cannot sample this model .*prediction_type", refusal)
        return
    sample = torch.ones(2, 4, 8, 8)
    options = {"generator": torch.Generator().manual_seed(0)}
    known = {key: value for key, value in options.items() if key in inspect.signature(sampler.step).parameters}
    for timestep in sampler.timesteps:
        scaled = sampler.scale_model_input(sample, timestep)
        sample = sampler.step(scaled / 2, timestep, sample, return_dict=False, **known)[0]
    assert sample.shape == (2, 4, 8, 8)


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
