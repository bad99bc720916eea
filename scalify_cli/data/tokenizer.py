"""Tokenizers: text to token ids and exactly back.

Every vocabulary ends with one id that no text encodes to: the end of a document.
"""

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import numpy as np

from scalify_cli.data.gpt2 import gpt2_encoding
from scalify_cli.errors import UserError

TRAINING_CHARACTERS = 200_000_000  # a vocabulary of 8,192 learns nothing from more
FILE = "tokenizer.json"

TrainingText = Callable[[], Iterator[str]]


class Tokenizer(Protocol):
    """Ids are in ``[0, vocab_size)``; ``end_of_text`` is one of them."""

    vocab_size: int
    end_of_text: int

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, uint32 [tokens]."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``; the ends of documents are left out."""
        ...

    def save(self, folder: Path) -> None:
        """Leave in ``folder`` what ``load_tokenizer`` needs."""
        ...


class Bytes:
    """One id per byte of UTF-8."""

    vocab_size, end_of_text = 257, 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint32) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        ids = np.asarray(tokens, np.int64)
        content = ids[ids < self.end_of_text].astype(np.uint8).tobytes()
        return content.decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        pass


class BytePairs:
    """Byte-level BPE learnt from the corpus itself (the ``tokenizers`` package)."""

    def __init__(self, model):
        self.model = model
        self.end_of_text = model.get_vocab_size()
        self.vocab_size = self.end_of_text + 1

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(e.ids, np.uint32) for e in self.model.encode_batch_fast(list(texts))]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.model.decode([int(t) for t in tokens if t != self.end_of_text])

    def save(self, folder: Path) -> None:
        self.model.save(str(folder / FILE), pretty=False)


class GPT2:
    """GPT-2's own byte-level BPE (the ``tiktoken`` package)."""

    vocab_size, end_of_text = 50257, 50256

    def __init__(self, encoding):
        self.encoding = encoding

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self.encoding.encode_ordinary_batch(list(texts))
        return [np.array(ids, np.uint32) for ids in encoded]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.encoding.decode([int(t) for t in tokens if t != self.end_of_text])

    def save(self, folder: Path) -> None:
        pass


def learn_byte_pairs(texts: TrainingText, cache: Path, vocab_size: int) -> BytePairs:
    """Learn at most ``vocab_size`` ids, the end of text among them; the same text, the same ids."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    model.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(_at_most(TRAINING_CHARACTERS, texts()), trainer)
    return BytePairs(model)


def _at_most(characters: int, texts: Iterator[str]) -> Iterator[str]:
    seen = 0

    def fits(text: str) -> bool:
        nonlocal seen
        seen += len(text)
        return seen <= characters

    return takewhile(fits, texts)


TOKENIZERS: dict[str, Callable[[TrainingText, Path], Tokenizer]] = {
    "bpe_4k": partial(learn_byte_pairs, vocab_size=4096),
    "bpe_8k": partial(learn_byte_pairs, vocab_size=8192),
    "bpe_16k": partial(learn_byte_pairs, vocab_size=16384),
    "bpe_32k": partial(learn_byte_pairs, vocab_size=32768),
    "bytes": lambda texts, cache: Bytes(),
    "gpt2": lambda texts, cache: GPT2(gpt2_encoding(cache)),
}


def check_tokenizer(name: str) -> None:
    """Raise a UserError unless ``name`` is in ``TOKENIZERS``."""
    if name in TOKENIZERS:
        return
    near = get_close_matches(str(name), TOKENIZERS, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"data.tokenizer={name}: no such tokenizer.", f"{guess}there are {', '.join(TOKENIZERS)}."
    )


def load_tokenizer(name: str, folder: Path) -> Tokenizer:
    """The tokenizer that prepared the tokens in ``folder``."""
    if not (folder / FILE).exists():
        return TOKENIZERS[name](lambda: iter(()), folder.parent)
    from tokenizers import Tokenizer as Model

    return BytePairs(Model.from_file(str(folder / FILE)))
