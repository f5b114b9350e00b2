"""The text tower's task: vocabulary, contrast, teacher, export."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer, CLIPModel, CLIPTextModel, CLIPTokenizer

from training.command import read_settings, train
from training.contrast import Contrast, Recall, imitation
from training.tasks.text_encoder import TextEncoderRecipe, TextEncoderTask, TowerConfig, make_clip, text_encoder_of
from training.teacher import Teacher, embed_as_teacher
from training.vocabulary import build_tokenizer

CAPTIONS = [
    f"a {size} {colour} {shape}"
    for size in ("large", "small")
    for colour in ("red", "blue")
    for shape in ("ring", "star")
]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(CAPTIONS * 4, 700, 16)


def test_frequent_words_are_tokens(tokenizer):
    words = {word for caption in CAPTIONS for word in caption.split()}
    assert {tokenizer.decode(t).strip() for caption in CAPTIONS for t in tokenizer(caption).input_ids[1:-1]} == words


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Co", "Cn")), max_size=8))
def test_no_text_is_unknown(tokenizer, text):
    """Every text is spelt with ordinary tokens between the start and the end mark, and no other mark."""
    tokens = tokenizer(text).input_ids
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens[-1] == tokenizer.eos_token_id
    assert not marks & set(tokens[1:-1])


def test_vocabulary_survives_its_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*CAPTIONS, "Größe 12, naïve!"]
    assert again(texts).input_ids == tokenizer(texts).input_ids
    assert again.model_max_length == 16


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="too small"):
        build_tokenizer(CAPTIONS, 300, 16)


def test_loss_equals_that_of_transformers(tokenizer):
    torch.manual_seed(0)
    recipe = TextEncoderRecipe(image_size=16, projection_dim=16)
    clip = make_clip(recipe, tokenizer).eval()
    batch = {
        "input_ids": tokenizer(CAPTIONS, padding=True, return_tensors="pt").input_ids,
        "image": torch.randn(len(CAPTIONS), 3, 16, 16),
    }
    loss, _ = Contrast(clip)(batch)
    theirs = clip(input_ids=batch["input_ids"], pixel_values=batch["image"], return_loss=True).loss
    torch.testing.assert_close(loss, theirs)


def test_summary_does_not_depend_on_padding(tokenizer):
    clip = make_clip(TextEncoderRecipe(image_size=16, projection_dim=16, context_length=16), tokenizer).eval()
    short, padded = (
        tokenizer(["a red ring"], padding=p, max_length=16, return_tensors="pt").input_ids for p in (True, "max_length")
    )
    assert padded.shape[1] > short.shape[1]
    a, b = (clip.text_model(input_ids=ids).pooler_output for ids in (short, padded))
    torch.testing.assert_close(a, b)


def test_exported_tower_equals_the_trained_one(tiny, tmp_path, tokenizer):
    folder = train("text-encoder", [*tiny("text-encoder", tmp_path / "run"), "--loop.steps=2"])
    tower, clip = CLIPTextModel.from_pretrained(folder / "text_encoder"), CLIPModel.from_pretrained(folder / "clip")
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = words(CAPTIONS, padding="max_length", max_length=words.model_max_length, return_tensors="pt").input_ids
    torch.testing.assert_close(tower(ids).last_hidden_state, clip.text_model(ids).last_hidden_state)
    torch.testing.assert_close(text_encoder_of(clip)(ids).pooler_output, tower(ids).pooler_output)


def test_recall_is_the_cross_entropy_of_every_caption_up_to_its_end():
    torch.manual_seed(0)
    recall = Recall(size=8, places=6, vocabulary=11)
    end = 10
    tokens = [[9, 3, 4, end], [9, 1, end], [9, 2, 5, 7, 7, end]]
    padded = torch.tensor([row + [end] * (6 - len(row)) for row in tokens])
    summaries, noise = torch.randn(2, 3, 8)
    means = []
    for row, summary, shift in zip(tokens, summaries, noise, strict=True):
        centred = (summary - summary.mean()) / (summary.var(unbiased=False) + 1e-5).sqrt() + shift / 2
        hidden = torch.stack([recall.summary(centred) + recall.place.weight[place] for place in range(len(row))])
        chances = recall.token(nn.functional.gelu(hidden)).log_softmax(-1)
        means.append(-sum(chances[place, token] for place, token in enumerate(row)) / len(row))
    torch.testing.assert_close(recall(summaries, noise, padded, end), sum(means) / 3)


def test_a_summary_that_learnt_to_recall_says_which_thing_has_which_colour(tokenizer):
    """Half of the captions differ from another in nothing but the order of two words, and all pictures are alike."""
    colours = ["red", "blue"]
    orders = [("ring", "star"), ("star", "ring")]
    captions = [f"a {one} {a} a {other} {b}" for a, b in orders for one in colours for other in colours]
    tower = TowerConfig(hidden_size=32, layers=2, heads=2)
    recipe = TextEncoderRecipe(
        image_size=8, patch_size=8, projection_dim=8, text=tower, vision=tower, embedding_deviation=1, recall_weight=1
    )
    torch.manual_seed(0)
    contrast = Contrast(make_clip(recipe, tokenizer), recipe.recall_weight)
    ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW(contrast.parameters(), lr=3e-3)
    for _ in range(200):
        noise = torch.randn(len(ids), 32)
        loss, scalars = contrast({"input_ids": ids, "image": torch.zeros(len(ids), 3, 8, 8), "noise": noise})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert scalars["contrastive"] > math.log(len(ids)) - 0.1  # the pictures taught nothing
    with torch.no_grad():
        summaries = contrast.clip.text_model(input_ids=ids).pooler_output
        left = contrast.recall(summaries, torch.zeros(len(ids), 32), ids, tokenizer.eos_token_id)
    order_unknown = 4 * math.log(2) / ids.shape[1]  # of the tokens, two colours and two things are either this or that
    assert left < order_unknown / 3


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory):
    """A real small BERT with a real WordPiece vocabulary."""
    from tokenizers import BertWordPieceTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = BertWordPieceTokenizer()
    words.train_from_iterator(CAPTIONS * 4, vocab_size=120, min_frequency=1)
    words.save_model(str(folder))
    AutoTokenizer.from_pretrained(folder, tokenizer_type="bert").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_teacher_embedding_is_the_mean_over_real_tokens(sentence_encoder):
    teacher = Teacher(str(sentence_encoder))
    texts = ["a red ring", "a large blue star"]
    together = teacher(texts)
    for text, embedding in zip(texts, together, strict=True):
        tokens = teacher.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = teacher.model(**tokens).last_hidden_state[0]
        torch.testing.assert_close(embedding, states.mean(0), atol=1e-5, rtol=1e-4)
    assert "ring" in teacher.words


def test_tower_learns_from_its_teacher(tiny, sentence_encoder, tmp_path):
    arguments = [*tiny("text-encoder", tmp_path / "run"), f"--teacher.path={sentence_encoder}", "--teacher.words=16"]
    arguments += ["--loop.steps=60", "--loop.optimizer.learning_rate=3e-3", "--loop.optimizer.warmup_steps=2"]
    train("text-encoder", arguments)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cosines = [
        e.value for e in EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("teacher_cosine")
    ]
    assert cosines[-1] > cosines[0] + 0.2
    assert all(math.isfinite(c) for c in cosines)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 12))
def test_imitation_is_the_cross_entropy_of_two_soft_choices(seed, count):
    """Written out in float64; what all of a teacher's embeddings share changes nothing."""
    rng = np.random.default_rng(seed)
    taught, views, shift = (rng.standard_normal(shape) for shape in ((count, 8), (count, 8), (8,)))
    t, v = taught - taught.mean(0), views
    t, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (t, v))
    p, q = scipy.special.softmax(t @ t.T / 0.05, 1), scipy.special.log_softmax(v @ t.T / 0.07, 1)
    term, cosine = imitation(torch.from_numpy(views), torch.from_numpy(taught + shift))
    assert term.item() == pytest.approx(-(p * q).sum(1).mean())
    assert cosine.item() == pytest.approx((t * v).sum(1).mean())


