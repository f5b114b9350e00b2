"""How well pictures fit their sentences in the eyes of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import CLIPModel


class ClipScore:
    """CLIPScore (arXiv 2104.08718) in its usual scale, 100 * max(cos, 0).

    Args:
        model: transformers' `CLIPModel`; it is put in evaluation mode.
        tokenizer: The tokenizer of its text tower.
        image_processor: Its `CLIPImageProcessor`.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any, image_processor: Any) -> None:
        self.model, self.tokenizer, self.image_processor = model.eval(), tokenizer, image_processor

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> ClipScore:
        """Load a folder that holds a CLIPModel, its tokenizer and its `preprocessor_config.json`.

        Raises:
            FileNotFoundError: There is no such folder or it is not complete.
        """
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        missing = [name for name in ("config.json", "preprocessor_config.json") if not (Path(folder) / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} has no {' and no '.join(missing)}; expected the folder of a CLIPModel")
        where = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
        model = CLIPModel.from_pretrained(**where, use_safetensors=True).to(device)
        return cls(model, CLIPTokenizer.from_pretrained(**where), CLIPImageProcessor.from_pretrained(**where))

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Score each picture against its prompt.

        Returns:
            (B,) in [0, 100], float32.

        Raises:
            ValueError: Not as many prompts as pictures.
        """
        if len(pictures) != len(prompts) or not prompts:
            raise ValueError(f"{len(prompts)} prompts for {len(pictures)} pictures; give one for each")
        scores = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            cosine = F.cosine_similarity(self.image_features(pictures[part]), self.text_features(prompts[part]))
            scores.append(100 * cosine.clamp_min(0).float().cpu())
        return torch.cat(scores)

    @torch.no_grad()
    def image_features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The image tower's projections (B, P) of pictures."""
        pixels = self.image_processor([picture.convert("RGB") for picture in pictures], return_tensors="pt")
        return _tensor(self.model.get_image_features(pixels["pixel_values"].to(self.model.device)))

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """The text tower's projections (B, P) of prompts; words past the context are cut."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        return _tensor(self.model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"]))


def _tensor(features: Any) -> Tensor:
    # transformers 5 wraps the projections in an output object.
    return features if isinstance(features, Tensor) else features.pooler_output
