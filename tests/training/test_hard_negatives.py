"""Hard negatives: captions with two words exchanged say something else in words that are said."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.shapes import ShapesSource, canonical_caption
from training.data.shapes.language import facts_of
from training.hard_negatives import WordSwaps
from training.tasks.text_encoder import Contrast, TeacherConfig, TextEncoderRecipe, TowerConfig, make_clip

SOURCE = ShapesSource("train", 3000)
CAPTIONS = [SOURCE.caption(row, np.random.default_rng(row)) for row in range(len(SOURCE))]
SWAPS = WordSwaps(CAPTIONS)


def words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text)


def threes(text: str) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[at : at + 3]) for at in range(len(found) - 2)]


@given(st.integers(0, len(SOURCE) - 1), st.integers(0, 2**32))
def test_two_words_change_places_and_every_three_words_are_said_in_some_caption(row, seed):
    caption = CAPTIONS[row]
    negative = SWAPS(caption, np.random.default_rng(seed))
    if not negative:
        return
    before, after = words(caption), words(negative)
    assert Counter(before) == Counter(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 2
    assert re.sub(r"[\w'-]+", "", caption) == re.sub(r"[\w'-]+", "", negative)
    said = {three for text in CAPTIONS for three in threes(text)}
    assert set(threes(negative)) <= said


def test_what_a_negative_says_is_not_what_the_caption_says():
    relations = [SOURCE.facts(row) for row in range(600) if SOURCE.facts(row).relation]
    negatives = [SWAPS(canonical_caption(facts), np.random.default_rng(0)) for facts in relations]
    found = [(facts, facts_of(negative)) for facts, negative in zip(relations, negatives, strict=True) if negative]
    assert len(found) > len(relations) / 2
    assert all(facts != other for facts, other in found)


def test_captions_without_a_swap_have_no_negative():
    for caption in ("", "circle", "a red circle", "red red"):
        assert SWAPS(caption, np.random.default_rng(0)) == ""


@pytest.fixture(scope="module")
def contrast(tiny_tokenizer):
    torch.manual_seed(0)
    tower = TowerConfig(hidden_size=16, layers=1, heads=2)
    recipe = TextEncoderRecipe(image_size=16, patch_size=8, projection_dim=8, text=tower, vision=tower)
    return Contrast(make_clip(recipe, tiny_tokenizer), TeacherConfig(), 0)


@pytest.fixture(scope="module")
def tiny_tokenizer():
    from training.vocabulary import build_tokenizer

    return build_tokenizer(CAPTIONS[:200], 600, 32)


def test_the_loss_is_cross_entropy_with_one_more_choice_for_pictures_that_have_a_negative(contrast, tiny_tokenizer):
    def tokens(texts: list[str]) -> torch.Tensor:
        return tiny_tokenizer(texts, padding=True, return_tensors="pt").input_ids

    captions, negatives = CAPTIONS[:6], [SWAPS(caption, np.random.default_rng(0)) for caption in CAPTIONS[:6]]
    have = torch.tensor([float(bool(negative)) for negative in negatives])
    assert 0 < have.sum() < 6
    batch = {"image": torch.randn(6, 3, 16, 16), "input_ids": tokens(captions)}
    batch |= {"negatives": tokens([negative or " " for negative in negatives]), "have_negative": have}
    loss, _ = contrast(batch)
    clip = contrast.clip
    plain = clip(input_ids=batch["input_ids"], pixel_values=batch["image"])
    others = clip(input_ids=batch["negatives"], pixel_values=batch["image"]).logits_per_image.diagonal()
    rows = [
        torch.cat([row, other[None]]) if has else row for row, other, has in zip(plain.logits_per_image, others, have)
    ]
    of_pictures = torch.stack([-row.log_softmax(0)[i] for i, row in enumerate(rows)]).mean()
    of_texts = torch.nn.functional.cross_entropy(plain.logits_per_text, torch.arange(6))
    torch.testing.assert_close(loss, (of_pictures + of_texts) / 2, rtol=1e-4, atol=1e-5)
