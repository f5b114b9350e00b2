"""Our schedulers inside diffusers' pipelines draw what diffusers' own draw."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

import latentgen.schedulers

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture(scope="module")
def components():
    """A Stable Diffusion of a few thousand weights, its prompts given as embeddings."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    shared = {"tokenizer": None, "safety_checker": None, "feature_extractor": None}
    return {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": text.eval(), **shared}


def draw(pipeline_class, components, scheduler, **arguments) -> np.ndarray:
    pipeline = pipeline_class(**components, scheduler=scheduler, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler is scheduler
    prompts = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(1))
    return pipeline(
        prompt_embeds=prompts[0],
        negative_prompt_embeds=prompts[1],
        generator=torch.Generator().manual_seed(2),
        num_inference_steps=6,
        guidance_scale=3.0,
        output_type="np",
        **arguments,
    ).images


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "keywords"), [("DDIMScheduler", {"clip_sample": False}), ("DDPMScheduler", {"clip_sample": False})]
)
def test_text_to_image(components, name, keywords, prediction):
    found, wanted = (
        draw(
            diffusers.StableDiffusionPipeline,
            components,
            getattr(library, name)(**CONFIG, **keywords, prediction_type=prediction),
            height=8,
            width=8,
        )
        for library in (latentgen.schedulers, diffusers)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert wanted.std() > 0.01  # a picture, not one grey


@pytest.mark.parametrize(("name", "arguments"), [("DDIMScheduler", {"eta": 0.5}), ("DDPMScheduler", {})])
def test_image_to_image(components, name, arguments):
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    found, wanted = (
        draw(
            diffusers.StableDiffusionImg2ImgPipeline,
            components,
            getattr(library, name)(**CONFIG, clip_sample=False),
            image=image,
            strength=0.6,
            **arguments,
        )
        for library in (latentgen.schedulers, diffusers)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_unconditional_generation():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    found, wanted = [], []
    for library, images in ((latentgen.schedulers, found), (diffusers, wanted)):
        pipeline = diffusers.DDPMPipeline(unet=unet.eval(), scheduler=library.DDPMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(pipeline(generator=generator, num_inference_steps=5, output_type="np").images)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)


def test_a_pipeline_can_change_to_any_scheduler_of_diffusers(components):
    ours = latentgen.schedulers.DDIMScheduler(**CONFIG)
    assert diffusers.EulerDiscreteScheduler in ours.compatibles
    image = draw(
        diffusers.StableDiffusionPipeline,
        components,
        diffusers.EulerDiscreteScheduler.from_config(ours.config),
        height=8,
        width=8,
    )
    assert np.isfinite(image).all()
