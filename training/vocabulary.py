"""A byte-pair vocabulary made from captions, in the form of CLIP's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

WORD_END = "</w>"


def build_tokenizer(texts: Iterable[str], vocabulary_size: int, context_length: int) -> CLIPTokenizer:
    """Learns the merges of byte-level BPE from `texts` and returns CLIP's tokenizer with them.

    All 256 bytes, within a word and at its end, are in the vocabulary, so no text is ever unknown.

    Args:
        texts: what the vocabulary is learnt from; a word that comes often becomes a token of its own.
        vocabulary_size: upper bound of the number of tokens, special tokens included.
        context_length: tokens of a prompt, start and end included.

    Raises:
        ValueError: the size leaves no room for merges.
    """
    alphabet = sorted(ByteLevel.alphabet())
    base = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    room = vocabulary_size - len(base) - 2
    if room < 1:
        raise ValueError(
            f"A vocabulary of {vocabulary_size} is too small: bytes and special tokens take {len(base) + 2}."
        )
    like = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=len(base) + room, initial_alphabet=alphabet, end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:room]
    tokens = [*base, *("".join(pair) for pair in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=context_length
    )
