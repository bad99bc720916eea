"""From a corpus to tokens on disk: survey, split, learn a vocabulary, encode."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from scalify_cli.data.cache import Say, cache_root, open_or_build
from scalify_cli.data.dataset import Dataset, unigram_entropies
from scalify_cli.data.documents import Piece
from scalify_cli.data.split import (
    SPLITS,
    Plan,
    Portion,
    Survey,
    by_hash_or_position,
    portions,
    survey,
)
from scalify_cli.data.tokenizer import TOKENIZERS, Tokenizer
from scalify_cli.errors import UserError

VERSION = 1  # of the tokens: raise it when the same corpus and tokenizer would give others
ENCODED_AT_ONCE = 2_000_000  # characters


@dataclass(frozen=True)
class Source:
    """A corpus: its name, a digest of its content, its pieces (in the same order each time)."""

    name: str
    digest: str
    pieces: Callable[[], Iterable[Piece]]
    plan: Callable[[Survey], Plan] = by_hash_or_position


def prepare(
    source: Source, tokenizer: str, cache: str | None = None, progress: Say | None = None
) -> Dataset:
    """The tokenised corpus, from the cache if it is there and whole.

    Raises:
        UserError: the corpus holds no text, or the tokenizer or the cache cannot be had.
    """
    say = progress or (lambda message: None)
    key = hashlib.sha256(f"{VERSION} {source.digest} {tokenizer}".encode()).hexdigest()[:16]
    entry = cache_root(cache) / f"{source.name}-{tokenizer}-{key}"
    meta = open_or_build(entry, lambda folder: _build(source, tokenizer, entry, folder, say), say)
    return Dataset(entry, meta)


def _build(source: Source, name: str, entry: Path, folder: Path, say: Say) -> dict:
    say(f"reading {source.name}")
    found = survey(source.pieces())
    if found.blank:
        raise UserError(f"data={source.name} holds no text.", "give documents that are not blank.")
    plan = source.plan(found)
    say(f"tokenizer {name}, first use on {source.name}: a moment, then it is cached")
    tokenizer = TOKENIZERS[name](partial(_training_text, source, plan), entry.parent)
    tokenizer.save(folder)
    told = _telling(portions(source.pieces(), plan), sum(found.lengths), say)
    with SplitFiles(folder, tokenizer) as files:
        for group in _grouped(told):
            files.write(group)
    return {
        "version": VERSION,
        "corpus": source.name,
        "corpus_sha256": source.digest,
        "documents": len(found.lengths),
        "split_by": plan.rule,
        "tokenizer": name,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "dtype": files.dtype.str,
        "splits": files.facts(),
    }


def _training_text(source: Source, plan: Plan) -> Iterator[str]:
    return (portion.text for portion in portions(source.pieces(), plan) if portion.split == 0)


def _telling(cut: Iterable[Portion], characters: int, say: Say) -> Iterator[Portion]:
    """The same portions; says how far it is at each fifth of the corpus."""
    done = told = 0
    for portion in cut:
        yield portion
        done += len(portion.text)
        if done * 5 // characters > told:
            told = done * 5 // characters
            say(f"encoded {told * 20} %")


def _grouped(cut: Iterable[Portion]) -> Iterator[list[Portion]]:
    """Lists of portions that are worth encoding in parallel and still fit in memory."""
    group, size = [], 0
    for portion in cut:
        group.append(portion)
        size += len(portion.text)
        if size >= ENCODED_AT_ONCE:
            yield group
            group, size = [], 0
    yield group


class SplitFiles:
    """``train.bin``, ``validation.bin`` and ``test.bin``: little-endian ids without a header."""

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self.folder, self.tokenizer = folder, tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65_536 else "<u4")
        self.counts = np.zeros((len(SPLITS), tokenizer.vocab_size), np.int64)
        self.characters = [0] * len(SPLITS)

    def __enter__(self) -> "SplitFiles":
        self.stack = ExitStack()
        paths = [self.folder / f"{split}.bin" for split in SPLITS]
        self.files = [self.stack.enter_context(path.open("wb")) for path in paths]
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def write(self, group: list[Portion]) -> None:
        """Append the tokens of each portion to its split."""
        encoded = self.tokenizer.encode([portion.text for portion in group])
        for portion, ids in zip(group, encoded, strict=True):
            tokens = np.append(ids, np.uint32(self.tokenizer.end_of_text)) if portion.ends else ids
            self.counts[portion.split] += np.bincount(tokens, minlength=self.tokenizer.vocab_size)
            self.characters[portion.split] += len(portion.text)
            self.files[portion.split].write(tokens.astype(self.dtype).tobytes())

    def facts(self) -> dict[str, dict]:
        """Of each split: what was written and its unigram entropy (nats per token)."""
        written = zip(self.counts.sum(1).tolist(), self.characters, strict=True)
        entropies = unigram_entropies(self.counts).values()
        return {
            split: {"tokens": tokens, "characters": characters, "unigram_entropy": entropy}
            for split, (tokens, characters), entropy in zip(SPLITS, written, entropies, strict=True)
        }
