"""A cache of its own for every test, and small corpora."""

import json
from pathlib import Path

import numpy as np
import pytest

from scalify_cli.data import Dataset
from scalify_cli.data.split import SPLITS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SCALIFY_CACHE", str(folder))
    return folder


@pytest.fixture
def counting(tmp_path):
    """A dataset whose tokens count up, so that a window shows where it was cut."""

    def make(**sizes: int) -> Dataset:
        meta = {"vocab_size": 2**16, "end_of_text": 2**16 - 1, "dtype": "<u2", "corpus": "counting"}
        meta["splits"] = {split: {"tokens": sizes.get(split, 0)} for split in SPLITS}
        for split in SPLITS:
            np.arange(sizes.get(split, 0), dtype="<u2").tofile(tmp_path / f"{split}.bin")
        return Dataset(tmp_path, meta)

    return make


@pytest.fixture
def jsonl(tmp_path):
    """Write texts to a ``.jsonl`` file."""

    def write(texts: list[str], name: str = "corpus.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        return file

    return write
