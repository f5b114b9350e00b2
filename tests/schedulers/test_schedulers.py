"""The schedulers by themselves: what they sample, what they refuse, and that a step reads nothing from the device."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from latentgen.diffusion import target
from latentgen.schedulers import DDIMScheduler, DDPMScheduler

BOTH = pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler])
ALL_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")


def sample_gaussian(scheduler, steps: int, count: int, mean: float, spread: float, **arguments) -> torch.Tensor:
    """Draws from N(mean, spread^2) through the scheduler, its exact denoiser in place of a network."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        level = scheduler.schedule.level(int(t))
        alpha, sigma = level.alpha.item(), level.sigma.item()
        x0 = mean + alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * (x - alpha * mean)
        out = target(scheduler.config.prediction_type, x0, (x - alpha * x0) / sigma, level)
        x = scheduler.step(out, t, scheduler.scale_model_input(x, t), generator=generator, **arguments).prev_sample
    return x


@pytest.mark.parametrize("prediction", ALL_PREDICTIONS)
@pytest.mark.parametrize(
    ("cls", "steps", "arguments"),
    [(DDIMScheduler, 250, {}), (DDIMScheduler, 500, {"eta": 0.5}), (DDPMScheduler, 1000, {})],
)
def test_gaussian_data_come_back(cls, steps, arguments, prediction):
    """More steps the more fresh noise: the posterior's variance leaves out what is uncertain about x0."""
    zero_snr = prediction != "epsilon"
    scheduler = cls(
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_snr,
    )
    count, mean, spread = 40_000, 0.6, 0.4
    x = sample_gaussian(scheduler, steps, count, mean, spread, **arguments)
    assert abs(x.mean().item() - mean) < 4 * spread / math.sqrt(count) + 1e-3
    assert abs(x.std().item() - spread) < 4 * spread / math.sqrt(2 * count) + 0.02 * spread


def test_large_variance_only_adds_deviation():
    """fixed_large has the mean of fixed_small; in two steps from pure noise its spread is wider."""
    small, large = (
        sample_gaussian(DDPMScheduler(variance_type=kind, clip_sample=False), 10, 20_000, 0.0, 0.5)
        for kind in ("fixed_small", "fixed_large")
    )
    assert abs(large.mean() - small.mean()) < 0.03
    assert large.std() > 1.02 * small.std()


def test_fixed_large_log_is_fixed_large():
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for kind in ("fixed_large", "fixed_large_log"):
        scheduler = DDPMScheduler(variance_type=kind)
        scheduler.set_timesteps(10)
        found.append(scheduler.step(x, 500, x, generator=torch.Generator().manual_seed(1)).prev_sample)
    assert torch.equal(*found)


@BOTH
def test_a_step_never_reads_timesteps_from_the_device(cls):
    """Tensors on the meta device have no values: reading one raises, as waiting for an accelerator would cost."""
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted, found = cls(), cls()
    wanted.set_timesteps(10)
    found.set_timesteps(10, device="meta")
    assert found.timesteps.device.type == "meta"
    for skipped in (0, 4):  # image-to-image enters the loop late, through a slice
        for t, without_value in zip(wanted.timesteps[skipped:], found.timesteps[skipped:], strict=True):
            with pytest.raises(RuntimeError):
                without_value.item()
            steps = [
                scheduler.step(x, each, x, generator=torch.Generator().manual_seed(int(t)))
                for scheduler, each in ((wanted, t), (found, without_value))
            ]
            assert torch.equal(steps[0].prev_sample, steps[1].prev_sample)


@BOTH
def test_timesteps_may_be_ints_tensors_or_assigned(cls):
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = cls()
    scheduler.set_timesteps(10)
    results = [
        scheduler.step(x, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
        for t in (900, scheduler.timesteps[0], torch.tensor([900]), np.int64(900))
    ]
    assert all(torch.equal(result, results[0]) for result in results)
    scheduler.timesteps = torch.tensor([900, 800])
    copied = copy.deepcopy(scheduler)
    for each in (scheduler, copied):
        assert torch.equal(each.step(x, 900, x, generator=torch.Generator().manual_seed(1)).prev_sample, results[0])


@BOTH
def test_configuration_changed_later_counts(cls):
    """Diffusers' pipelines rewrite steps_offset and clip_sample of a scheduler that they are given."""
    scheduler = cls()
    scheduler.set_timesteps(10)
    x = torch.full((1, 1, 2, 2), 5.0)
    assert scheduler.timesteps[-1] == 0
    assert scheduler.step(-x, 900, x).pred_original_sample.max() == 1
    scheduler.register_to_config(steps_offset=1, clip_sample=False)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[-1] == 1
    assert scheduler.step(-x, 901, x).pred_original_sample.max() > 1


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("limits", [{"clip_sample": False}, {"thresholding": True}])
def test_dtype_is_kept(cls, dtype, limits):
    scheduler = cls(**limits)
    scheduler.set_timesteps(4)
    x, out = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = scheduler.step(out.double(), 500, x.double(), generator=torch.Generator().manual_seed(1))
    found = scheduler.step(out, 500, x, generator=torch.Generator().manual_seed(1))
    assert found.prev_sample.dtype == found.pred_original_sample.dtype == dtype
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.pred_original_sample.double(), exact.pred_original_sample, rtol=tolerance, atol=4 * tolerance
    )