def test_word_embeddings_start_as_near_as_the_teachers(sentence_encoder, tokenizer):
    """Cosines between words are the teacher's where no component is cut off."""
    teacher = Teacher(str(sentence_encoder))
    clip = make_clip(TextEncoderRecipe(image_size=16, projection_dim=16), tokenizer)
    before = clip.text_model.embeddings.token_embedding.weight.clone()
    embed_as_teacher(clip, tokenizer, teacher)
    table = clip.text_model.embeddings.token_embedding.weight.detach()
    words = ["large", "small", "red", "blue", "ring", "star"]
    numbers = [tokenizer(word).input_ids[1] for word in words]
    changed = (table[numbers] - before[numbers]).abs().sum(0) > 0
    ours = torch.nn.functional.normalize(table[numbers][:, changed], dim=1)
    vocabulary = [t.removesuffix("</w>") for t in tokenizer.get_vocab() if t.endswith("</w>") and t[:-4].isalpha()]
    everything = teacher([t for t in vocabulary if t.isascii() and len(t) > 1])
    theirs = torch.nn.functional.normalize(teacher(words) - everything.mean(0), dim=1)
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("deviation", "places"), [(0.02, 0.02), (1.0, 0.2)])
def test_embeddings_begin_as_the_recipe_says(deviation, places, tokenizer):
    clip = make_clip(TextEncoderRecipe(image_size=16, embedding_deviation=deviation, context_length=77), tokenizer)
    embeddings = clip.text_model.embeddings
    for table, expected in ((embeddings.token_embedding, deviation), (embeddings.position_embedding, places)):
        assert table.weight.std().item() == pytest.approx(expected, rel=0.03)


