"""A sentence encoder that a text tower learns from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, CLIPModel, CLIPTokenizer

from training.vocabulary import WORD_END


class Teacher:
    """The frozen sentence encoder and the words of its vocabulary."""

    def __init__(self, path: str):
        if not (Path(path) / "config.json").is_file():
            raise FileNotFoundError(
                f"teacher.path {path!r} is no folder of a transformers model: it has no config.json."
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModel.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
        except Exception as error:  # what transformers raises over damaged files has no common class
            raise ValueError(f"teacher.path {path!r} cannot be loaded ({error}); fetch it again.") from error
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        self.words = [word for word, _ in vocabulary if word.isascii() and word.isalpha() and len(word) > 2]

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D): the mean of the last states over real tokens."""
        device = next(self.model.parameters()).device
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        states = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return (states * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def embed_as_teacher(clip: CLIPModel, tokenizer: CLIPTokenizer, teacher: Teacher) -> None:
    """Starts the embeddings of tokens that are whole words from the teacher's, by their principal components.

    So words that are near in meaning are near from the first step. Mean and deviation stay those of random embeddings.
    """
    table = clip.text_model.embeddings.token_embedding.weight
    words = {token.removesuffix(WORD_END): number for token, number in tokenizer.get_vocab().items() if _is_word(token)}
    texts = list(words)
    known = torch.cat([teacher(texts[start : start + 256]) for start in range(0, len(texts), 256)])
    known = known - known.mean(0)
    _, _, directions = torch.linalg.svd(known, full_matrices=False)
    components = known @ directions[: table.shape[1]].T
    width = components.shape[1]
    table[list(words.values()), :width] = components * (table.std() / components.std())


def _is_word(token: str) -> bool:
    word = token.removesuffix(WORD_END)
    return word != token and len(word) > 1 and word.isascii() and word.isalpha()
