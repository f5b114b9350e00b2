"""`TextConditioning`: what a denoiser is told about the wanted picture, whichever encoder wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """A batch of encoded prompts.

    Attributes:
        embeddings: One vector a token, (B, L, D).
        mask: True where a token counts, (B, L); None when all do (Stable Diffusion attends to the padding too).
        pooled: One vector a prompt, (B, P); None when the encoder has none.

    Raises:
        ValueError: The three do not describe the same batch.
    """

    embeddings: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3 or not self.embeddings.is_floating_point():
            raise ValueError(
                f"embeddings are {tuple(self.embeddings.shape)} {self.embeddings.dtype}; expected a floating-point "
                "tensor (batch, tokens, channels)"
            )
        if self.mask is not None and self.mask.shape != self.embeddings.shape[:2]:
            raise ValueError(f"mask is {tuple(self.mask.shape)}; expected {tuple(self.embeddings.shape[:2])}")
        if self.pooled is not None and (self.pooled.ndim != 2 or len(self.pooled) != len(self.embeddings)):
            raise ValueError(f"pooled is {tuple(self.pooled.shape)}; expected ({len(self.embeddings)}, channels)")

    def __len__(self) -> int:
        return len(self.embeddings)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextConditioning:
        """Move to a device and a dtype; the mask keeps its own dtype."""
        return TextConditioning(
            self.embeddings.to(device, dtype),
            None if self.mask is None else self.mask.to(device),
            None if self.pooled is None else self.pooled.to(device, dtype),
        )

    def rows(self, index: slice | Sequence[int] | Tensor) -> TextConditioning:
        """The prompts at `index`, in that order; one index may come several times."""
        return TextConditioning(
            self.embeddings[index],
            None if self.mask is None else self.mask[index],
            None if self.pooled is None else self.pooled[index],
        )

    @staticmethod
    def cat(parts: Sequence[TextConditioning]) -> TextConditioning:
        """Join batches of equal token count.

        Raises:
            ValueError: The parts differ in shape, or only some have pooled vectors.
        """
        if len({part.embeddings.shape[1:] for part in parts}) != 1:
            shapes = ", ".join(str(tuple(part.embeddings.shape)) for part in parts)
            raise ValueError(f"embeddings {shapes} cannot be joined; expected equal token counts and channels")
        masks = [part.mask for part in parts]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        if pooled and len(pooled) != len(parts):
            raise ValueError(f"{len(pooled)} of {len(parts)} text conditionings are pooled; expected all or none")
        return TextConditioning(
            torch.cat([part.embeddings for part in parts]),
            None if all(mask is None for mask in masks) else torch.cat([_full_mask(part) for part in parts]),
            torch.cat(pooled) if pooled else None,
        )


def _full_mask(text: TextConditioning) -> Tensor:
    whole = text.embeddings.new_ones(text.embeddings.shape[:2], dtype=torch.bool)
    return whole if text.mask is None else text.mask.bool()