def test_words_keep_their_places_apart_when_their_embeddings_are_strong(tokenizer):
    """What a state says of its own word, as a share of all it says, grows with the embeddings' deviation."""
    captions = [f"a {size} {shape}" for size in ("large", "small", "red", "blue") for shape in ("ring", "star")]
    tokens = tokenizer(captions, return_tensors="pt").input_ids
    shares = []
    for deviation in (0.02, 1.0):
        torch.manual_seed(0)
        clip = make_clip(TextEncoderRecipe(image_size=16, embedding_deviation=deviation), tokenizer)
        with torch.no_grad():
            states = clip.text_model(input_ids=tokens).last_hidden_state[:, 3].view(4, 2, -1)  # at the shape's place
        apart = (states - states.mean((0, 1))).square().mean()
        shares.append(((states.mean(0) - states.mean((0, 1))).square().mean() / apart).item())
    assert shares[1] > 0.85
    assert shares[1] > shares[0] + 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--patch_size=0", "patch_size is 0"),
        ("--text.heads=0", "text is"),
        ("--embedding_deviation=0", "embedding_deviation"),
        ("--teacher.words=9", "multiple of loop.batch_size"),
        ("--teacher.words=-8", r"teacher\.words is -8"),
        ("--teacher.weight=-1", r"teacher\.weight -1"),
        ("--teacher.path=/nowhere", "teacher.path"),
        ("--context_length=2", "context_length is 2"),
        ("--loop.batch_size=1", "at least 2"),
        ("--loop.batch_size=48", "there are 40 pictures"),
        ("--tokenizer=/nowhere", "tokenizer '/nowhere' cannot be loaded"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(setting, message, tiny, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        train("text-encoder", [*tiny("text-encoder", tmp_path / "run"), setting])


def test_a_missing_teacher_is_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"teacher\.path"):
        train("text-encoder", [*tiny("text-encoder", tmp_path / "run"), f"--teacher.path={tmp_path}"])


def test_a_tokenizer_of_another_kind_is_refused(tiny, tmp_path):
    """BERT's marks are not those that CLIP reads a text's summary at."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="not as a word between"):
        train(
            "text-encoder",
            [*tiny("text-encoder", tmp_path / "run"), f"--tokenizer={tmp_path / 'bert'}", "--loop.steps=1"],
        )


def test_a_tokenizer_that_is_given_is_used(parts, tiny, tmp_path):
    given = parts / "text-encoder" / "model" / "tokenizer"
    model = train("text-encoder", [*tiny("text-encoder", tmp_path / "run"), f"--tokenizer={given}", "--loop.steps=1"])
    own, saved = (CLIPTokenizer.from_pretrained(place) for place in (given, model / "tokenizer"))
    assert saved.get_vocab() == own.get_vocab()


def test_captions_that_are_longer_than_the_context_are_told_once(tiny, tmp_path):
    recipe = read_settings("text-encoder", [*tiny("text-encoder", tmp_path / "run"), "--context_length=4"]).recipe
    with pytest.warns(UserWarning, match=r"40 of 40 captions looked at, such as that of shapes-train-0-0, are longer"):
        TextEncoderTask(recipe, tmp_path / "run")
    recipe = read_settings("text-encoder", [*tiny("text-encoder", tmp_path / "run"), "--context_length=77"]).recipe
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextEncoderTask(recipe, tmp_path / "run")


def test_every_process_learns_the_same_vocabulary():
    program = (
        "from training.data.shapes import ShapesSource; from training.vocabulary import build_tokenizer\n"
        "source = ShapesSource('train', 40, 32)\n"
        "print(build_tokenizer([source.caption(row) for row in range(40)], 600, 16).backend_tokenizer.to_str())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) for _ in range(5)
    ]
    learnt = {process.communicate()[0] for process in processes}
    assert len(learnt) == 1
    assert b"circle" in learnt.pop()
