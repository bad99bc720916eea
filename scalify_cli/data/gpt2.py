"""GPT-2's vocabulary: from a file the user gives, else from tiktoken, which downloads it once.

The vocabulary is a list of merges. Ids follow from it: first the 256 bytes, printable ones before
the others, then one id per merge. Bytes that do not print are written as characters from U+0100 on.
"""

import hashlib
from pathlib import Path

from scalify_cli.errors import UserError

MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
WORDS = (  # contractions, letters, digits, other marks, blanks: GPT-2's definition of a word
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def gpt2_encoding(cache: Path):
    """A ``tiktoken.Encoding`` from ``cache/vocab.bpe`` if it is there, else tiktoken's own.

    Raises:
        UserError: the file is another one, or there is none and tiktoken cannot download it.
    """
    import tiktoken

    given = cache / "vocab.bpe"
    if given.exists():
        ranks = merge_ranks(_checked(given))
        special = {"<|endoftext|>": 50256}
        return tiktoken.Encoding(
            "gpt2", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=special
        )
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken lets whatever its HTTP client raises through
        raise UserError(
            f"tokenizer gpt2: tiktoken could not fetch its vocabulary ({type(error).__name__}).",
            f"copy GPT-2's vocab.bpe to {given}, set TIKTOKEN_CACHE_DIR, or use "
            "data.tokenizer=bpe_8k, which needs no download.",
        ) from error


def _checked(file: Path) -> str:
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != MERGES_SHA256:
        raise UserError(
            f"{file} is not GPT-2's vocab.bpe: its SHA-256 differs.",
            f"it must be {MERGES_SHA256}; fetch it again or remove it.",
        )
    return content.decode("utf-8")


def merge_ranks(merges: str) -> dict[bytes, int]:
    """The id of every token, from the text of a ``vocab.bpe`` (first line: its version)."""
    others = [byte for byte in range(256) if byte not in PRINTABLE]
    byte_of = {chr(byte): byte for byte in PRINTABLE}
    byte_of |= {chr(0x100 + i): byte for i, byte in enumerate(others)}
    ranks = {bytes([byte]): rank for rank, byte in enumerate(byte_of.values())}
    for line in merges.splitlines()[1:]:
        token = bytes(byte_of[character] for character in line if character != " ")
        ranks[token] = len(ranks)
    return ranks
