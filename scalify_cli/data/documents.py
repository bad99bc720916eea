"""Text files as a stream of documents.

A corpus is a stream of *pieces* ``(document, text)``: the document's number, counting from 0, and
the next stretch of its text. A long document comes in several, so any file fits in memory.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path

from scalify_cli.errors import UserError

Piece = tuple[int, str]

PIECE = 256 * 1024
END_OF_TEXT = "<|endoftext|>"  # separates the documents of a .txt file, as many corpora do


def find_files(path: str, suffixes: Iterable[str]) -> list[Path]:
    """The non-empty files at ``path``: itself, or those with ``suffixes`` in the folder, sorted.

    Raises:
        UserError: nothing is there, the suffix is another one, or every file is empty.
    """
    root, suffixes = Path(path).expanduser(), tuple(suffixes)
    if not root.exists():
        raise UserError(f"data.path={path}: no such file or folder.", "give an existing path.")
    found = sorted(_visible(root, suffixes)) if root.is_dir() else [root]
    wanted = ", ".join(suffixes)
    if not found:
        raise UserError(f"{root} holds no {wanted} files.", f"put {wanted} files into it.")
    if found[0].suffix.lower() not in suffixes:
        raise UserError(f"{root} is none of {wanted}.", _suffix_hint(root, wanted))
    filled = [file for file in found if file.stat().st_size]
    if not filled:
        raise UserError(f"{root} is empty.", "give a file that holds text.")
    return filled


def _visible(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix.lower() in suffixes and not file.name.startswith("."):
            yield file


def _suffix_hint(file: Path, wanted: str) -> str:
    if file.suffix.lower() in (".parquet", ".csv", ".arrow", ".json"):
        return f"use data=hf data.path={file}"
    return f"rename it if it is plain UTF-8 text; files are told apart by {wanted}."


def digest_files(files: Iterable[Path]) -> str:
    """SHA-256 (hex) of the files' kinds and contents, in order; their names do not count."""
    digest = hashlib.sha256()
    for file in files:
        with open_file(file) as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.suffix.lower()} {content}\n".encode())
    return digest.hexdigest()


def open_file(file: Path) -> BufferedReader:
    """The file opened for reading bytes, or a UserError that names it."""
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}.", "check its permissions."
        ) from error


def file_pieces(files: Iterable[Path]) -> Iterator[Piece]:
    """The pieces of every document in ``.txt`` and ``.jsonl`` files, numbered throughout.

    Raises:
        UserError: a file is not UTF-8 (names the byte), or a line is not ``{"text": ...}``.
    """
    first = 0
    for file in files:
        last = first - 1
        for number, text in READERS[file.suffix.lower()](file):
            last = first + number
            yield last, text
        first = last + 1


def document_pieces(documents: Iterable[str]) -> Iterator[Piece]:
    """The pieces of documents that are whole strings."""
    for number, text in enumerate(documents):
        for piece in _at_line_ends(text[i : i + PIECE] for i in range(0, len(text), PIECE)):
            yield number, piece


def _text_pieces(file: Path) -> Iterator[Piece]:
    number = 0
    for block in _at_line_ends(_decoded(file)):
        texts = block.split(END_OF_TEXT)
        yield from enumerate(texts, number)
        number += len(texts) - 1


def _at_line_ends(blocks: Iterable[str]) -> Iterator[str]:
    """The same text cut after a newline, else before a space, where there is one."""
    held = ""
    for block in blocks:
        if held:
            cut = _cut(held)
            yield held[:cut]
            held = held[cut:]
        held += block
    if held:
        yield held


def _cut(text: str) -> int:
    newline, space = text.rfind("\n") + 1, text.rfind(" ")
    return newline or (space if space > 0 else len(text))


def _decoded(file: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, block = 0, b"."
    with open_file(file) as stream:
        while block:
            block = stream.read(PIECE)
            start = position - len(decoder.getstate()[0])  # a character may straddle two blocks
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _encoding_error(file, start + error.start) from error
            yield text if position else text.removeprefix("\ufeff")
            position += len(block)


def _encoding_error(file: Path, offset: int) -> UserError:
    return UserError(
        f"{file} is not UTF-8: byte {offset} starts no character.",
        f"convert it: iconv -f <its encoding> -t utf-8 {file} > utf8{file.suffix}",
    )


def _json_pieces(file: Path) -> Iterator[Piece]:
    return document_pieces(_json_texts(file))


def _json_texts(file: Path) -> Iterator[str]:
    offset = 0
    with open_file(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _json_text(line, offset, file, number)
            offset += len(line)


def _json_text(line: bytes, offset: int, file: Path, number: int) -> str:
    hint = 'each line is one JSON object with its text: {"text": "..."}'
    try:
        record = json.loads(line.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise _encoding_error(file, offset + error.start) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {number}: not JSON ({error.msg}).", hint) from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise UserError(f"{file}, line {number}: no string field 'text'.", hint)
    return printable(record["text"])


def printable(text: str) -> str:
    """``text`` with what UTF-8 cannot hold (half a surrogate pair) replaced by ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


READERS = {".txt": _text_pieces, ".jsonl": _json_pieces}
