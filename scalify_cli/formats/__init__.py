"""Number formats as rows of data, and the cast that rounds to them."""

from scalify_cli.formats.bits import hash_bits
from scalify_cli.formats.cast import ROUNDINGS, saturating_cast, stochastic_round
from scalify_cli.formats.format import Format
from scalify_cli.formats.rounding import bounds, round_to_grid, widen
from scalify_cli.formats.table import FORMATS, find_format

__all__ = [
    "FORMATS",
    "ROUNDINGS",
    "Format",
    "bounds",
    "find_format",
    "hash_bits",
    "round_to_grid",
    "saturating_cast",
    "stochastic_round",
    "widen",
]
