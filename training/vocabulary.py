"""A byte-pair vocabulary made from captions, in the form of CLIP's tokenizer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from training.data import Source

WORD_END = "</w>"
_PRIVATE = 0xE000  # where Unicode leaves characters to private use
_LOOKED_AT = 1000  # captions


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
    # The trainer numbers letters with a suffix in the order of a hash map, another in each process, and ties between
    # merges follow the numbers. So a letter that ends a word is a character of its own while it learns.
    ends = {letter: chr(_PRIVATE + place) for place, letter in enumerate(alphabet)}
    like = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE())
    trainer = BpeTrainer(vocab_size=len(base) + room, initial_alphabet=[*alphabet, *ends.values()], show_progress=False)
    pieces = (like.pre_tokenizer.pre_tokenize_str(like.normalizer.normalize_str(text)) for text in texts)
    learner.train_from_iterator((word[:-1] + ends[word[-1]] for piece in pieces for word, _ in piece), trainer)
    plain = str.maketrans({end: letter + WORD_END for letter, end in ends.items()})
    learnt = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(half.translate(plain) for half in pair) for pair in learnt][:room]
    tokens = [*base, *("".join(pair) for pair in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=context_length
    )


def warn_of_long_captions(source: Source, rows: Sequence[int], tokenizer: CLIPTokenizer, context_length: int) -> None:
    """Looks at up to about a thousand captions of a source.

    Warns:
        UserWarning: Some are longer than the `context_length` tokens that the text tower reads.
    """
    looked_at = rows[:: max(1, len(rows) // _LOOKED_AT)]
    tokens = tokenizer([source.caption(row) for row in looked_at], verbose=False)["input_ids"]
    long = [row for row, ids in zip(looked_at, tokens, strict=True) if len(ids) > context_length]
    if long:
        warnings.warn(
            f"{len(long)} of {len(looked_at)} captions looked at, such as that of {source.id(long[0])}, are longer "
            f"than the {context_length} tokens that the text tower reads: their ends are not learnt",
            stacklevel=2,
        )
