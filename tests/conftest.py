"""Fixtures that several test folders share: a whole model folder of the real structure, small enough for seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import diffusers
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.vocabulary import build_tokenizer

# How long an example takes says something of the machine, not of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

CONTEXT = 24
SENTENCES = (
    "a red apple, noto style",
    "a green pear beside a blue bowl",
    "a firefighter with dark skin, fluent 3d style",
    "two small yellow circles above a large square",
    "a happy face that laughs with closed eyes",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks are slower on several threads, and sums keep their order on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over a vocabulary learnt from SENTENCES."""
    return build_tokenizer(SENTENCES, vocabulary_size=600, context_length=CONTEXT)


@pytest.fixture(scope="session")
def tiny_text_encoder(tiny_tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text tower with random weights that fits `tiny_tokenizer`."""
    with _seeded(1):
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tiny_tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                bos_token_id=tiny_tokenizer.bos_token_id,
                eos_token_id=tiny_tokenizer.eos_token_id,
                pad_token_id=tiny_tokenizer.pad_token_id,
            )
        ).eval()


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer, tiny_text_encoder: CLIPTextModel
) -> Path:
    """A folder that diffusers built and saved; pictures of 16x16, latent step 2. Take `tiny_copy` to change it."""
    with _seeded(2):
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=tiny_text_encoder,
        tokenizer=tiny_tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_folder` that the test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


class _seeded:
    """Draw the weights of a fixture from `seed`, and leave the global generator as it was."""

    def __init__(self, seed: int) -> None:
        self.fork, self.seed = torch.random.fork_rng(devices=[]), seed

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        self.fork.__exit__(*error)


def _emoji_picture(shape: int, style: str, colour: str) -> Image.Image:
    """One of five shapes, flat on white in the first style and outlined in the second."""
    picture = Image.new("RGB", (32, 32), "white")
    pen = ImageDraw.Draw(picture)
    outline = {"fill": colour} if style == "twemoji" else {"fill": colour, "outline": "black", "width": 3}
    draw = (
        lambda: pen.ellipse((4, 4, 27, 27), **outline),
        lambda: pen.rectangle((6, 6, 25, 25), **outline),
        lambda: pen.polygon([(16, 3), (29, 28), (3, 28)], **outline),
        lambda: pen.rectangle((13, 2, 18, 29), **outline),
        lambda: pen.rectangle((2, 13, 29, 18), **outline),
    )
    draw[shape]()
    return picture


@pytest.fixture(scope="session")
def emoji_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the emoji data: five concepts, two of them with skin tones, in two styles, 32x32 pixels.

    Training lacks "square" in twemoji (pair), "row" in both styles (concept) and the dark disc of noto (tone).
    """
    names = ("disc", "square", "triangle", "column", "row")
    colours = {"none": "#ffcc22", "light": "#f7dece", "dark": "#5c4033"}
    lacking = {("square", "twemoji"): "pair", ("row", "noto"): "concept", ("row", "twemoji"): "concept"}
    rows = []
    for shape, name in enumerate(names):
        for style in ("noto", "twemoji"):
            for tone in colours if shape < 2 else ("none",):
                kind = lacking.get((name, style), "train")
                rows.append(
                    {
                        "id": f"{name}-{tone}_{style}",
                        "concept": f"c{shape}",
                        "skin_tone": tone,
                        "name": name if tone == "none" else f"{name}: {tone} skin tone",
                        "keywords": [name, "shape"],
                        "style": style,
                        "split_kind": "tone" if (name, style, tone) == ("disc", "noto", "dark") else kind,
                        "image": _emoji_picture(shape, style, colours[tone]),
                    }
                )
    folder = tmp_path_factory.mktemp("emoji")
    for split in ("train", "validation"):
        part = datasets.Dataset.from_list([row for row in rows if (row["split_kind"] == "train") == (split == "train")])
        part.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder
