"""Hugging Face ``datasets``, an optional extra: local files and datasets of the hub as documents.

Local files are streamed; a dataset of the hub is downloaded once into Hugging Face's own cache.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from scalify_cli.data.documents import digest_files, document_pieces, find_files, printable
from scalify_cli.data.prepare import Source
from scalify_cli.errors import UserError

BUILDERS = {
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {"sample_by": "document"}),
}
SIDE_FILES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
# WikiText has one line a row; an article starts at each line like this.
HEADING = re.compile(r"\s*= [^=](.*[^=])? =\s*")


def rows_source(path: str, name: str | None, split: str, field: str) -> Source:
    """The column ``field`` of a dataset as documents, one a row (WikiText's: one an article).

    Raises:
        UserError: ``datasets`` is not installed, or there is no such dataset or column.
    """
    datasets = _import_datasets()
    local = Path(path).expanduser().exists()
    load, digest = _local(datasets, path) if local else _hub(datasets, path, name, split)
    _check_column(load, field, path)
    return Source(
        name="hf",
        digest=hashlib.sha256(f"{digest} {field}".encode()).hexdigest(),
        pieces=lambda: document_pieces(_documents(_column(load, field, path))),
    )


def _import_datasets():
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "data=hf needs the package datasets.", "pip install 'scalify-cli[hf]'"
        ) from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are raised again as ours
    return datasets


def _local(datasets, path: str) -> tuple[Callable[[], Any], str]:
    found = find_files(path, BUILDERS)
    files = [file for file in found if file.name not in SIDE_FILES] or found
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise UserError(
            f"{path} mixes {' and '.join(kinds)} files.", "keep files of one kind in the folder."
        )
    builder, options = BUILDERS[kinds[0]]
    names = [str(file) for file in files]

    def load() -> Any:
        return datasets.load_dataset(
            builder, data_files=names, split="train", streaming=True, **options
        )

    return load, digest_files(files)


def _hub(datasets, path: str, name: str | None, split: str) -> tuple[Callable[[], Any], str]:
    try:
        loaded = datasets.load_dataset(path, name, split=split)
    except Exception as error:  # the client lets many kinds of HTTP and parsing errors through
        raise _hub_error(path, name, split, error) from error
    # The cached files' folder is the revision on the hub.
    files = [Path(file["filename"]) for file in loaded.cache_files]
    facts = [path, name, split, loaded.num_rows, [(f.parent.name, f.name) for f in files]]
    return lambda: loaded, str(facts)


def _hub_error(path: str, name: str | None, split: str, error: Exception) -> UserError:
    if isinstance(error, ValueError):  # an unknown configuration or split: its message lists them
        message = str(error).splitlines()[0]
        return UserError(
            f"data=hf data.path={path}: {message}", f"not data.name={name} data.split={split}."
        )
    return UserError(
        f"data=hf data.path={path}: no such file, and the hub gave {type(error).__name__}.",
        "check the name, or download the dataset where there is a network and give its folder.",
    )


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each file format has its own exceptions
        raise UserError(
            f"data=hf cannot read {path}: {type(error).__name__}.",
            "its suffix must tell its kind; is the file complete?",
        ) from error


def _check_column(load: Callable[[], Any], field: str, path: str) -> None:
    with _reading(path):
        first = next(iter(load()), None)
    if first is None:
        raise UserError(f"{path} has no rows.", "give a dataset that holds text.")
    if not isinstance(first.get(field), str | None) or field not in first:
        raise UserError(
            f"{path} has no text column {field!r}.",
            f"set data.text_field to one of: {', '.join(map(str, first))}.",
        )


def _column(load: Callable[[], Any], field: str, path: str) -> Iterator[str | None]:
    with _reading(path):
        for row in load().select_columns([field]):
            yield row[field]


def _documents(texts: Iterable[str | None]) -> Iterator[str]:
    filled = (printable(text) for text in texts if text)
    head = list(islice(filled, 1))
    everything = chain(head, filled)
    return _articles(everything) if head and HEADING.fullmatch(head[0]) else everything


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """Lines joined up to the next title; a heading within an article has two ``=`` or more."""
    article: list[str] = []
    for line in lines:
        if article and HEADING.fullmatch(line):
            yield "".join(article)
            article = []
        article.append(line if line.endswith("\n") else line + "\n")
    if article:
        yield "".join(article)
