"""`TextToImagePipeline`: one picture a seed, what a call costs, its callback, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.callbacks import SDCFGCutoffCallback
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgen import DDIMScheduler, TextToImagePipeline
from latentgen.models import TextProjections

APPLE, FACE, PEAR = "a red apple, noto style", "a happy face that laughs", "a green pear beside a blue bowl"
# Sums over a batch of another size may be ordered otherwise; the pictures are floats in [0, 1].
SAME = 1e-5


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> TextToImagePipeline:
    """Shared: tests that change it take `own`."""
    made = TextToImagePipeline.from_pretrained(tiny_folder, torch_dtype=torch.float32, device="cpu")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def own(pipe: TextToImagePipeline) -> TextToImagePipeline:
    return copy.deepcopy(pipe)


def draw(pipe: TextToImagePipeline, prompt: object, **call: object) -> np.ndarray:
    return pipe(prompt, **{"num_inference_steps": 4, "output_type": "np"} | call).images


def asked(pipe: TextToImagePipeline) -> list[int]:
    """Batch sizes that the U-Net is asked with from now on."""
    seen: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


# One picture a seed


@settings(max_examples=8)
@given(
    data=st.data(),
    sampler=st.sampled_from([{"scheduler": "ddim"}, {"scheduler": "ddim", "eta": 1.0}, {"scheduler": "ddpm"}]),
)
def test_a_picture_is_the_same_in_every_batch_and_order(pipe, data, sampler: dict) -> None:
    jobs = data.draw(
        st.lists(st.tuples(st.sampled_from([APPLE, FACE, PEAR]), st.integers(0, 9)), min_size=1, max_size=5)
    )
    batch_size = data.draw(st.integers(1, len(jobs)))
    sampler = sampler | {"num_inference_steps": 2}
    together = draw(
        pipe, [prompt for prompt, _ in jobs], seed=[seed for _, seed in jobs], batch_size=batch_size, **sampler
    )
    for picture, (prompt, seed) in zip(together, jobs, strict=True):
        alone = draw(pipe, prompt, seed=seed, **sampler)[0]
        assert np.abs(picture - alone).max() <= SAME


def test_seeds_tell_pictures_apart_and_repeat_them(pipe) -> None:
    first, second = draw(pipe, APPLE, seed=[1, 2])
    assert np.abs(first - second).max() > 0.01
    assert np.array_equal(draw(pipe, APPLE, seed=[1, 2])[0], first)


def test_a_single_prompt_is_drawn_once_for_each_seed_of_a_list(pipe) -> None:
    result = pipe(APPLE, seed=[4, 2, 9], num_inference_steps=2, output_type="np")
    assert result.seeds == [4, 2, 9]
    assert np.abs(result.images - draw(pipe, [APPLE] * 3, seed=[4, 2, 9], num_inference_steps=2)).max() <= SAME


@pytest.mark.parametrize("kind", [range, np.arange, torch.arange, lambda *ends: tuple(np.arange(*ends))])
def test_seeds_come_in_any_kind_of_sequence(pipe, kind) -> None:
    result = pipe(APPLE, seed=kind(3, 5), num_inference_steps=2, output_type="np")
    assert result.seeds == [3, 4]
    assert np.array_equal(result.images, draw(pipe, APPLE, seed=[3, 4], num_inference_steps=2))


def test_a_single_seed_counts_up_in_the_order_of_the_pictures(pipe) -> None:
    result = pipe([APPLE, FACE], seed=5, num_images_per_prompt=2, num_inference_steps=2, output_type="np")
    assert result.seeds == [5, 6, 7, 8]
    expected = draw(pipe, [APPLE, APPLE, FACE, FACE], seed=[5, 6, 7, 8], num_inference_steps=2)
    assert np.abs(result.images - expected).max() <= SAME


def test_chance_seeds_are_told_and_draw_the_pictures_again(pipe) -> None:
    result = pipe(APPLE, num_images_per_prompt=2, num_inference_steps=2, output_type="np")
    again = draw(pipe, APPLE, num_images_per_prompt=2, seed=result.seeds, num_inference_steps=2)
    assert np.array_equal(result.images, again)
    once_more = pipe(APPLE, num_images_per_prompt=2, num_inference_steps=2, output_type="np")
    assert once_more.seeds != result.seeds
    assert not np.array_equal(once_more.images, result.images)


def test_brought_latents_do_not_change_the_noise_of_later_steps(pipe) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    assert np.array_equal(draw(pipe, APPLE, seed=3, eta=1.0, latents=noise), draw(pipe, APPLE, seed=3, eta=1.0))


def test_one_generator_serves_all_pictures_in_turn(pipe) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2)])
    result = pipe([APPLE, FACE], generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np")
    assert result.seeds is None
    assert np.array_equal(result.images, draw(pipe, [APPLE, FACE], latents=noise))


# What a call does


def test_guidance_doubles_the_batch_and_its_absence_does_not(own) -> None:
    batches = asked(own)
    draw(own, [APPLE, FACE], guidance_scale=3.0, num_inference_steps=2)
    draw(own, [APPLE, FACE], guidance_scale=1.0, num_inference_steps=3)
    assert batches == [4, 4, 2, 2, 2]


def test_text_is_projected_once_a_prompt(own, monkeypatch) -> None:
    calls = []
    project = own.unet.project_text
    monkeypatch.setattr(own.unet, "project_text", lambda *args: calls.append(project(*args)) or calls[-1])
    draw(own, APPLE, num_inference_steps=5)
    assert len(calls) == 1
    assert isinstance(calls[0], TextProjections)


def test_batch_size_limits_what_is_drawn_at_once(own) -> None:
    batches = asked(own)
    draw(own, [APPLE] * 5, batch_size=2, guidance_scale=1.0, num_inference_steps=1)
    assert batches == [2, 2, 1]


def test_output_types_show_the_same_picture(pipe) -> None:
    call = {"seed": 1, "num_inference_steps": 2}
    array, tensor = draw(pipe, APPLE, **call), draw(pipe, APPLE, output_type="pt", **call)
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert array.min() >= 0
    assert array.max() <= 1
    assert array.dtype == np.float32
    (picture,) = draw(pipe, APPLE, output_type="pil", **call)
    assert np.array_equal(np.asarray(picture), (array[0] * 255).round().astype(np.uint8))
    latent = draw(pipe, APPLE, output_type="latent", **call)
    decoded = pipe.vae.decode(latent / pipe.vae.config.scaling_factor).sample.detach()
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), tensor)
    images, seeds = pipe(APPLE, return_dict=False, output_type="np", **call)
    assert np.array_equal(images, array)
    assert seeds == [1]


def test_output_can_go_into_a_training_step(pipe) -> None:
    weight = torch.ones(1, requires_grad=True)
    for kind in ("pt", "latent"):
        drawn = draw(pipe, APPLE, output_type=kind, num_inference_steps=1)
        (gradient,) = torch.autograd.grad((drawn * weight).sum(), weight)
        torch.testing.assert_close(gradient, drawn.sum()[None])


def test_size_is_the_one_asked_for(pipe) -> None:
    assert draw(pipe, APPLE, height=20, width=26, num_inference_steps=1).shape == (1, 20, 26, 3)
    assert draw(pipe, APPLE, num_inference_steps=1).shape == (1, 16, 16, 3)


def test_embeddings_stand_for_their_prompts(pipe) -> None:
    text, negative = pipe.conditioner([APPLE, FACE]), pipe.conditioner([PEAR])
    call = {"seed": 1, "guidance_scale": 4.0}
    expected = draw(pipe, [APPLE, FACE], negative_prompt=PEAR, **call)
    for brought in (text, text.embeddings):
        drawn = draw(pipe, None, prompt_embeds=brought, negative_prompt_embeds=negative.embeddings, **call)
        assert np.abs(drawn - expected).max() <= SAME


def test_a_pipeline_without_text_encoder_draws_from_embeddings(pipe, tiny_folder) -> None:
    text, negative = pipe.conditioner([APPLE]), pipe.conditioner([""])
    bare = TextToImagePipeline.from_pretrained(
        tiny_folder, torch_dtype=torch.float32, device="cpu", text_encoder=None, tokenizer=None
    )
    drawn = draw(bare, None, prompt_embeds=text, negative_prompt_embeds=negative, seed=1, show_progress=False)
    assert np.abs(drawn - draw(pipe, APPLE, seed=1)).max() <= SAME
    with pytest.raises(ValueError, match="has no text encoder"):
        draw(bare, APPLE)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers under numpy 2
@pytest.mark.parametrize("name", ["euler", "Euler Discrete", "EulerDiscreteScheduler"])
def test_a_scheduler_by_name_is_that_of_the_object_and_only_for_this_call(pipe, name: str) -> None:
    before = pipe.scheduler
    made = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert np.array_equal(draw(pipe, APPLE, seed=1, scheduler=name), draw(pipe, APPLE, seed=1, scheduler=made))
    assert pipe.scheduler is before
    assert isinstance(before, DDIMScheduler)


def test_the_models_own_settings_are_the_defaults(own, tmp_path) -> None:
    own.generation = own.generation.but({"num_inference_steps": 3, "guidance_scale": 2.0, "guidance_rescale": 0.5})
    own.save_pretrained(tmp_path / "model")
    again = TextToImagePipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32, device="cpu")
    plain = again(APPLE, seed=1, output_type="np", show_progress=False).images
    told = draw(own, APPLE, seed=1, num_inference_steps=3, guidance_scale=2.0, guidance_rescale=0.5)
    assert np.array_equal(plain, told)


def test_the_bar_can_be_shown_and_turned_off(own, capsys) -> None:
    own.set_progress_bar_config()
    draw(own, [APPLE] * 3, batch_size=2, show_progress=True)
    assert "8/8" in capsys.readouterr().err
    draw(own, APPLE, show_progress=False)
    assert capsys.readouterr().err == ""


# The callback


def test_callback_sees_every_step_and_what_it_returns_is_used(pipe) -> None:
    seen = []

    def watch(shown_pipe: object, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        assert shown_pipe is pipe
        seen.append((step, int(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    result = draw(
        pipe, APPLE, output_type="latent", callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names
    )
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert [timestep for _, timestep, _ in seen] == pipe.scheduler.timesteps.tolist()
    assert all(given == sorted(names) for _, _, given in seen)
    assert not result.any()


def test_a_callback_may_change_the_prompt_on_the_way(pipe) -> None:
    other = pipe.conditioner([FACE]).embeddings

    def change(_: object, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        return {"prompt_embeds": other} if step == 1 else {}

    call = {"seed": 1, "guidance_scale": 1.0, "output_type": "latent"}
    halves = []
    keep = {"callback_on_step_end": lambda _, step, t, tensors: halves.append(tensors["latents"])}
    draw(pipe, APPLE, **call, **keep)
    changed = draw(
        pipe, APPLE, **call, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    )
    # By hand: the first two steps with one prompt, the others with the other.
    latents = halves[1]
    pipe.scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps[2:]:
            latents = pipe.scheduler.step(pipe.unet(latents, t, other).sample, t, latents).prev_sample
    torch.testing.assert_close(changed, latents)


def test_callbacks_of_diffusers_work_and_guidance_can_be_cut_off(own) -> None:
    batches = asked(own)
    draw(own, APPLE, guidance_scale=5.0, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    assert batches == [2, 2, 2, 1]


def test_guidance_that_a_callback_changes_is_that_of_its_batch_alone(pipe) -> None:
    def fade(pipe: TextToImagePipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipe._guidance_scale = max(1.01, 0.8 * pipe._guidance_scale)
        return {}

    call = {"seed": [1, 2], "guidance_scale": 4.0}
    together = draw(pipe, [APPLE, FACE], callback_on_step_end=fade, **call)
    apart = draw(pipe, [APPLE, FACE], callback_on_step_end=fade, batch_size=1, **call)
    assert np.abs(together - apart).max() < 1e-4
    cut_off = SDCFGCutoffCallback(cutoff_step_ratio=0.25)
    apart = draw(pipe, [APPLE, FACE], callback_on_step_end=cut_off, batch_size=1, **call)
    alone = draw(pipe, FACE, callback_on_step_end=cut_off, seed=2, guidance_scale=4.0)
    assert np.abs(apart[1] - alone[0]).max() < 1e-4


def test_rows_that_do_not_fit_the_pictures_are_refused(pipe) -> None:
    call = {"seed": [1, 2], "guidance_scale": 4.0}
    with pytest.raises(ValueError, match="1 rows of prompt_embeds for 2 pictures without guidance; return 2"):
        draw(pipe, [APPLE, FACE], callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.25), **call)

    def guide(pipe: TextToImagePipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipe._guidance_scale = 5.0
        return {}

    with pytest.raises(ValueError, match="1 rows of prompt_embeds for 1 pictures with guidance; return 2"):
        draw(pipe, APPLE, guidance_scale=1.0, callback_on_step_end=guide)


def test_guidance_can_be_switched_off_alone(own) -> None:
    def switch(pipe: TextToImagePipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipe._guidance_scale = 0.0
        return {}

    batches = asked(own)
    draw(own, [APPLE, FACE], guidance_scale=4.0, callback_on_step_end=switch)
    assert batches == [4, 2, 2, 2]


def test_a_callback_may_follow_a_gradient(own) -> None:
    def brighten(pipe: TextToImagePipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        with torch.enable_grad():
            latents = tensors["latents"].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(pipe.vae.decode(latents).sample.mean(), latents)
        return {"latents": latents.detach() + 100 * gradient}

    call = {"seed": 1, "guidance_scale": 1.0}
    own.to(torch.bfloat16)
    assert draw(own, APPLE, callback_on_step_end=brighten, **call).mean() > draw(own, APPLE, **call).mean()


def test_a_callback_can_stop_the_call(own) -> None:
    batches = asked(own)

    def stop(pipe: TextToImagePipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipe._interrupt = step == 1
        return tensors

    draw(own, APPLE, callback_on_step_end=stop)
    draw(own, APPLE, num_inference_steps=3)
    assert len(batches) == 2 + 3
    # What was not begun is not returned.
    result = own([APPLE, FACE, PEAR], seed=[5, 6, 7], batch_size=1, num_inference_steps=3, callback_on_step_end=stop)
    assert (len(result.images), result.seeds) == (1, [5])


def test_a_callback_may_change_what_guidance_leads_from(pipe) -> None:
    other = pipe.conditioner([FACE]).embeddings

    def change(_: object, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        return {"negative_prompt_embeds": other} if step == 0 else {}

    call = {"seed": 1, "guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}
    starts: list[torch.Tensor] = []
    keep = {"callback_on_step_end": lambda _, step, t, tensors: starts.append(tensors["latents"])}
    draw(pipe, APPLE, **call, **keep)
    names = ["negative_prompt_embeds"]
    changed = draw(pipe, APPLE, **call, callback_on_step_end=change, callback_on_step_end_tensor_inputs=names)
    # By hand: the second step alone leads away from the other prompt.
    pipe.scheduler.set_timesteps(2)
    t = pipe.scheduler.timesteps[1]
    with torch.no_grad():
        away, to = (pipe.unet(starts[0], t, text).sample for text in (other, pipe.conditioner([APPLE]).embeddings))
        expected = pipe.scheduler.step(away + 3.0 * (to - away), t, starts[0]).prev_sample
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-5)


# What goes wrong


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": ""}, "is empty"),
        ({"prompt": " \n\t"}, "is empty"),
        ({"prompt": [APPLE, ""]}, "is empty"),
        ({"prompt": 3}, "expected a sentence"),
        ({"prompt": None}, "expected a sentence"),
        ({"prompt": []}, "expected a sentence"),
        ({"prompt": [APPLE, 3]}, "is a int; expected a string"),
        ({"prompt": "caf\udce9"}, "not valid text"),
        ({"negative_prompt": "caf\udce9"}, "not valid text"),
        ({"negative_prompt": 3}, "negative_prompt=3"),
        ({"negative_prompt": [FACE, PEAR]}, "2 negative prompts for 1 prompts"),
        ({"height": 15}, "height=15 is not a multiple of 2, .* use 14 or 16"),
        ({"width": 1}, "width=1 is not a multiple of 2, .* use 2"),
        ({"height": 0}, "height=0; expected a whole number"),
        ({"width": 16.0}, "width=16.0; expected a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5"),
        ({"num_inference_steps": True}, "num_inference_steps=True"),
        ({"num_inference_steps": "many"}, "num_inference_steps='many'"),
        ({"num_inference_steps": 1001}, "1001"),
        ({"num_inference_steps": 1001, "scheduler": "euler"}, "trained at 1000 timesteps"),
        ({"num_inference_steps": 10**20}, "trained at 1000 timesteps"),
        (
            {"num_inference_steps": 2, "scheduler": "pndm"},
            "PNDMScheduler cannot sample this model in num_inference_steps=2",
        ),
        ({"height": 2**70}, "expected at most 65536 pixels"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
        ({"guidance_scale": -1}, "guidance_scale=-1"),
        ({"guidance_scale": "high"}, "guidance_scale='high'"),
        ({"guidance_rescale": 1.5}, "guidance_rescale=1.5"),
        ({"eta": float("nan")}, "eta=nan"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": [1, 2], "num_images_per_prompt": 1}, "2 seeds for 1 pictures"),
        ({"seed": [1, 2, 3, 4], "prompt": [APPLE, FACE]}, "4 seeds for 2 pictures"),
        ({"seed": []}, "0 seeds for 1 pictures"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "expected less than"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": 1, "generator": torch.Generator()}, "both seed and generator"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 pictures"),
        ({"generator": 7}, "generator=7"),
        ({"latents": torch.zeros(1, 4, 8, 9)}, r"expected \(1, 4, 8, 8\)"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, r"expected \(1, 4, 8, 8\)"),
        ({"latents": torch.full((1, 4, 8, 8), torch.nan)}, "NaN or infinity"),
        ({"latents": [0.0]}, "latents are list"),
        ({"output_type": "jpg"}, "expected one of pil, np, pt, latent"),
        ({"scheduler": "dimm"}, "did you mean 'DDIMScheduler'.*choose one of .*DDPMScheduler"),
        ({"scheduler": 3}, "scheduler 3"),
        ({"prompt_embeds": torch.zeros(1, 24, 32)}, "both prompt and prompt_embeds"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 24, 31)}, "31 channels; this model's U-Net reads 32"),
        ({"prompt": None, "prompt_embeds": torch.zeros(24, 32)}, "expected a floating-point tensor"),
        ({"prompt": None, "prompt_embeds": "words"}, "prompt_embeds is a str"),
        ({"negative_prompt": "x", "negative_prompt_embeds": torch.zeros(1, 24, 32)}, "both negative_prompt and"),
        ({"negative_prompt_embeds": torch.zeros(2, 24, 32)}, "2 negative_prompt_embeds for 1 prompts"),
        ({"negative_prompt_embeds": torch.zeros(1, 23, 32)}, "cannot be joined"),
        ({"callback_on_step_end": 3}, "callback_on_step_end=3"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["noise"]},
            "expected one of latents, prompt_embeds, negative_prompt_embeds",
        ),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_the_networks_are_asked(pipe, call: dict, message: str) -> None:
    batches: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    try:
        with pytest.raises(ValueError, match=message):
            pipe(**{"prompt": APPLE, "seed": None, "num_inference_steps": 2} | call)
    finally:
        handle.remove()
    assert batches == []


def test_a_model_that_states_no_size_needs_one(own) -> None:
    own.unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="give height in pixels"):
        draw(own, APPLE)
    assert draw(own, APPLE, height=8, width=12).shape == (1, 8, 12, 3)


def test_eta_that_the_sampler_does_not_know_is_noticed(pipe) -> None:
    with pytest.warns(UserWarning, match="EulerDiscreteScheduler knows no eta"):
        draw(pipe, APPLE, eta=0.5, scheduler="euler")


def test_a_negative_prompt_without_guidance_is_noticed(pipe) -> None:
    with pytest.warns(UserWarning, match="has no effect at guidance_scale=1"):
        draw(pipe, APPLE, negative_prompt=FACE, guidance_scale=1.0, num_inference_steps=1)


def test_latents_that_are_no_longer_finite_are_an_error_not_a_black_picture(own) -> None:
    with torch.no_grad():
        own.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="latents with NaN or infinity"):
        draw(own, APPLE)


def test_a_vae_that_decodes_to_nan_is_an_error(own) -> None:
    with torch.no_grad():
        own.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="VAE decoded the latents to NaN"):
        draw(own, APPLE)


def test_a_half_precision_vae_that_overflows_is_run_in_single_precision(own) -> None:
    call = {"seed": 1, "num_inference_steps": 1}
    with torch.no_grad():
        # Beyond float16's 65504 inside the decoder; the normalisation behind it takes the factor out again.
        own.vae.decoder.conv_in.weight.mul_(1e5)
        own.vae.decoder.conv_in.bias.mul_(1e5)
    expected = draw(own, APPLE, **call)
    own.vae.to(torch.float16)
    assert np.abs(draw(own, APPLE, **call) - expected).max() < 0.02
    assert own.vae.dtype == torch.float16


def test_a_pipeline_of_anothers_parts_draws_the_same(own, tiny_folder) -> None:
    own.generation = own.generation.but({"num_inference_steps": 2})
    again = TextToImagePipeline.from_pipe(own)
    assert again.unet is own.unet
    assert np.array_equal(draw(again, APPLE, seed=1), draw(own, APPLE, seed=1))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tiny_folder)
    theirs.set_progress_bar_config(disable=True)
    call = {"latents": torch.ones(1, 4, 8, 8), "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    assert (
        np.abs(TextToImagePipeline.from_pipe(theirs)(APPLE, **call).images - theirs(APPLE, **call).images).max() < SAME
    )
    assert TextToImagePipeline.from_pipe(own, unet=theirs.unet, torch_dtype=torch.bfloat16).unet is theirs.unet
    assert theirs.unet.dtype == own.vae.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="no option unett"):
        TextToImagePipeline.from_pipe(own, unett=None)
    with pytest.raises(ValueError, match="has no text_encoder, tokenizer"):
        TextToImagePipeline.from_pipe(diffusers.DDPMPipeline(own.unet, own.scheduler), vae=own.vae)


@pytest.mark.parametrize(("version", "side", "expected"), [("0.6.0", 32, 64), ("0.9.0", 32, 32), ("0.6.0", 96, 96)])
def test_an_old_stable_diffusion_draws_at_the_size_that_it_was_trained_at(own, version, side, expected) -> None:
    own.unet.register_to_config(_diffusers_version=version, sample_size=side)
    changed = expected != side
    with pytest.warns(UserWarning, match="sample_size=32 to 64") if changed else contextlib.nullcontext():
        pipe = TextToImagePipeline(**own.components)
    other = diffusers.StableDiffusionPipeline(
        **own.components | {"unet": own.unet}, safety_checker=None, feature_extractor=None
    )
    assert pipe.unet.config.sample_size == other.unet.config.sample_size == expected


def test_parts_of_different_models_are_refused(own) -> None:
    parts = own.components
    for name in ("unet", "vae"):
        with pytest.raises(ValueError, match=f"{name}=None; expected a model"):
            TextToImagePipeline(**{**parts, name: None})
    long = copy.deepcopy(own.tokenizer)
    long.add_tokens([f"<{i}>" for i in range(1000)])
    with pytest.raises(ValueError, match=r"the tokenizer has .* tokens, the text encoder knows"):
        TextToImagePipeline(**{**parts, "tokenizer": long})
    wide = type(own.unet).from_config({**own.unet.config, "in_channels": 9})
    with pytest.raises(ValueError, match="reads 9 channels, the VAE writes 4"):
        TextToImagePipeline(**{**parts, "unet": wide})
    other = type(own.unet).from_config({**own.unet.config, "cross_attention_dim": 48})
    with pytest.raises(ValueError, match="reads text of 48 channels, the text encoder writes 32"):
        TextToImagePipeline(**{**parts, "unet": other})
