"""The loop from noise to latents that every pipeline shares, and the step from latents to pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentgen.conditioning import TextConditioning
from latentgen.diffusion.guidance import classifier_free

# What a callback may ask to see and replace.
CALLBACK_TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
# Pictures are decoded together up to this many pixels; a VAE's first feature maps are its largest by far.
_PIXELS_AT_ONCE = 2**20


@dataclass
class Denoising:
    """One run of the loop over a batch of pictures.

    Attributes:
        scheduler: With its timesteps set.
        text: The prompts, one a picture.
        negative: What guidance leads away from, one a picture; None without guidance.
        generators: One a picture, for samplers that add noise.
        eta: DDIM's share of fresh noise.
        callback: Called after every step as diffusers does: (pipeline, step, timestep, tensors) -> replaced tensors.
        callback_tensors: Which of CALLBACK_TENSORS it is given.
    """

    scheduler: Any
    text: TextConditioning
    negative: TextConditioning | None
    generators: Sequence[torch.Generator]
    eta: float = 0.0
    callback: Callable[..., dict[str, Tensor] | None] | None = None
    callback_tensors: Sequence[str] = ("latents",)

    def rows(self, index: Sequence[int]) -> Denoising:
        """The same for the pictures at `index` alone."""
        negative = None if self.negative is None else self.negative.rows(index)
        generators = [self.generators[i] for i in index]
        return replace(self, text=self.text.rows(index), negative=negative, generators=generators)


def denoise(pipe: Any, latents: Tensor, run: Denoising, tick: Callable[[], object]) -> Tensor:
    """Lead noise down the scheduler's timesteps to clean latents.

    Sampler and guidance compute in float32, whatever dtype the U-Net has. `pipe.guidance_scale`,
    `pipe.guidance_rescale` and `pipe.interrupt` are read at every step, since a callback may change them.

    Args:
        pipe: The pipeline: its `unet`, and what the callback is shown.
        latents: Noise of unit variance, (B, C, h, w), float32.
        run: Everything else.
        tick: Called once a step, for a progress bar.

    Raises:
        FloatingPointError: The latents are no longer finite.
    """
    unet, scheduler = pipe.unet, run.scheduler
    dtype = unet.dtype  # asked once: diffusers looks through the whole network for it
    extra = _step_options(scheduler, run)
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    both = TextConditioning.cat(
        [TextConditioning(one.embeddings, one.mask) for one in (run.negative, run.text) if one is not None]
    )
    text = _project(unet, both)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, t in enumerate(scheduler.timesteps):
        if pipe.interrupt:
            break
        guided = pipe.do_classifier_free_guidance
        if len(both) != len(latents) * (2 if guided else 1):
            both = _fitting(both, len(latents), guided)
            text = _project(unet, both)
        sample = scale_input(torch.cat([latents, latents]) if guided else latents, t)
        sample = sample.to(dtype, memory_format=torch.channels_last)
        prediction = unet(sample, t, return_dict=False, **text)[0].float()
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = classifier_free(conditional, unconditional, pipe.guidance_scale, pipe.guidance_rescale)
        latents = scheduler.step(prediction, t, latents, return_dict=False, **extra)[0]
        if run.callback is not None:
            embeddings = both.embeddings
            negative = embeddings[: len(latents)] if len(embeddings) > len(latents) else None
            shown = {"latents": latents, "prompt_embeds": embeddings, "negative_prompt_embeds": negative}
            replaced = run.callback(pipe, i, t, {name: shown[name] for name in run.callback_tensors}) or {}
            latents = replaced.get("latents", latents)
            changed = replaced.get("prompt_embeds", embeddings)
            led_from = replaced.get("negative_prompt_embeds", negative)
            if led_from is not None and led_from is not negative:
                changed = torch.cat([led_from, changed[len(led_from) :]])
            if changed is not embeddings:
                mask = both.mask if both.mask is not None and len(both.mask) == len(changed) else None
                both = TextConditioning(changed, mask)
                text = _project(unet, both)
        tick()
    if not latents.isfinite().all():
        raise FloatingPointError(
            f"the {dtype} U-Net led to latents with NaN or infinity after {len(scheduler.timesteps)} steps; use "
            "another scheduler or more steps, a smaller guidance scale, or torch_dtype=torch.float32"
        )
    return latents


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents in the denoiser's units (B, C, h, w) to pictures (B, 3, H, W) in [0, 1], float32.

    Raises:
        FloatingPointError: The decoder gives NaN or infinity, in float32 too where it computes in float16.
    """
    pixels = (2 ** (len(vae.config.block_out_channels) - 1)) ** 2 * latents.shape[-2] * latents.shape[-1]
    slices = latents.split(max(1, _PIXELS_AT_ONCE // pixels))
    return torch.cat([(_decode_finite(vae, part) / 2 + 0.5).clamp_(0, 1) for part in slices])


def to_arrays(pictures: Tensor) -> np.ndarray:
    """(B, 3, H, W) -> (B, H, W, 3), float32 in [0, 1]."""
    return pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """Pictures (B, 3, H, W) in [0, 1] as 8-bit images."""
    return [Image.fromarray(array) for array in (to_arrays(pictures) * 255).round().astype(np.uint8)]


def _project(unet: Any, text: TextConditioning) -> dict[str, Any]:
    """The U-Net's arguments for this text: its keys and values made once, where the U-Net can do that."""
    embeddings = text.embeddings.to(unet.dtype)
    if hasattr(unet, "project_text"):
        return {"encoder_hidden_states": unet.project_text(embeddings, text.mask)}
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": text.mask}


def _fitting(text: TextConditioning, count: int, guided: bool) -> TextConditioning:
    """Rows of `text` for `count` pictures, when a callback has switched guidance or changed the embeddings."""
    if not guided and len(text) == 2 * count:
        return text.rows(slice(count, None))
    raise ValueError(
        f"after the callback there are {len(text)} rows of prompt_embeds for {count} pictures "
        f"{'with' if guided else 'without'} guidance; return {2 * count if guided else count}"
        f"{', the negative prompts first, and begin with a guidance_scale above 1' if guided else ''}"
    )


def _step_options(scheduler: Any, run: Denoising) -> dict[str, Any]:
    known = inspect.signature(scheduler.step).parameters
    options = {"eta": run.eta, "generator": list(run.generators)}
    return {name: value for name, value in options.items() if name in known}


def _decode_finite(vae: Any, latents: Tensor) -> Tensor:
    pictures = _decode(vae, latents)
    if not pictures.isfinite().all() and vae.dtype == torch.float16:
        # Known of the VAEs of the wild: activations beyond 65504. The detour through float32 loses no weight.
        vae.to(torch.float32)
        try:
            pictures = _decode(vae, latents)
        finally:
            vae.to(torch.float16)
    if not pictures.isfinite().all():
        raise FloatingPointError(
            f"the {vae.dtype} VAE decoded the latents to NaN or infinity; use torch_dtype=torch.float32, and check "
            "that this VAE belongs to this U-Net"
        )
    return pictures


def _decode(vae: Any, latents: Tensor) -> Tensor:
    if hasattr(vae, "unscale_latents"):
        latents = vae.unscale_latents(latents)
    else:
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return vae.decode(latents.to(vae.dtype, memory_format=torch.channels_last), return_dict=False)[0].float()
