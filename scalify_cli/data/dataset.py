"""A tokenised corpus on disk, and the batches drawn from it.

A batch is a function of (seed, step), so a resumed run sees what an uninterrupted one would have.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from scalify_cli.data.split import SPLITS
from scalify_cli.data.tokenizer import load_tokenizer
from scalify_cli.errors import UserError


class Dataset:
    """The splits ``train``, ``validation`` and ``test`` of a corpus, memory-mapped.

    Args:
        folder: a checked cache entry.
        meta: the content of its ``meta.json``.
    """

    def __init__(self, folder: Path, meta: dict):
        self.folder = folder
        self.meta = meta
        self.vocab_size: int = meta["vocab_size"]
        self.end_of_text: int = meta["end_of_text"]
        self._open: dict[str, np.ndarray] = {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokens of every split and the size of their vocabulary."""
        facts = [self.vocab_size, *(self.meta["files"][f"{split}.bin"] for split in SPLITS)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def tokens(self, split: str) -> int:
        """How many tokens ``split`` holds."""
        return self.meta["splits"][split]["tokens"]

    def unigram_entropy(self, split: str = "validation") -> float:
        """Nats per token of ``split`` under the token frequencies of the training split."""
        return self.meta["splits"][split]["unigram_entropy"]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return load_tokenizer(self.meta["tokenizer"], self.folder).decode(tokens)

    def batch(
        self, seed: int, step: int, batch_size: int, sequence_length: int, split: str = "train"
    ) -> np.ndarray:
        """Random windows of ``split``, int32 [batch_size, sequence_length + 1].

        Raises:
            UserError: the split is smaller than one batch.
        """
        self.require(split, batch_size * sequence_length + 1)
        starts = self.tokens(split) - sequence_length
        # Raw Philox output is the same in every NumPy; the methods of Generator are not.
        key = np.array([seed % 2**64, step], np.uint64)
        drawn = np.random.Philox(key=key).random_raw(batch_size) % np.uint64(starts)
        return self._windows(split, drawn.astype(np.int64), sequence_length)

    def evaluation_batches(
        self, split: str, batch_size: int, sequence_length: int, count: int
    ) -> Iterator[np.ndarray]:
        """The same at most ``count`` batches each time, spread evenly over ``split``.

        Fewer where the split holds fewer windows that do not overlap; one at the least.

        Raises:
            UserError: the split is smaller than one sequence.
        """
        self.require(split, sequence_length + 1)
        last = self.tokens(split) - sequence_length - 1
        disjoint = (self.tokens(split) - 1) // sequence_length
        count = min(count, max(1, disjoint // batch_size))
        starts = np.linspace(0, last, count * batch_size).astype(np.int64)
        for chosen in starts.reshape(count, batch_size):
            yield self._windows(split, chosen, sequence_length)

    def require(self, split: str, tokens: int) -> None:
        """Raise a UserError unless ``split`` holds at least ``tokens`` tokens."""
        if self.tokens(split) < tokens:
            raise UserError(
                f"the {split} split of {self.meta['corpus']} has {self.tokens(split)} tokens; "
                f"trainer.batch_size and trainer.sequence_length ask for {tokens}.",
                "lower them or give more text.",
            )

    def split(self, split: str) -> np.ndarray:
        """All tokens of ``split``, a read-only memory map [tokens]."""
        if split not in self._open:
            file, dtype = self.folder / f"{split}.bin", np.dtype(self.meta["dtype"])
            # an empty file cannot be mapped
            mapped = np.memmap(file, dtype, "r") if self.tokens(split) else np.zeros(0, dtype)
            self._open[split] = mapped
        return self._open[split]

    def _windows(self, split: str, starts: np.ndarray, sequence_length: int) -> np.ndarray:
        offsets = np.arange(sequence_length + 1)
        return self.split(split)[starts[:, None] + offsets[None, :]].astype(np.int32)


def unigram_entropies(counts: np.ndarray) -> dict[str, float]:
    """Nats per token of each split under add-one smoothed training counts, int [split, vocab_size].

    An empty split has entropy 0.
    """
    smoothed = counts[0] + 1.0
    surprise = -np.log(smoothed / smoothed.sum())
    totals = np.maximum(1, counts.sum(1))
    return dict(zip(SPLITS, (counts @ surprise / totals).tolist(), strict=True))
