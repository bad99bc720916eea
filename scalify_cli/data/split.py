"""Which characters of a corpus are for training, for validation and for testing.

A plan gives every document three adjoining ranges of its characters, one per split. Whole documents
go to one split by their hash, so equal documents stay together and new ones move none. A corpus of
few documents (one long book) is cut by position instead: the last tenth of each is held out.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from scalify_cli.data.documents import Piece

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05  # of the characters, for validation and again for testing
BALANCED = (HELD_OUT / 2, HELD_OUT * 2)


@dataclass
class Survey:
    """What one pass over a corpus finds: each document's length (characters) and hash (0 to 1)."""

    lengths: array = field(default_factory=lambda: array("q"))
    hashes: array = field(default_factory=lambda: array("d"))
    blank: bool = True


def survey(pieces: Iterable[Piece]) -> Survey:
    """Measure every document of a corpus."""
    found, digest = Survey(), hashlib.sha256()
    for document, text in pieces:
        while document >= len(found.lengths):
            digest = hashlib.sha256()
            found.lengths.append(0)
            found.hashes.append(0.0)
        digest.update(text.encode("utf-8"))
        found.lengths[-1] += len(text)
        found.hashes[-1] = int.from_bytes(digest.digest()[:6]) / 2**48
        found.blank = found.blank and not text.strip()
    return found


class Plan(NamedTuple):
    """``edges[document, i] .. edges[document, i + 1]`` are the characters of split ``i``."""

    rule: str
    edges: np.ndarray  # int64 [documents, 4], rows rise from 0 to the document's length


class Portion(NamedTuple):
    """A stretch of text of one split; ``ends``: the document has no more in this split."""

    split: int
    text: str
    ends: bool


def whole_documents(lengths: Iterable[int], splits: Iterable[int], rule: str) -> Plan:
    """Each document entirely in the split of the given number."""
    sizes, chosen = np.asarray(lengths, np.int64), np.asarray(splits, np.int64)
    ends_before = np.arange(4)[None, :] > chosen[:, None]
    return Plan(rule, np.where(ends_before, sizes[:, None], 0))


def by_position(lengths: Iterable[int]) -> Plan:
    """The head of every document for training, its tail for validation, then for testing."""
    sizes = np.asarray(lengths, np.float64)
    fractions = (0, 1 - 2 * HELD_OUT, 1 - HELD_OUT, 1)
    return Plan(
        "tail of each document", np.stack([sizes * f for f in fractions], 1).astype(np.int64)
    )


def by_hash_or_position(found: Survey) -> Plan:
    """By document hash where that holds out a fair share, else by position."""
    hashes = np.asarray(found.hashes)
    splits = (hashes >= 1 - 2 * HELD_OUT).astype(int) + (hashes >= 1 - HELD_OUT)
    plan = whole_documents(found.lengths, splits, "document hash")
    shares = np.diff(plan.edges).sum(0) / max(1, sum(found.lengths))
    low, high = BALANCED
    balanced = np.all((low <= shares[1:]) & (shares[1:] <= high))
    return plan if balanced else by_position(found.lengths)


def portions(pieces: Iterable[Piece], plan: Plan) -> Iterator[Portion]:
    """The corpus cut along the plan, in order."""
    current, position = -1, 0
    for document, text in pieces:
        position = position if document == current else 0
        current = document
        yield from _cut(text, position, plan.edges[document])
        position += len(text)


def _cut(text: str, position: int, edges: np.ndarray) -> Iterator[Portion]:
    inside = np.clip(edges - position, 0, len(text)).tolist()
    for split, (start, stop) in enumerate(pairwise(inside)):
        if start < stop:
            ends = position + stop == edges[split + 1]
            yield Portion(split, text[start:stop], bool(ends))
