"""`TextConditioning`: rows, joining, moving, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from latentgen import TextConditioning


def make(batch: int, tokens: int = 3, channels: int = 2) -> TextConditioning:
    """Values that tell every prompt from every other."""
    embeddings = torch.arange(batch * tokens * channels, dtype=torch.float32).reshape(batch, tokens, channels)
    return TextConditioning(embeddings, torch.arange(tokens).expand(batch, tokens) < 2, embeddings.sum(1))


def test_rows_may_repeat_and_reorder() -> None:
    text = make(3)
    picked = text.rows([2, 0, 2])
    for part in ("embeddings", "mask", "pooled"):
        whole, rows = getattr(text, part), getattr(picked, part)
        assert torch.equal(rows, torch.stack([whole[2], whole[0], whole[2]]))


def test_cat_undoes_slicing() -> None:
    text = make(4)
    joined = TextConditioning.cat([text.rows(slice(0, 1)), text.rows(slice(1, 4))])
    assert torch.equal(joined.embeddings, text.embeddings)
    assert torch.equal(joined.mask, text.mask)
    assert torch.equal(joined.pooled, text.pooled)
    assert len(joined) == 4


def test_to_casts_values_but_not_the_mask() -> None:
    cast = make(2).to(dtype=torch.float64)
    assert (cast.embeddings.dtype, cast.pooled.dtype, cast.mask.dtype) == (torch.float64, torch.float64, torch.bool)


@pytest.mark.parametrize(
    "parts",
    [
        {"embeddings": torch.zeros(2, 3)},
        {"embeddings": torch.zeros(2, 3, 4, dtype=torch.long)},
        {"embeddings": torch.zeros(2, 3, 4), "mask": torch.ones(2, 4)},
        {"embeddings": torch.zeros(2, 3, 4), "pooled": torch.zeros(3, 4)},
    ],
)
def test_parts_of_different_batches_are_refused(parts: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        TextConditioning(**parts)


def test_no_mask_means_that_every_token_counts() -> None:
    masked, whole = make(1), TextConditioning(make(2).embeddings, None, make(2).pooled)
    assert torch.equal(TextConditioning.cat([masked, whole]).mask, torch.cat([masked.mask, torch.ones(2, 3).bool()]))
    assert TextConditioning.cat([whole, whole]).mask is None


def test_cat_refuses_other_lengths_and_half_a_pool() -> None:
    with pytest.raises(ValueError, match="cannot be joined"):
        TextConditioning.cat([make(1, tokens=3), make(1, tokens=4)])
    with pytest.raises(ValueError, match="1 of 2 text conditionings are pooled"):
        TextConditioning.cat([make(1), TextConditioning(make(1).embeddings)])
