from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalify_cli.data import Text
from scalify_cli.data.dataset import unigram_entropies
from scalify_cli.data.prepare import SplitFiles
from scalify_cli.data.split import Portion
from scalify_cli.errors import UserError


def test_batches_have_shape_and_stay_inside_the_split(counting):
    dataset = counting(train=40)
    seen = set()
    for step in range(200):
        batch = dataset.batch(0, step, 3, 12)
        assert batch.shape == (3, 13) and batch.dtype == np.int32
        assert np.all(np.diff(batch) == 1)
        seen |= set(batch.ravel().tolist())
    assert seen == set(range(40))  # first and last token included, nothing beyond


def test_a_batch_is_a_function_of_seed_and_step(counting):
    dataset = counting(train=50_000)
    uninterrupted = [dataset.batch(3, step, 4, 8) for step in range(10)]
    resumed = [counting(train=50_000).batch(3, step, 4, 8) for step in range(6, 10)]
    assert np.array_equal(uninterrupted[6:], resumed)
    everything = [*uninterrupted, dataset.batch(4, 0, 4, 8), dataset.batch(-1, 0, 4, 8)]
    assert len({batch.tobytes() for batch in everything}) == len(everything)


def test_the_drawn_windows_are_golden(counting):
    """They must never change: runs of older versions resume."""
    starts = counting(train=50_000).batch(7, 3, 4, 8)[:, 0]
    assert starts.tolist() == [44_274, 5_767, 5_582, 8_477]


def test_windows_are_drawn_evenly(counting):
    dataset = counting(train=10_008)
    starts = np.concatenate([dataset.batch(0, step, 64, 8)[:, 0] for step in range(200)])
    histogram, _ = np.histogram(starts, 10, (0, 10_000))
    assert np.all(abs(histogram - 1280) < 5 * 1280**0.5)


def test_evaluation_batches_are_the_same_each_time_and_spread_over_the_split(counting):
    dataset = counting(validation=10_001)
    first, again = (list(dataset.evaluation_batches("validation", 4, 100, 5)) for _ in range(2))
    assert np.array_equal(first, again) and len(first) == 5
    starts = np.concatenate(first)[:, 0]
    assert starts[0] == 0 and first[-1][-1, -1] == 10_000
    assert np.all(np.diff(starts) >= 100)


def test_a_small_split_gives_fewer_batches_without_overlap(counting):
    batches = list(counting(validation=1_001).evaluation_batches("validation", 4, 100, 50))
    assert len(batches) == 2
    assert np.all(np.diff(np.concatenate(batches)[:, 0]) >= 100)
    (only,) = counting(validation=120).evaluation_batches("validation", 4, 100, 50)
    assert only.shape == (4, 101)


def test_too_few_tokens_are_refused_with_both_numbers(counting):
    dataset = counting(train=100, validation=20)
    with pytest.raises(UserError, match=r"train split of counting has 100 tokens; .* ask for 129"):
        dataset.batch(0, 0, 4, 32)
    with pytest.raises(UserError, match=r"validation split .* 20 tokens; .* ask for 33"):
        next(dataset.evaluation_batches("validation", 1, 32, 1))
    with pytest.raises(UserError, match="test split"):
        next(dataset.evaluation_batches("test", 1, 32, 1))
    assert dataset.batch(0, 0, 3, 33).shape == (3, 34)


@given(st.lists(st.integers(0, 6), max_size=30), st.lists(st.integers(0, 6), max_size=30))
def test_unigram_entropy_is_the_mean_surprise_of_each_token(train, validation):
    counts = np.array([np.bincount(tokens, minlength=7) for tokens in (train, validation, [])])
    surprises = [-log((train.count(token) + 1) / (len(train) + 7)) for token in validation]
    expected = sum(surprises) / max(1, len(surprises))
    entropies = unigram_entropies(counts)
    assert entropies["validation"] == pytest.approx(expected)
    assert entropies["test"] == 0


def test_unigram_entropy_of_a_prepared_text(tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 5_000)  # 9,000 / 500 / 500 characters and an end each
    dataset = Text(str(tmp_path / "a.txt"), tokenizer="bytes").prepare()
    total = 9_001 + 257
    expected = (500 * -log(4_501 / total) - log(2 / total)) / 501
    assert dataset.unigram_entropy("validation") == pytest.approx(expected)
    assert dataset.tokens("train") == 9_001 and dataset.vocab_size == 257


class Wide:
    vocab_size, end_of_text = 70_000, 69_999

    def encode(self, texts):
        return [np.array([65_535, 65_536], np.uint32) for _ in texts]


def test_ids_beyond_16_bits_take_32(tmp_path):
    with SplitFiles(tmp_path, Wide()) as files:
        files.write([Portion(0, "x", True)])
    assert files.dtype == np.dtype("<u4")
    assert np.fromfile(tmp_path / "train.bin", "<u4").tolist() == [65_535, 65_536, 69_999]
