"""What the autoencoder promises beyond equality with diffusers: units, layouts, checkpointing, refusals."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgen.models import AutoencoderKL

CONFIG = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
}


def autoencoder(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**CONFIG | changes)


@settings(max_examples=10)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), batch=st.integers(1, 3))
def test_any_multiple_of_the_factor_comes_back(rows: int, columns: int, batch: int) -> None:
    vae = autoencoder()
    assert vae.factor == 4
    picture = torch.randn(batch, 3, 4 * rows, 4 * columns)
    posterior = vae.encode(picture).latent_dist
    assert posterior.mean.shape == (batch, 4, rows, columns)
    assert vae.decode(posterior.mode()).sample.shape == picture.shape


@pytest.mark.parametrize("size", [(7, 8), (8, 10), (1, 4)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*multiples of 4"):
        autoencoder().encode(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scaling_factor": 1.5, "shift_factor": 0.3},
        {"latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (0.5, 1.0, 2.0, 4.0), "scaling_factor": 0.7},
    ],
)
def test_scaling_there_and_back(changes: dict) -> None:
    vae, latents = autoencoder(**changes), torch.randn(2, 4, 3, 5)
    there = vae.scale_latents(latents)
    torch.testing.assert_close(vae.unscale_latents(there), latents)
    # The formulas of the published models, spelled out a channel at a time.
    for channel in range(4):
        shift = changes.get("shift_factor") or 0.0
        mean = changes["latents_mean"][channel] if "latents_mean" in changes else 0.0
        std = changes["latents_std"][channel] if "latents_std" in changes else 1.0
        scale = changes.get("scaling_factor", 0.18215)
        expected = (latents[:, channel] - mean - shift) * scale / std
        torch.testing.assert_close(there[:, channel], expected)


def test_statistics_of_latents_whiten_them() -> None:
    latents = torch.randn(64, 4, 8, 8) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None] + 5
    std, mean = torch.std_mean(latents, dim=(0, 2, 3))
    vae = autoencoder(latents_mean=mean.tolist(), latents_std=std.tolist(), scaling_factor=1.0)
    whitened_std, whitened_mean = torch.std_mean(vae.scale_latents(latents), dim=(0, 2, 3))
    torch.testing.assert_close(whitened_mean, torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(whitened_std, torch.ones(4))


def test_scaling_keeps_half_precision() -> None:
    vae = autoencoder(latents_mean=(1.0,) * 4, latents_std=(2.0,) * 4)
    assert vae.scale_latents(torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_channels_last_changes_nothing_but_the_layout() -> None:
    vae, picture = autoencoder(), torch.randn(2, 3, 16, 24)
    expected = vae(picture).sample
    vae.to(memory_format=torch.channels_last)
    layouts = []
    for module in [*vae.encoder.modules(), *vae.decoder.modules()]:
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
            module.register_forward_pre_hook(
                lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    actual = vae(picture.to(memory_format=torch.channels_last)).sample
    assert layouts
    assert all(layouts)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_nothing_and_keeps_less() -> None:
    vae, picture = autoencoder(), torch.randn(2, 3, 16, 16)
    results, kept = [], []
    for checkpointing in (False, True):
        vae.enable_gradient_checkpointing() if checkpointing else vae.disable_gradient_checkpointing()
        saved: list[int] = []

        def count(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        vae.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = vae(picture, sample_posterior=True, generator=torch.Generator().manual_seed(1)).sample
        output.square().mean().backward()
        results.append([output, *(parameter.grad for parameter in vae.parameters())])
        kept.append(sum(saved))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < 0.5 * kept[0]


def test_tuple_outputs() -> None:
    vae, picture = autoencoder(), torch.randn(1, 3, 8, 8)
    (posterior,) = vae.encode(picture, return_dict=False)
    assert torch.equal(posterior.mean, vae.encode(picture).latent_dist.mean)
    (decoded,) = vae.decode(posterior.mean, return_dict=False)
    assert torch.equal(decoded, vae.decode(posterior.mean).sample)
    assert torch.equal(decoded, vae(picture, return_dict=False)[0])


def test_gradients_reach_every_weight() -> None:
    vae = autoencoder()
    vae(torch.randn(1, 3, 16, 16), sample_posterior=True).sample.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in vae.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("down_block_types", ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D")),
        ("up_block_types", ("UpBlock2D",) * 3),
        ("up_block_types", ("UpDecoderBlock2D",) * 2),
        ("act_fn", "tanh"),
        ("norm_num_groups", 3),
        ("latents_mean", (0.0,) * 3),
        ("latents_std", (1.0,) * 5),
    ],
)
def test_unsupported_keyword_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        autoencoder(**{name: value})


def test_every_keyword_is_documented() -> None:
    documentation = inspect.getdoc(AutoencoderKL)
    for name in list(inspect.signature(AutoencoderKL.__init__).parameters)[1:]:
        assert f"    {name}:" in documentation
