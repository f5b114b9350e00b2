"""`ClipConditioner` against diffusers' encode_prompt, and what it does with long, empty and repeated prompts."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

from latentgen import ClipConditioner

PROMPTS = ["a red apple, noto style", "two small yellow circles above a large square"]


@pytest.fixture
def conditioner(tiny_tokenizer, tiny_text_encoder) -> ClipConditioner:
    """On a copy of the tower, which tests change."""
    return ClipConditioner(tiny_tokenizer, copy.deepcopy(tiny_text_encoder))


def counted(module: nn.Module) -> list[int]:
    """Batch sizes of the calls that `module` gets from now on."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


def test_embeddings_are_those_of_diffusers(tiny_folder: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_folder)
    ours = ClipConditioner(pipe.tokenizer, pipe.text_encoder)
    theirs, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["a blue bowl", ""])
    assert torch.equal(ours(PROMPTS).embeddings, theirs)
    torch.testing.assert_close(ours(["a blue bowl", ""]).embeddings, negative, rtol=1e-5, atol=1e-6)


def test_pooled_is_the_state_of_the_end_token(conditioner: ClipConditioner) -> None:
    text = conditioner(PROMPTS)
    ends = [len(ids) - 1 for ids in conditioner.tokenizer(PROMPTS)["input_ids"]]
    torch.testing.assert_close(text.pooled, text.embeddings[torch.arange(2), ends])


def test_clip_skip_is_a_tower_with_fewer_layers(conditioner: ClipConditioner) -> None:
    shorter = copy.deepcopy(conditioner.text_encoder)
    shorter.encoder.layers = shorter.encoder.layers[:-1]
    skipping = ClipConditioner(conditioner.tokenizer, conditioner.text_encoder, clip_skip=1)
    expected = ClipConditioner(conditioner.tokenizer, shorter)
    torch.testing.assert_close(skipping(PROMPTS).embeddings, expected(PROMPTS).embeddings)
    with pytest.raises(ValueError, match="clip_skip=3"):
        ClipConditioner(conditioner.tokenizer, conditioner.text_encoder, clip_skip=3)


def test_long_prompts_are_cut_with_a_warning_that_shows_the_cut_words(conditioner: ClipConditioner) -> None:
    kept = " ".join(["apple"] * (conditioner.max_length - 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = conditioner([kept])
    with pytest.warns(UserWarning, match="'yellow circles'"):
        cut = conditioner([f"{kept} yellow circles"])
    torch.testing.assert_close(cut.embeddings, fits.embeddings)


def test_words_cut_from_the_beginning_are_shown_too(conditioner: ClipConditioner, monkeypatch) -> None:
    monkeypatch.setattr(conditioner.tokenizer, "truncation_side", "left")
    kept = " ".join(["apple"] * (conditioner.max_length - 2))
    with pytest.warns(UserWarning, match="cut from its beginning: 'yellow circles'"):
        cut = conditioner([f"yellow circles {kept}"])
    torch.testing.assert_close(cut.embeddings, conditioner([kept]).embeddings)


def test_context_is_the_smaller_of_tokenizer_and_tower(conditioner: ClipConditioner) -> None:
    unlimited = copy.deepcopy(conditioner.tokenizer)
    unlimited.model_max_length = int(1e30)
    context = conditioner.text_encoder.config.max_position_embeddings
    assert ClipConditioner(unlimited, conditioner.text_encoder)(["a pear"]).embeddings.shape[1] == context
    unlimited.model_max_length = context - 5
    assert ClipConditioner(unlimited, conditioner.text_encoder)(["a pear"]).embeddings.shape[1] == context - 5


def test_repeated_prompts_are_encoded_once_and_the_empty_one_once_for_all(conditioner: ClipConditioner) -> None:
    batches = counted(conditioner.text_encoder)
    text = conditioner(["", "a pear", "a bowl", "a pear", ""])
    assert sorted(batches) == [1, 2]
    alone = [conditioner([prompt]).embeddings[0] for prompt in ("", "a pear", "a bowl")]
    torch.testing.assert_close(text.embeddings, torch.stack([alone[i] for i in (0, 1, 2, 1, 0)]))
    assert sorted(batches) == [1, 1, 1, 2]


def test_the_cached_empty_prompt_notices_changed_weights(conditioner: ClipConditioner) -> None:
    before = conditioner.empty()
    assert conditioner.empty() is before
    with torch.no_grad():
        next(conditioner.text_encoder.parameters()).mul_(2)
    after = conditioner.empty()
    assert not torch.equal(after.embeddings, before.embeddings)
    for weight in conditioner.text_encoder.parameters():  # as EMA models and adapters write
        weight.data.mul_(2)
    assert not torch.equal(conditioner.empty().embeddings, after.embeddings)
    conditioner.text_encoder.to(torch.float64)
    assert conditioner.empty().embeddings.dtype == torch.float64


def test_the_tower_is_frozen_and_its_output_can_train_others(conditioner: ClipConditioner) -> None:
    assert not any(weight.requires_grad for weight in conditioner.text_encoder.parameters())
    assert not conditioner.text_encoder.training
    layer = nn.Linear(32, 1)
    with torch.inference_mode():
        conditioner.empty()
    layer(conditioner([""]).embeddings).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_both_key_layouts_of_transformers_load(conditioner: ClipConditioner, tmp_path: Path) -> None:
    conditioner.text_encoder.save_pretrained(tmp_path)
    flat = {key.removeprefix("text_model."): t for key, t in load_file(tmp_path / "model.safetensors").items()}
    expected = conditioner(PROMPTS).embeddings
    for prefix in ("", "text_model."):
        renamed = {prefix + key: tensor for key, tensor in flat.items()}
        save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        tower = CLIPTextModel.from_pretrained(tmp_path)
        assert torch.equal(ClipConditioner(conditioner.tokenizer, tower)(PROMPTS).embeddings, expected)


@pytest.mark.parametrize("prompts", ["a pear", [], [None], [3]])
def test_other_than_a_list_of_strings_is_refused(conditioner: ClipConditioner, prompts: object) -> None:
    with pytest.raises(ValueError, match="expected a list with at least one string"):
        conditioner(prompts)
