"""Task `text-encoder`: CLIP's contrastive training of a text tower, beside an image tower, from nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from latentgen.models.digest import digest_of_weights
from training.config import LoopConfig
from training.contrast import Contrast
from training.data import DataConfig, Source, digest_of_rows, draws, open_source, picture_tensor, scan
from training.data.held_out import held_out_source, rows_to_show
from training.data.order import normal, row_of_sample
from training.loop import Batch
from training.teacher import Teacher, embed_as_teacher
from training.vocabulary import build_tokenizer, warn_of_long_captions

_VOCABULARY_ROWS = 20_000  # at most, evenly spaced, whose captions the vocabulary is learnt from
_SHOWN = 256  # held-out pictures that a preview measures


@dataclass
class TowerConfig:
    """Size of a transformer tower.

    Args:
        hidden_size: width.
        layers: depth.
        heads: attention heads.
    """

    hidden_size: int = 256
    layers: int = 4
    heads: int = 4


@dataclass
class TeacherConfig:
    """A sentence encoder that the text tower also learns from, so that words near in meaning come near.

    Args:
        path: folder of a transformers model with its tokenizer whose mean over tokens is the sentence's
            embedding (all-MiniLM-L6-v2, say); null trains without a teacher.
        weight: weight of the teacher's term in the loss, see `training.contrast`.
        words: words in every step, beside the captions, that are taken from the teacher's vocabulary.
        forms: what such a word is put into, one form drawn for each; prompts will be worded like this.
    """

    path: str | None = None
    weight: float = 1.0
    words: int = 0
    forms: list[str] = field(default_factory=lambda: ["{}", "a {}", "a picture of a {}"])

    def __post_init__(self) -> None:
        if self.words < 0 or not 0 <= self.weight < math.inf:
            raise ValueError(
                f"teacher.words is {self.words} and teacher.weight {self.weight}; expected a whole number and a finite "
                "weight of at least 0."
            )
        if not self.forms or any(form.count("{}") != 1 for form in self.forms):
            raise ValueError(f"teacher.forms is {self.forms}; expected sentences with one {{}} each, for the word.")


@dataclass
class TextEncoderRecipe:
    """Everything that `latentgen train text-encoder` can be told.

    Args:
        output: folder of the run.
        data: captioned pictures.
        tokenizer: folder or Hub id of a tokenizer; null builds a vocabulary from the captions.
        vocabulary_size: tokens of a vocabulary that is built.
        context_length: tokens of a prompt, start and end included.
        image_size: side of the pictures that the image tower sees, in pixels.
        patch_size: side of its patches.
        projection_dim: size of the space in which texts and pictures meet.
        text: the text tower.
        vision: the image tower.
        embedding_deviation: standard deviation of the text tower's first token embeddings; CLIP's is 0.02. With 1, as
            in T5, the tower's states keep telling words apart that its pictures do not tell apart yet.
        recall_weight: weight of reading the caption back from the text's summary, see `training.contrast`; pictures
            alone teach a tower which colours there are sooner than which thing has which.
        teacher: a sentence encoder to learn from as well.
        loop: steps, batch, optimizer and intervals.
    """

    output: str = "runs/text_encoder"
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: str | None = None
    vocabulary_size: int = 8192
    context_length: int = 32
    image_size: int = 64
    patch_size: int = 8
    projection_dim: int = 256
    text: TowerConfig = field(default_factory=TowerConfig)
    vision: TowerConfig = field(default_factory=TowerConfig)
    embedding_deviation: float = 0.02
    recall_weight: float = 0.0
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "context_length", "projection_dim", "vocabulary_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number of at least 1.")
        if self.context_length < 3:
            raise ValueError(
                f"context_length is {self.context_length}; expected at least 3: a start mark, a word and an end mark."
            )
        if self.loop.batch_size < 2:
            raise ValueError(
                "loop.batch_size is 1, but a contrastive loss compares the pictures of a batch: use at least 2."
            )
        if not 0 < self.embedding_deviation < math.inf:
            raise ValueError(f"embedding_deviation is {self.embedding_deviation}; expected a finite number above 0.")
        if not 0 <= self.recall_weight < math.inf:
            raise ValueError(f"recall_weight is {self.recall_weight}; expected a finite number of at least 0.")
        if self.teacher.words % self.loop.batch_size:
            raise ValueError(
                f"teacher.words {self.teacher.words} must be a multiple of loop.batch_size {self.loop.batch_size}, so "
                "that every process has the same share of them."
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}.")
        for name, tower in (("text", self.text), ("vision", self.vision)):
            if min(tower.hidden_size, tower.layers, tower.heads) < 1:
                raise ValueError(f"{name} is {tower}; expected whole numbers of at least 1.")
            if tower.hidden_size % tower.heads:
                raise ValueError(
                    f"{name}.hidden_size {tower.hidden_size} must be a multiple of {name}.heads {tower.heads}."
                )


def load_tokenizer(place: str, context_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer from a folder or the Hub.

    Raises:
        ValueError: There is none, or it is another model's: texts must stand between its start and end marks.
    """
    try:
        tokenizer = CLIPTokenizer.from_pretrained(place)
        tokens = tokenizer("a").input_ids
    except Exception as error:  # what transformers raises over missing and damaged files has no common class
        raise ValueError(f"tokenizer {place!r} cannot be loaded ({error}); give a CLIP tokenizer's folder.") from error
    marked = (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if not marked or tokenizer.decode(tokens[1:-1]).strip() != "a":
        raise ValueError(
            f"tokenizer {place!r} reads 'a' as {tokenizer.convert_ids_to_tokens(tokens)}, not as a word between a "
            "start and an end mark; give a CLIP tokenizer's folder."
        )
    tokenizer.model_max_length = context_length
    return tokenizer


def make_clip(recipe: TextEncoderRecipe, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Transformers' CLIPModel of the recipe's size with random weights."""

    def tower(config: TowerConfig) -> dict[str, Any]:
        return {
            "hidden_size": config.hidden_size,
            "intermediate_size": 4 * config.hidden_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "projection_dim": recipe.projection_dim,
        }

    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": recipe.context_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": recipe.image_size, "patch_size": recipe.patch_size}
    config = CLIPConfig(
        text_config=tower(recipe.text) | text,
        vision_config=tower(recipe.vision) | vision,
        projection_dim=recipe.projection_dim,
    )
    clip = CLIPModel(config)
    embeddings = clip.text_model.embeddings
    with torch.no_grad():
        embeddings.token_embedding.weight.normal_(std=recipe.embedding_deviation)
        # Never less than CLIP's, and where words are strong they come before their places.
        embeddings.position_embedding.weight.normal_(std=max(0.02, recipe.embedding_deviation / 5))
    return clip


class CaptionedPictures(Dataset):
    """Sample number -> picture, one of its row's captions, and words of the teacher's vocabulary."""

    def __init__(self, source: Source, rows: list[int], seed: int, recipe: TextEncoderRecipe, words: list[str]):
        self.source, self.rows, self.seed, self.image_size = source, rows, seed, recipe.image_size
        self.words, self.forms = words, recipe.teacher.forms
        self.noise_size = recipe.text.hidden_size if recipe.recall_weight else 0
        self.words_a_sample = recipe.teacher.words / recipe.loop.batch_size

    def __getitem__(self, number: int) -> Batch:
        row = self.rows[row_of_sample(number, len(self.rows), self.seed)]
        rng = draws(self.seed, "caption", number)
        first, last = (int(self.words_a_sample * n) for n in (number, number + 1))
        words = [self._word(i) for i in range(first, last)] if self.words else []
        image = picture_tensor(self.source, row, self.image_size)
        sample = {"row": self.source.id(row), "image": image, "caption": self.source.caption(row, rng), "words": words}
        return sample | ({"noise": normal((self.noise_size,), self.seed, "recall", number)} if self.noise_size else {})

    def _word(self, number: int) -> str:
        word = self.words[row_of_sample(number, len(self.words), self.seed)]
        return draws(self.seed, "word", number).choice(self.forms).replace("{}", word)


class TextEncoderTask:
    """See the module. Opens the data and checks all settings when made, before any training."""

    name = "text-encoder"

    def __init__(self, recipe: TextEncoderRecipe, output: Path):
        if recipe.loop.gradient_accumulation > 1:
            raise ValueError(
                f"loop.gradient_accumulation is {recipe.loop.gradient_accumulation}, but the contrastive loss compares "
                "a batch as a whole: set it to 1 and choose a batch_size that fits, or use more processes."
            )
        self.recipe = recipe
        self.teacher = Teacher(os.path.expanduser(recipe.teacher.path)) if recipe.teacher.path else None
        self.source = open_source(recipe.data)
        self.rows = scan(self.source, output / "quarantine.jsonl", recipe.data.max_bad_share).good
        self.inputs = {"data": digest_of_rows(self.source, self.rows)}
        if self.teacher:
            self.inputs["teacher"] = digest_of_weights(self.teacher.model)
        if recipe.loop.batch_size > len(self.rows):
            raise ValueError(
                f"loop.batch_size is {recipe.loop.batch_size}, but there are {len(self.rows)} pictures, and none may "
                "be twice in a batch that is compared with itself: use a smaller batch."
            )
        self.shown = rows_to_show(held_out_source(recipe.data), self.source, self.rows, _SHOWN)
        self.tokenizer = self._tokenizer()
        warn_of_long_captions(self.source, self.rows, self.tokenizer, recipe.context_length)
        torch.manual_seed(recipe.loop.seed)
        self.clip = make_clip(recipe, self.tokenizer)
        if self.teacher:
            embed_as_teacher(self.clip, self.tokenizer, self.teacher)
        size = self.teacher.model.config.hidden_size if self.teacher else 0
        self.players: dict[str, nn.Module] = {
            "clip": Contrast(self.clip, recipe.recall_weight, size, recipe.teacher.weight)
        }

    def _tokenizer(self) -> CLIPTokenizer:
        recipe = self.recipe
        if recipe.tokenizer:
            return load_tokenizer(os.path.expanduser(recipe.tokenizer), recipe.context_length)
        return build_tokenizer(self._texts(), recipe.vocabulary_size, recipe.context_length)

    def _texts(self) -> Iterator[str]:
        """Captions in several wordings, to make their words tokens, and the teacher's words, common ones twice."""
        for row in self.rows[:: math.ceil(len(self.rows) / _VOCABULARY_ROWS)]:
            yield self.source.caption(row)
            yield self.source.caption(row, draws(self.recipe.loop.seed, "vocabulary", row))
        if self.teacher:
            yield from self.teacher.words
            # A WordPiece vocabulary lists common words first.
            yield from self.teacher.words[: len(self.teacher.words) // 2]

    def averaged(self, player: str) -> nn.Module | None:
        """All of CLIP is averaged."""
        return self.clip

    def compiled(self) -> list[nn.Module]:
        """Both towers."""
        return [self.clip.text_model, self.clip.vision_model]

    def is_active(self, player: str, step: int) -> bool:
        """Always."""
        return True

    def samples(self, seed: int) -> Dataset:
        """See `CaptionedPictures`."""
        words = self.teacher.words if self.teacher else []
        return CaptionedPictures(self.source, self.rows, seed, self.recipe, words)

    def collate(self, items: list[Batch]) -> Batch:
        """Stacks pictures and tokenises texts, padded to the longest: causal attention hides what follows the end."""
        captions = [item["caption"] for item in items]
        words = [word for item in items for word in item["words"]]
        batch = default_collate([{key: item[key] for key in item if key not in ("caption", "words")} for item in items])
        batch |= {"texts": captions + words, "input_ids": self._tokenise(captions)}
        return batch | ({"words": self._tokenise(words)} if words else {})

    def _tokenise(self, texts: list[str]) -> Tensor:
        limit = self.recipe.context_length
        return self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").input_ids

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Adds the teacher's embeddings."""
        return batch | ({"teacher": self.teacher(batch["texts"])} if self.teacher else {})

    def to(self, device: torch.device) -> None:
        """Moves the teacher; on the CPU both towers attend by plain products, whose gradients are fast there."""
        self.clip.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
        if self.teacher:
            self.teacher.model.to(device)

    def preview(self, device: torch.device) -> tuple[Image.Image | None, dict[str, float]]:
        """Share of held-out pictures, 64 at a time, whose own caption is the nearest."""
        source, rows = self.shown.source, self.shown.rows
        hits = []
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            images = torch.stack([picture_tensor(source, row, self.recipe.image_size) for row in part]).to(device)
            captions = self._tokenise([source.caption(row) for row in part]).to(device)
            logits = self.clip(input_ids=captions, pixel_values=images).logits_per_image
            hits.append((logits.argmax(1) == torch.arange(len(part), device=device)).float())
        return None, {self.shown.name("accuracy"): torch.cat(hits).mean().item()}

    def export(self, folder: Path) -> None:
        """Saves `text_encoder` and `tokenizer` as a diffusers pipeline has them, and the whole CLIP beside them."""
        self.clip.save_pretrained(folder / "clip")
        self.tokenizer.save_pretrained(folder / "clip")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        text_encoder_of(self.clip).save_pretrained(folder / "text_encoder")
        size = self.recipe.image_size
        (folder / "clip" / "preprocessor_config.json").write_text(
            json.dumps(
                {
                    "image_processor_type": "CLIPImageProcessor",
                    "size": {"shortest_edge": size},
                    "crop_size": size,
                    "image_mean": [0.5] * 3,
                    "image_std": [0.5] * 3,
                },
                indent=2,
            )
        )


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower alone, as transformers' `CLIPTextModel`."""
    model = CLIPTextModel(clip.config.text_config)
    model.load_state_dict(clip.text_model.state_dict())
    return model.eval()