def test_each_sample_has_its_own_generator():
    """Sample i of seed s is the same whatever the batch it is drawn in."""
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(10)
    out, x = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    seeds = (5, 6, 7)
    together = scheduler.step(
        out, 500, x, generator=[torch.Generator().manual_seed(seed) for seed in seeds]
    ).prev_sample
    for i, seed in enumerate(seeds):
        alone = scheduler.step(out[i : i + 1], 500, x[i : i + 1], generator=torch.Generator().manual_seed(seed))
        assert torch.equal(alone.prev_sample[0], together[i])


@BOTH
def test_flow_prediction_steps_like_epsilon(cls):
    x, eps = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for prediction in ("epsilon", "flow"):
        scheduler = cls(prediction_type=prediction)
        scheduler.set_timesteps(10)
        level = scheduler.schedule.level(500)
        out = target(prediction, (x - level.sigma * eps) / level.alpha, eps, level)
        found.append(scheduler.step(out, 500, x, generator=torch.Generator().manual_seed(1)).prev_sample)
    torch.testing.assert_close(*found)


def test_saved_betas_are_json(tmp_path):
    betas = np.linspace(0.001, 0.05, 20, dtype=np.float32)
    DDPMScheduler(num_train_timesteps=20, trained_betas=betas).save_pretrained(tmp_path)
    loaded = DDPMScheduler.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.betas.numpy(), betas)


@BOTH
@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"beta_schedule": "quadratic"}, "beta_schedule='quadratic'.*linear"),
        ({"prediction_type": "score"}, "prediction_type='score'.*v_prediction"),
        ({"timestep_spacing": "karras"}, "timestep_spacing='karras'.*trailing"),
        ({"clip_sample_range": 0.0}, "clip_sample_range=0.0.*positive"),
        ({"sample_max_value": -1.0}, "sample_max_value=-1.0.*positive"),
        ({"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio=1.5"),
        ({"trained_betas": [0.1, 0.2]}, "2 entries.*1000"),
        ({"beta_end": 1.5}, "1.5.*beta_end"),
    ],
)
def test_bad_keywords_are_named(cls, keywords, said):
    with pytest.raises(ValueError, match=said):
        cls(**keywords)


X = torch.zeros(2, 3, 4, 4)


def ready(cls, **keywords):
    scheduler = cls(**keywords)
    scheduler.set_timesteps(10)
    return scheduler


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: DDPMScheduler(variance_type="fixed"), "variance_type='fixed'.*learned_range"),
        (lambda: DDIMScheduler().step(X, 5, X), "set_timesteps"),
        (lambda: DDIMScheduler().set_timesteps(0), "num_inference_steps=0"),
        (lambda: DDIMScheduler().set_timesteps(1001), "num_inference_steps=1001"),
        (lambda: DDPMScheduler().set_timesteps(), "exactly one"),
        (lambda: DDPMScheduler().set_timesteps(10, timesteps=[5]), "exactly one"),
        (lambda: DDPMScheduler().set_timesteps(timesteps=[5, 5]), "must fall"),
        (lambda: DDPMScheduler().set_timesteps(timesteps=[1000, 5]), "at most 999"),
        (lambda: DDPMScheduler().set_timesteps(timesteps=[]), "must fall"),
        (lambda: DDPMScheduler().set_timesteps(timesteps=[999.0, 500.5]), "whole numbers"),
        (lambda: ready(DDPMScheduler).step(X, 5, X), "timestep 5 is not one of the 10"),
        (lambda: ready(DDIMScheduler).step(X, 1000, X), "1000.*0 to 999"),
        (lambda: ready(DDIMScheduler).step(X, 500, X, eta=2.0), "eta=2.0"),
        (
            lambda: ready(DDIMScheduler).step(X, 500, X, eta=1.0, variance_noise=X, generator=torch.Generator()),
            "only one of them",
        ),
        (lambda: ready(DDPMScheduler).step(X, 500, X, generator=[torch.Generator()] * 3), "3 generators.*batch of 2"),
        (lambda: ready(DDPMScheduler).step(X.repeat(1, 2, 1, 1), 500, X), "learned_range"),
        (lambda: ready(DDPMScheduler, variance_type="learned").step(X, 500, X), "'learned'.*6 output.*got 3"),
        (
            lambda: ready(DDIMScheduler, rescale_betas_zero_snr=True, timestep_spacing="trailing").step(X, 999, X),
            "'epsilon'.*zero terminal SNR",
        ),
    ],
)
def test_bad_calls_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
