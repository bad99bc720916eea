import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalify_cli.data import Sotu, gpt2
from scalify_cli.data.tokenizer import GPT2, TOKENIZERS, BytePairs, Bytes, learn_byte_pairs
from scalify_cli.errors import UserError

PROSE = [
    f"The {n}th Congress met in the city of Washington in the year {1789 + n}.\n"
    for n in range(200)
]
MERGES = "#version: 0.2\nh e\nl l\nhe ll\nhell o\nĠ hello\n"
ODD = [
    "",
    " ",
    "\x00\r\n\t",
    "  two  spaces",
    "<|endoftext|>",
    "naïve 🤗 ﬁ",
    "a" * 300,
    "\u2028\ufeff",
]


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory) -> BytePairs:
    return learn_byte_pairs(lambda: iter(PROSE), tmp_path_factory.getbasetemp(), 512)


@pytest.fixture
def small_gpt2(tmp_path, monkeypatch) -> GPT2:
    (tmp_path / "vocab.bpe").write_text(MERGES, "utf-8")
    monkeypatch.setattr(gpt2, "MERGES_SHA256", hashlib.sha256(MERGES.encode()).hexdigest())
    return GPT2(gpt2.gpt2_encoding(tmp_path))


@given(st.text())
def test_bytes_round_trip(text):
    assert Bytes().decode(Bytes().encode([text])[0].tolist()) == text


@given(text=st.text())
def test_byte_pairs_round_trip(byte_pairs, text):
    (ids,) = byte_pairs.encode([text])
    assert byte_pairs.decode(ids.tolist()) == text
    assert byte_pairs.end_of_text not in ids


@pytest.mark.parametrize("text", [*ODD, "hello hello"])
def test_every_tokenizer_round_trips_odd_texts(byte_pairs, small_gpt2, text):
    for tokenizer in (Bytes(), byte_pairs, small_gpt2):
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode([*ids.tolist(), tokenizer.end_of_text]) == text
        assert np.all(ids < tokenizer.end_of_text)


def test_byte_pairs_use_the_vocabulary_asked_for_and_compress(byte_pairs):
    assert byte_pairs.vocab_size <= 512 and byte_pairs.end_of_text == byte_pairs.vocab_size - 1
    (ids,) = byte_pairs.encode(["".join(PROSE)])
    assert len("".join(PROSE)) / len(ids) > 3


def test_learning_is_the_same_in_every_process(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from scalify_cli.data.corpora import _sotu_source\n"
        "from scalify_cli.data.tokenizer import learn_byte_pairs\n"
        "texts = [t for _, t in zip(range(40), (t for _, t in _sotu_source().pieces()))]\n"
        "learn_byte_pairs(lambda: iter(texts), Path(), 2048).save(Path(sys.argv[1]))\n"
    )
    saved = []
    for name, hash_seed in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": hash_seed, "PATH": ""})
        saved.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert saved[0] == saved[1]


def test_bytes_and_merges_get_gpt2s_ids(small_gpt2):
    ranks = gpt2.merge_ranks(MERGES)
    published = {b"!": 0, b"H": 39, b"\x00": 188, b"\n": 198, b" ": 220, b"he": 256}
    assert {token: ranks[token] for token in published} == published
    assert small_gpt2.encode(["hello hello"])[0].tolist() == [259, 260]


def test_another_vocabulary_in_place_of_gpt2s_is_refused(cache):
    cache.mkdir()
    (cache / "vocab.bpe").write_text(MERGES, "utf-8")
    with pytest.raises(UserError, match=r"is not GPT-2's vocab\.bpe"):
        Sotu("gpt2").prepare()


def test_gpt2_without_a_network_names_the_ways_out(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(UserError) as caught:
        Sotu("gpt2").prepare()
    assert "could not fetch its vocabulary" in caught.value.message
    for way in (str(cache / "vocab.bpe"), "TIKTOKEN_CACHE_DIR", "data.tokenizer=bpe_8k"):
        assert way in caught.value.hint


def test_unknown_tokenizer_gets_a_guess_and_the_list():
    with pytest.raises(UserError) as caught:
        Sotu("bpe8k")
    assert "bpe8k" in caught.value.message and "did you mean bpe_8k?" in caught.value.hint
    assert all(name in caught.value.hint for name in TOKENIZERS)
