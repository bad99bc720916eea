from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalify_cli.data import Text, documents
from scalify_cli.data.documents import document_pieces
from scalify_cli.data.split import SPLITS, by_hash_or_position, by_position, portions, survey


def texts_of(dataset) -> dict[str, list[str]]:
    """The documents of each split, found by their end-of-text tokens."""
    return {split: documents_in(dataset, dataset.split(split)) for split in SPLITS}


def documents_in(dataset, tokens) -> list[str]:
    ends = np.flatnonzero(tokens == dataset.end_of_text) + 1
    assert len(tokens) == 0 or ends[-1] == len(tokens)
    return [dataset.decode(part) for part in np.split(tokens, ends)[:-1]]


def essays(count: int) -> list[str]:
    return [f"Essay {n}: " + f"thought {n * n} " * (20 + n % 7) for n in range(count)]


def test_documents_go_whole_into_one_split_each(jsonl):
    written = essays(400)
    dataset = Text(str(jsonl(written)), tokenizer="bytes").prepare()
    found = texts_of(dataset)
    assert sorted(chain(*found.values())) == sorted(written)
    assert dataset.meta["split_by"] == "document hash"
    assert 5 < len(found["validation"]) < 60 and 5 < len(found["test"]) < 60


def test_equal_documents_never_meet_across_splits(jsonl):
    found = texts_of(Text(str(jsonl(essays(300) * 3)), tokenizer="bytes").prepare())
    train, validation, test = (set(found[split]) for split in SPLITS)
    assert validation and test
    assert not (train & validation or train & test or validation & test)


def test_a_new_document_moves_no_other(jsonl):
    before = texts_of(Text(str(jsonl(essays(300))), tokenizer="bytes").prepare())
    more = ["A newcomer.", *essays(300)]
    after = texts_of(Text(str(jsonl(more)), tokenizer="bytes").prepare())
    for split in SPLITS:
        assert [t for t in after[split] if t != "A newcomer."] == before[split]


def test_one_long_document_is_cut_in_order_without_overlap(tmp_path):
    text = "".join(f"sentence {n} of the book.\n" for n in range(30_000))
    assert len(text) > 2 * documents.PIECE
    (tmp_path / "book.txt").write_text(text)
    dataset = Text(str(tmp_path / "book.txt"), tokenizer="bytes").prepare()
    found = texts_of(dataset)
    assert all(len(found[split]) == 1 for split in SPLITS)
    assert "".join(found[split][0] for split in SPLITS) == text
    assert dataset.meta["split_by"] == "tail of each document"
    assert len(found["validation"][0]) == pytest.approx(len(text) / 20, abs=2)


def test_few_documents_each_give_their_tail(jsonl):
    written = essays(4)
    found = texts_of(Text(str(jsonl(written)), tokenizer="bytes").prepare())
    parts = zip(*(found[split] for split in SPLITS), strict=True)
    assert ["".join(part) for part in parts] == written


@given(st.lists(st.text("ab \n", max_size=40), max_size=6), st.integers(1, 7))
def test_portions_partition_every_document(texts, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", size)
        found = survey(document_pieces(texts))
        plan = by_position(found.lengths)
        cut = list(portions(document_pieces(texts), plan))
    assert list(found.lengths) == [len(text) for text in texts[: len(found.lengths)]]
    assert "".join(portion.text for portion in cut) == "".join(texts)
    ranges = np.diff(plan.edges) > 0
    ends = [sum(p.ends for p in cut if p.split == number) for number in range(3)]
    assert ends == ranges.sum(0).tolist()


def test_hashes_do_not_depend_on_how_a_document_is_cut(monkeypatch):
    whole = survey(document_pieces(essays(5)))
    monkeypatch.setattr(documents, "PIECE", 11)
    assert survey(document_pieces(essays(5))) == whole


def test_one_huge_document_among_small_ones_does_not_swallow_the_training_split():
    for name in range(40):
        found = survey(document_pieces([*essays(50), f"{name} huge " * 50_000]))
        shares = np.diff(by_hash_or_position(found).edges).sum(0) / sum(found.lengths)
        assert shares[0] >= 0.8 and shares[1] >= 0.025 and shares[2] >= 0.025
