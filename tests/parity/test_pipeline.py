"""Our pipeline against diffusers' StableDiffusionPipeline: same folder, same starting latents, same pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers

from latentgen import TextToImagePipeline
from pipelines.choices import scheduler_class, scheduler_names

PROMPTS = ["a red apple, noto style", "a happy face that laughs"]
# Pixels in [0, 1]; the contract is 1e-3. Twenty steps of a network with random weights magnify float32's rounding, and
# how much there is of it depends on the matrix kernels of the machine.
TOLERANCE = 1e-4

# Schedulers that a Stable Diffusion model cannot be drawn with here, and why.
LEFT_OUT = {
    "DPMSolverSDEScheduler": "takes no seed for its noise",
}


def with_schedule(folder: Path, copy: Path, **changes: object) -> Path:
    """A copy of the model whose scheduler configuration has `changes`."""
    shutil.copytree(folder, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def both(folder: Path) -> tuple[TextToImagePipeline, diffusers.StableDiffusionPipeline]:
    ours = TextToImagePipeline.from_pretrained(folder, torch_dtype=torch.float32, device="cpu")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    return ours, theirs


def difference(ours: TextToImagePipeline, theirs: diffusers.StableDiffusionPipeline, **call: object) -> float:
    """Largest difference of two calls with equal arguments."""
    call = {"num_inference_steps": 20, "output_type": "np"} | call
    return float(np.abs(ours(**call).images - theirs(**call).images).max())


def latents(count: int, side: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "guidance",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.5},
        {"guidance_scale": 5.0, "negative_prompt": ["a blue bowl", ""]},
        {"guidance_scale": 6.0, "guidance_rescale": 0.7},
    ],
    ids=["plain", "guided", "negative", "rescaled"],
)
def test_ddim_draws_the_same_pictures(tiny_folder, tmp_path, prediction_type: str, guidance: dict) -> None:
    folder = with_schedule(tiny_folder, tmp_path / "model", prediction_type=prediction_type)
    assert difference(*both(folder), prompt=PROMPTS, latents=latents(2), **guidance) <= TOLERANCE


def test_zero_terminal_snr_draws_the_same_pictures(tiny_folder, tmp_path) -> None:
    folder = with_schedule(
        tiny_folder,
        tmp_path / "model",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    call = {"guidance_scale": 7.5, "guidance_rescale": 0.7, "latents": latents(2)}
    assert difference(*both(folder), prompt=PROMPTS, **call) <= TOLERANCE


def test_batches_sizes_and_generators_are_those_of_diffusers(tiny_folder) -> None:
    ours, theirs = both(tiny_folder)
    call = {"prompt": PROMPTS, "num_images_per_prompt": 2, "latents": latents(4), "num_inference_steps": 5}
    assert difference(ours, theirs, **call) <= TOLERANCE
    call = {"prompt": PROMPTS[0], "height": 24, "width": 40, "num_inference_steps": 5}
    drawn = [
        pipe(generator=torch.Generator().manual_seed(3), output_type="np", **call).images for pipe in (ours, theirs)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= TOLERANCE
    # Stochastic sampling: one generator a picture feeds the start and every step.
    call = {"prompt": PROMPTS, "eta": 1.0, "output_type": "np", "num_inference_steps": 5}
    drawn = [
        pipe(generator=[torch.Generator().manual_seed(seed) for seed in (3, 9)], **call).images
        for pipe in (ours, theirs)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= TOLERANCE
    assert np.abs(drawn[0] - ours(seed=[3, 9], **call).images).max() == 0


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers under numpy 2
@pytest.mark.parametrize("name", [kind.name for kind in KarrasDiffusionSchedulers if kind.name not in LEFT_OUT])
def test_every_scheduler_of_diffusers_draws_the_same_pictures(tiny_folder, name: str) -> None:
    ours, theirs = both(tiny_folder)
    theirs.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config)
    # Those that suit only models trained for them are no names that people choose; an object is taken as it is.
    chosen = name
    if name not in scheduler_names():
        chosen = scheduler_class(name, of_model=True).from_config(ours.scheduler.config)
    call = {"prompt": PROMPTS, "num_inference_steps": 8, "output_type": "np"}
    drawn = [
        pipe(generator=[torch.Generator().manual_seed(seed) for seed in (3, 9)], **call, **extra).images
        for pipe, extra in ((ours, {"scheduler": chosen}), (theirs, {}))
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_sample": True, "steps_offset": 0},
        {"clip_sample": True, "timestep_spacing": "trailing"},
        {"steps_offset": 0, "set_alpha_to_one": True},
    ],
)
def test_what_diffusers_sets_in_a_models_scheduler_is_set_here(tiny_folder, tmp_path, changes: dict) -> None:
    folder = with_schedule(tiny_folder, tmp_path / "model", **changes)
    with pytest.warns(UserWarning, match=r"clip_sample|steps_offset"):
        ours, theirs = both(folder)
    assert difference(ours, theirs, prompt=PROMPTS, latents=latents(2), num_inference_steps=5) <= TOLERANCE


def test_our_networks_run_in_their_pipeline_and_theirs_in_ours(tiny_folder) -> None:
    ours, theirs = both(tiny_folder)
    call = {"prompt": PROMPTS, "latents": latents(2), "num_inference_steps": 6, "output_type": "np"}
    expected = theirs(**call).images
    foreign = TextToImagePipeline(**{name: theirs.components[name] for name in ours.components})
    assert np.abs(foreign(**call, show_progress=False).images - expected).max() <= TOLERANCE
    hosted = diffusers.StableDiffusionPipeline(
        **ours.components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    hosted.set_progress_bar_config(disable=True)
    assert np.abs(hosted(**call).images - expected).max() <= TOLERANCE
