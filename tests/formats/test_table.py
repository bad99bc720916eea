"""The rows against numpy's and gfloat's tables of the same formats."""

import ml_dtypes
import numpy as np
import pytest
from oracles import GFLOAT

from scalify_cli.formats import FORMATS, Format, find_format

NAMES = (
    "fp32 tf32 bf16 fp16 e4m3 e5m2 e3m4 e4m3_ieee e4m3b11fnuz e4m3fnuz e5m2fnuz e3m2 e2m3 e2m1 "
    "int8 int4 e8m0"
)
FLOATS = [n for n, row in FORMATS.items() if row.dtype is not None and row.kind != "integer"]


def test_names_are_the_public_ones():
    assert list(FORMATS) == NAMES.split()
    assert all(name == row.name for name, row in FORMATS.items())


@pytest.mark.parametrize("name", FLOATS)
def test_rows_agree_with_ml_dtypes(name):
    row = FORMATS[name]
    info = ml_dtypes.finfo(row.dtype)
    assert (row.exponent_bits, row.mantissa_bits) == (info.nexp, info.nmant)
    assert (row.max, row.min) == (float(info.max), float(info.min))
    assert row.min_normal == float(info.smallest_normal)
    assert row.min_subnormal == float(info.smallest_subnormal)
    assert row.bits == info.bits


@pytest.mark.parametrize("name", [n for n in FLOATS if FORMATS[n].bits <= 16])
def test_special_codes_agree_with_ml_dtypes(name):
    row = FORMATS[name]
    raw = np.arange(2**row.bits, dtype=np.uint16 if row.bits > 8 else np.uint8)
    values = raw.view(row.dtype).astype(np.float32)
    assert row.has_inf == np.isinf(values).any()
    assert row.has_nan == np.isnan(values).any()
    assert row.has_negative_zero == (np.signbit(values) & (values == 0)).any()
    assert row.signed == (values < 0).any()


@pytest.mark.parametrize("name", GFLOAT)
def test_rows_agree_with_gfloat(name):
    row, info = FORMATS[name], GFLOAT[name]
    assert (row.max, row.bits) == (info.max, info.k)
    assert row.min_normal == info.smallest_normal
    assert row.min_subnormal == info.smallest_subnormal


@pytest.mark.parametrize(("name", "low", "high"), [("int8", -128, 127), ("int4", -8, 7)])
def test_integers_have_a_step_of_one(name, low, high):
    row = FORMATS[name]
    assert (row.min, row.max, row.min_subnormal, row.bits) == (low, high, 1, int(name[3:]))
    assert not (row.has_inf or row.has_nan)


def test_tf32_has_the_range_of_fp32_and_the_precision_of_fp16():
    row = FORMATS["tf32"]
    assert row.min_normal == FORMATS["fp32"].min_normal
    assert row.mantissa_bits == FORMATS["fp16"].mantissa_bits
    assert row.max == 2.0**127 * (2 - 2.0**-10)


def test_a_format_finds_itself():
    own = Format("e3m3", 3, 3, 3, "finite", None)
    assert find_format(own) is own
    assert find_format("e4m3") is FORMATS["e4m3"]
