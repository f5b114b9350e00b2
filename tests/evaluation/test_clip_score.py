"""CLIPScore with a real, tiny CLIPModel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from latentgen.evaluation import ClipScore

PROMPTS = ["a red apple, noto style", "a happy face", "a green pear"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> Path:
    text = {
        "vocab_size": len(tiny_tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tiny_tokenizer.model_max_length,
        "bos_token_id": tiny_tokenizer.bos_token_id,
        "eos_token_id": tiny_tokenizer.eos_token_id,
        "pad_token_id": tiny_tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def test_it_is_the_cosine_of_the_projections(clip_folder: Path) -> None:
    score = ClipScore.from_pretrained(clip_folder)
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "yellow", "green")]
    image, text = score.image_features(pictures), score.text_features(PROMPTS)
    cosine = ((image / image.norm(dim=1, keepdim=True)) * (text / text.norm(dim=1, keepdim=True))).sum(1)
    assert cosine.abs().max() > 0.01
    assert torch.allclose(score(pictures, PROMPTS), 100 * cosine.clamp_min(0), atol=1e-4)
    assert torch.allclose(score(pictures, PROMPTS, batch_size=2), score(pictures, PROMPTS), atol=1e-4)


def test_the_projections_are_those_that_the_model_compares(clip_folder: Path) -> None:
    score = ClipScore.from_pretrained(clip_folder)
    pictures = [Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")]
    tokens = score.tokenizer(PROMPTS[:2], padding="max_length", return_tensors="pt")
    pixels = score.image_processor(pictures, return_tensors="pt")
    with torch.no_grad():
        logits = score.model(**tokens, **pixels).logits_per_image / score.model.logit_scale.exp()
    assert torch.allclose(score(pictures, PROMPTS[:2]), 100 * logits.diag().clamp_min(0), atol=1e-4)


def test_what_does_not_match_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    score = ClipScore.from_pretrained(clip_folder)
    with pytest.raises(ValueError, match="2 prompts for 1 pictures"):
        score([Image.new("RGB", (16, 16))], PROMPTS[:2])
    with pytest.raises(FileNotFoundError, match="folder of a CLIPModel"):
        ClipScore.from_pretrained(tmp_path)
