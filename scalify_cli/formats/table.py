"""The formats, one row each, under the names users type."""

import difflib

import ml_dtypes as ml
import numpy as np

from scalify_cli.errors import UserError
from scalify_cli.formats.format import Format

_ROWS = (
    # name          exponent mantissa bias kind  container
    Format("fp32", 8, 23, 127, "ieee", np.dtype(np.float32)),
    Format("tf32", 8, 10, 127, "ieee", None),
    Format("bf16", 8, 7, 127, "ieee", np.dtype(ml.bfloat16)),
    Format("fp16", 5, 10, 15, "ieee", np.dtype(np.float16)),
    Format("e4m3", 4, 3, 7, "fn", np.dtype(ml.float8_e4m3fn)),
    Format("e5m2", 5, 2, 15, "ieee", np.dtype(ml.float8_e5m2)),
    Format("e3m4", 3, 4, 3, "ieee", np.dtype(ml.float8_e3m4)),
    Format("e4m3_ieee", 4, 3, 7, "ieee", np.dtype(ml.float8_e4m3)),
    Format("e4m3b11fnuz", 4, 3, 11, "fnuz", np.dtype(ml.float8_e4m3b11fnuz)),
    Format("e4m3fnuz", 4, 3, 8, "fnuz", np.dtype(ml.float8_e4m3fnuz)),
    Format("e5m2fnuz", 5, 2, 16, "fnuz", np.dtype(ml.float8_e5m2fnuz)),
    Format("e3m2", 3, 2, 3, "finite", np.dtype(ml.float6_e3m2fn)),
    Format("e2m3", 2, 3, 1, "finite", np.dtype(ml.float6_e2m3fn)),
    Format("e2m1", 2, 1, 1, "finite", np.dtype(ml.float4_e2m1fn)),
    Format("int8", 0, 7, -6, "integer", np.dtype(np.int8)),
    Format("int4", 0, 3, -2, "integer", np.dtype(ml.int4)),
    Format("e8m0", 8, 0, 127, "power", np.dtype(ml.float8_e8m0fnu)),
)

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}


def find_format(format: str | Format) -> Format:
    """The row of that name; a ``Format`` is returned as it is.

    Raises:
        UserError: no such name.
    """
    if isinstance(format, Format):
        return format
    if format in FORMATS:
        return FORMATS[format]
    close = difflib.get_close_matches(str(format).lower(), FORMATS, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"unknown format {format!r}.", f"{meant}formats: {' '.join(FORMATS)}")
