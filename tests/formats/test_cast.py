"""The cast, exhaustively: every 16-bit input, every code of every format, three oracles."""

from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from oracles import GFLOAT, by_definition, by_gfloat, by_ml_dtypes

from scalify_cli.errors import UserError
from scalify_cli.formats import FORMATS, bounds, round_to_grid, saturating_cast, stochastic_round

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
pytestmark = pytest.mark.filterwarnings("ignore:invalid value")  # NaNs among all 16-bit inputs
SIXTEEN = ("bfloat16", "float16")
NARROW = [name for name, row in FORMATS.items() if row.bits <= 16]


def sixteen_bit_inputs(dtype):
    return np.arange(65536, dtype=np.uint16).view(DTYPES[dtype])


@cache
def float_inputs():
    """Random bit patterns, special values, and every grid point of e5m2 and e4m3 with its
    midpoints and their neighbours."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    points = np.concatenate([codes(FORMATS[name]) for name in ("e4m3", "e5m2")])
    points = np.unique(points[np.isfinite(points)])
    ties = np.concatenate([points, (points[1:] + points[:-1]) / 2])
    near = [np.nextafter(ties, np.float32(way)) for way in (-np.inf, np.inf)]
    special = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, np.inf, -np.inf, np.nan]
    wide = np.random.default_rng(1).normal(size=1 << 20) * 2.0 ** np.linspace(-30, 18, 1 << 20)
    parts = [random.view(np.float32), ties, *near, special, wide]
    return np.concatenate(parts, dtype=np.float32)


def inputs(dtype):
    return float_inputs() if dtype == "float32" else sixteen_bit_inputs(dtype)


def codes(format):
    """Every value of a format of at most 16 bits."""
    if format.dtype is None or format.bits > 16:
        pytest.fail(f"{format.name} is too wide to list")
    if format.kind == "integer":
        return np.arange(format.min, format.max + 1).astype(np.float32)
    raw = np.arange(2**format.bits, dtype=np.uint16 if format.bits > 8 else np.uint8)
    return raw.view(format.dtype).astype(np.float32)


def check_equal(got, wanted, signed_zero=True):
    got, wanted = (np.asarray(a).astype(np.float32) for a in (got, wanted))
    np.testing.assert_array_equal(got, wanted)
    if signed_zero:
        np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(wanted[wanted == 0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_nearest_is_the_nearest(name, dtype):
    x, row = inputs(dtype), FORMATS[name]
    low, high = bounds(row, dtype)
    got = saturating_cast(x, name)
    assert got.dtype == x.dtype
    wanted = by_definition(x, row, low, high)
    check_equal(got, wanted, signed_zero=row.has_negative_zero)
    if row.dtype is not None:
        if row.kind == "power":  # ml_dtypes rounds up all that is between its two smallest values
            x = np.where(np.abs(x.astype(np.float32)) < 2.0**-126, wanted, x).astype(x.dtype)
        check_equal(got, by_ml_dtypes(x, row, low, high), row.kind != "integer")


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("name", GFLOAT)
def test_nearest_agrees_with_gfloat(name, dtype):
    x, row = inputs(dtype), FORMATS[name]
    check_equal(saturating_cast(x, name), by_gfloat(x, row, *bounds(row, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_toward_zero_truncates(name, dtype):
    x, row = inputs(dtype), FORMATS[name]
    got = saturating_cast(x, name, "toward_zero")
    check_equal(got, by_definition(x, row, *bounds(row, dtype), np.trunc), row.has_negative_zero)


@pytest.mark.parametrize("name", FORMATS)
def test_round_to_grid_is_the_cast_of_float32(name):
    x = float_inputs()
    check_equal(round_to_grid(jnp.asarray(x), name), saturating_cast(x, name))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "toward_zero"])
@pytest.mark.parametrize("name", NARROW)
def test_every_code_is_a_fixed_point(name, rounding):
    row = FORMATS[name]
    values = codes(row)
    values = values[~np.isinf(values)]
    key = jax.random.key(0)
    check_equal(saturating_cast(values, row, rounding, key), values, row.has_negative_zero)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "toward_zero"])
@pytest.mark.parametrize("name", FORMATS)
def test_jit_and_vmap_change_nothing(name, rounding):
    x, key = float_inputs()[-(1 << 16) :].reshape(256, 256), jax.random.key(0)

    def cast(x):
        return saturating_cast(x, name, rounding, key)

    check_equal(jax.jit(cast)(x), cast(x))
    if rounding != "stochastic":
        check_equal(jax.vmap(cast, in_axes=1, out_axes=1)(x), cast(x))
        return
    bits = jax.random.bits(key, x.shape, jnp.uint32)
    by_rows = jax.vmap(lambda x, bits: stochastic_round(x, name, bits))
    check_equal(jax.jit(by_rows)(x, bits), cast(x))
    same_bits = jax.vmap(lambda x: stochastic_round(x, name, bits[0]))
    check_equal(same_bits(x[:2])[0], stochastic_round(x[0], name, bits[0]))


@pytest.mark.parametrize("name", FORMATS)
def test_infinities_saturate_and_nan_stays(name):
    row = FORMATS[name]
    for dtype in DTYPES:
        low, high = bounds(row, dtype)
        got = saturating_cast(jnp.array([np.inf, -np.inf, np.nan], dtype), name)
        np.testing.assert_array_equal(got.astype(np.float32), [high, low, np.nan])
    assert bounds(row, "float32") == (row.min, row.max)


def test_bounds_are_values_of_both():
    assert bounds(FORMATS["bf16"], "float16") == (-65280, 65280)
    assert bounds(FORMATS["fp16"], "bfloat16") == (-65280, 65280)
    assert bounds(FORMATS["fp32"], "float16") == (-65504, 65504)
    assert bounds(FORMATS["e8m0"], "float16") == (2.0**-24, 2.0**15)


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("name", FORMATS)
def test_stochastic_expectation_is_exact(name, dtype):
    """Over all 2^12 leading random bits, for values whose fraction of a step has 12 bits."""
    row = FORMATS[name]
    low, high = bounds(row, dtype)
    x = np.random.default_rng(0).choice(sixteen_bit_inputs(dtype), 200).astype(np.float64)
    finest = row.min_subnormal * 2.0**-12
    x = x[(x > low) & (x < high) & (np.remainder(x, finest) == 0)]
    bits = np.arange(4096, dtype=np.uint32)[:, None] << np.uint32(20)
    x_all = np.broadcast_to(x, (4096, x.size)).astype(DTYPES[dtype])
    rounded = stochastic_round(jnp.asarray(x_all), row, jnp.broadcast_to(bits, x_all.shape))
    assert x.size
    np.testing.assert_array_equal(np.asarray(rounded).astype(np.float64).mean(axis=0), x)


@pytest.mark.parametrize("value", [1.03, -300.7, 2.0**-10 * 1.37, 3.3e-5])
@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3", "e5m2", "e2m1", "int8", "e8m0"])
def test_stochastic_rounding_is_unbiased(name, value):
    row, count = FORMATS[name], 1 << 18
    value = np.float32(np.clip(value, row.min, row.max))
    got = saturating_cast(jnp.full(count, value), name, "stochastic", jax.random.key(7))
    got = np.asarray(got, np.float64)
    low, high = got.min(), got.max()
    assert low <= value <= high
    deviation = (high - low) / 2 / np.sqrt(count)
    assert abs(got.mean() - value) <= 5 * deviation


def test_stochastic_takes_the_two_neighbours():
    x = np.random.default_rng(0).normal(size=1 << 16).astype(np.float32) * 100
    got = np.asarray(saturating_cast(x, "e4m3", "stochastic", jax.random.key(0)))
    lower = np.asarray(saturating_cast(x, "e4m3", "toward_zero"))
    nearest = np.asarray(saturating_cast(x, "e4m3"))
    outer = np.where(np.abs(nearest) > np.abs(lower), nearest, got)
    assert np.all((got == lower) | (np.abs(got) == np.abs(outer)))
    assert np.mean(got != lower) == pytest.approx(0.5, abs=0.05)


def test_the_tangent_passes_within_the_bounds():
    x = jnp.array([1.1, -447.0, 448.0, 449.0, -np.inf, np.nan, 0.0])
    for rounding in ("nearest", "stochastic", "toward_zero"):
        cast = lambda x, r=rounding: saturating_cast(x, "e4m3", r, jax.random.key(0)).sum()  # noqa: E731
        np.testing.assert_array_equal(jax.grad(cast)(x), [1, 1, 1, 0, 0, 0, 1])
        by_element = jax.vmap(jax.grad(cast))(x)
        np.testing.assert_array_equal(by_element, [1, 1, 1, 0, 0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("e4m4",), "unknown format 'e4m4'", "did you mean e4m3? formats: fp32 tf32"),
        (("decimal",), "unknown format 'decimal'", "formats: fp32 tf32 bf16"),
        (("e4m3", "up"), "unknown rounding 'up'", "roundings: nearest stochastic toward_zero"),
        (("e4m3", "stochastic"), "stochastic rounding needs random bits", "pass key="),
    ],
)
def test_mistakes_are_named(arguments, message, hint):
    with pytest.raises(UserError) as caught:
        saturating_cast(jnp.ones(3), *arguments)
    assert caught.value.message == message
    assert caught.value.hint.startswith(hint)


def test_integers_are_not_rounded():
    with pytest.raises(UserError, match="cannot round int32"):
        saturating_cast(jnp.arange(3), "e4m3")
