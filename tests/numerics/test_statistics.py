"""Statistics against the same figures computed by numpy in float64."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from scalify_cli.formats import FORMATS, saturating_cast
from scalify_cli.numerics import bins
from scalify_cli.numerics import statistics as module
from scalify_cli.numerics.statistics import SNR_CAP_DB, Tap, measure, statistics, summarise

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow)")  # meant to be there
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1.9999999, 2.0, 6e-8, -6e-8, 3e4]


def tensor(dtype, size=5000):
    random = np.random.default_rng(0)
    values = random.normal(size=size) * 2.0 ** random.normal(scale=5, size=size)
    return np.concatenate([values, SPECIAL]).astype(DTYPES[dtype])


def on_host(data, scale, rounded=None, format=""):
    """Statistics of one tensor; ``format`` rounds it where ``rounded`` is not given."""

    def pool(data, rounded):
        if rounded is None:
            rounded = saturating_cast(data, format) if format else data
        return measure([Tap("x", data, rounded, int(np.log2(scale)), format)])

    return statistics([jax.jit(pool)(data, rounded)], "x")


def check_close(got, wanted):
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6, err_msg=name)


def counts_by_definition(data, scale):
    values = np.abs(data.astype(np.float32).astype(np.float64)) * scale
    counts = np.zeros(bins.SLOTS, np.int64)
    counts[:3] = [np.sum(values == 0), np.sum(np.isinf(values)), np.sum(np.isnan(values))]
    regular = values[(values > 0) & np.isfinite(values)]
    binade = np.clip(np.frexp(regular)[1] - 1, bins.LOWEST, bins.HIGHEST)
    np.add.at(counts, binade - bins.LOWEST + bins.FIRST, 1)
    return counts


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**40, 2.0**-100, 2.0**100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_counts(dtype, scale):
    data = tensor(dtype)
    got = on_host(data, np.float32(scale))
    np.testing.assert_array_equal(got["counts"], counts_by_definition(data, scale))
    assert got["scale_exponent"] == np.log2(scale)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_value_of_a_dtype_lands_in_its_binade(dtype):
    """Subnormals too; scaled up so that those of bfloat16 are within the outermost binades."""
    data = np.arange(65536, dtype=np.uint16).view(DTYPES[dtype])
    for scale in (1.0, 2.0**80):
        got = on_host(data, np.float32(scale))
        np.testing.assert_array_equal(got["counts"], counts_by_definition(data, scale))


@pytest.mark.parametrize("bits", [1, 2, 3, 0x00400000, 0x007FFFFF, 0x00800000])
def test_subnormals_of_float32_land_in_their_binade(bits):
    data = np.array([bits], np.uint32).view(np.float32)
    got = on_host(data, np.float32(2.0**100))
    np.testing.assert_array_equal(got["counts"], counts_by_definition(data, 2.0**100))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "int8", "fp16"])
def test_rounding_losses(name, dtype):
    data, row, scale = tensor(dtype), FORMATS[name], 2.0**-7
    rounded = np.asarray(saturating_cast(data, name))
    got = on_host(data, np.float32(scale), rounded, format=name)
    x, q = (a.astype(np.float32).astype(np.float64) for a in (data, rounded))
    assert got["size"] == x.size
    assert got["overflow"] == np.sum((x > row.max) | (x < row.min))
    assert got["underflow"] == np.sum((q == 0) & (x != 0))
    finite = np.isfinite(x)
    x, q = x[finite] * scale, q[finite] * scale
    np.testing.assert_allclose(got["sum_squares"], np.sum(x**2), rtol=1e-5)
    np.testing.assert_allclose(got["error_squares"], np.sum((q - x) ** 2), rtol=1e-5)
    assert got["amax"] == np.abs(x).max()


def test_without_a_format_nothing_is_lost_but_infinities():
    data = tensor("float16")
    got = on_host(data, 1.0)
    assert got["overflow"] == np.isinf(data).sum()
    assert (got["underflow"], got["error_squares"]) == (0, 0)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 350])
def test_blocks_count_every_element_once(size, monkeypatch):
    data = tensor("float32", 400)[:size].reshape(-1, 1)
    whole = on_host(data, 2.0, format="e4m3")
    monkeypatch.setattr(module, "ROW", 10)
    monkeypatch.setattr(module, "BLOCK", 100)
    blocks = on_host(data, 2.0, format="e4m3")
    assert whole["counts"].sum() == blocks["counts"].sum() == whole["size"] == size
    check_close(blocks, whole)


@pytest.mark.parametrize("block", [20, 100, 1 << 18])
def test_tensors_measured_together_are_measured_apart(block, monkeypatch):
    monkeypatch.setattr(module, "ROW", 10)
    monkeypatch.setattr(module, "BLOCK", block)
    sizes, formats = (0, 1, 73, 120, 10), ("e4m3", "", "e2m1", "int8", "e5m2")
    tensors = [tensor("float16", n)[:n] * np.float16(2.0**k) for k, n in enumerate(sizes)]
    rounded = [saturating_cast(x, f) if f else x for x, f in zip(tensors, formats, strict=True)]
    rows = zip("abcde", tensors, rounded, range(-2, 3), formats, strict=True)
    taps = [Tap(name, jnp.asarray(x), jnp.asarray(q), *rest) for name, x, q, *rest in rows]
    pool = measure(taps)
    for tap in taps:
        alone = on_host(np.asarray(tap.data), 2.0**tap.exponent, format=tap.format)
        check_close(statistics([pool], tap.name), alone)


def test_what_has_one_name_is_counted_together():
    first, second = tensor("float32", 1000), tensor("float32", 2000) * np.float32(2.0**-30)
    together = on_host(np.concatenate([first, second]), 4.0, format="fp16")
    taps = [Tap("x", x, saturating_cast(x, "fp16"), 2, "fp16") for x in (first, second)]
    check_close(statistics([measure(taps)], "x"), together)
    check_close(statistics([measure(taps[:1]), measure(taps[1:])], "x"), together)


def test_scales_far_apart_are_counted_together():
    ones = jnp.ones(8)
    stats = statistics([measure([Tap("x", ones, ones, k) for k in (-60, 60)])], "x")
    assert stats["counts"][[bins.FIRST + k - bins.LOWEST for k in (-60, 60)]].tolist() == [8, 8]
    figures = summarise(stats)
    assert figures["rms"] == pytest.approx(2.0**60 / np.sqrt(2))
    assert (figures["amax"], figures["scale"]) == (2.0**60, 2.0**60)


def test_a_name_that_nothing_has():
    with pytest.raises(KeyError, match="y"):
        statistics([measure([Tap("x", jnp.ones(2), jnp.ones(2))])], "y")


def test_it_can_be_scanned_over_layers():
    layers = jnp.asarray(tensor("float32", 4988).reshape(10, 500))
    _, pool = jax.lax.scan(lambda _, x: (None, measure([Tap("x", x, x, 1)])), None, layers)
    check_close(statistics([pool], "x"), on_host(layers, 2.0))


def test_figures():
    data = np.concatenate([np.full(96, 3.0), [0.0, 1e-9, 1000.0, np.inf]]).astype(np.float32)
    figures = summarise(on_host(data, 0.5, format="e4m3"))
    squares = 96 * 9 + 1000**2
    assert figures["scale"] == 0.5
    assert figures["rms"] == pytest.approx(0.5 * np.sqrt(squares / 99))
    assert figures["amax"] == 500
    assert (figures["underflow"], figures["overflow"]) == (0.01, 0.02)
    assert figures["snr_db"] == pytest.approx(10 * np.log10(squares / 552**2), rel=1e-5)


@pytest.mark.parametrize("magnitude", [1e-37, 1e-25, 1e30, 3e38])
def test_squares_beyond_float32_are_kept(magnitude):
    figures = summarise(on_host(np.full(1000, magnitude, np.float32), 1.0, format="bf16"))
    assert figures["rms"] == pytest.approx(magnitude, rel=1e-5)
    assert 40 < figures["snr_db"] <= SNR_CAP_DB


def test_errors_far_larger_than_their_elements():
    """As where a scaled moment too small for its format becomes the format's smallest number."""
    sizes = module.ROW, module.ROW
    data = np.repeat(np.float32([1, 2.0**-100]), sizes)
    stats = on_host(data, 1.0, np.repeat(np.float32([1, 2.0**-24]), sizes))
    assert stats["error_squares"] == pytest.approx(module.ROW * 2.0**-48)
    assert stats["sum_squares"] == module.ROW


def test_figures_of_the_hopeless_are_finite():
    for data in (np.zeros(3), np.zeros(0), np.full(3, np.nan), np.full(3, np.inf)):
        figures = summarise(on_host(data.astype(np.float32), 1.0, format="e4m3"))
        assert all(np.isfinite(list(figures.values())))
        assert (figures["rms"], figures["amax"], figures["snr_db"]) == (0, 0, SNR_CAP_DB)


def test_snr_is_capped_both_ways():
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert summarise(on_host(ones, 1.0))["snr_db"] == SNR_CAP_DB
    assert summarise(on_host(zeros, 1.0, ones))["snr_db"] == pytest.approx(-SNR_CAP_DB)


def test_snr_follows_the_mantissa():
    """6.02 dB a bit: between formats that differ by mantissa bits alone, in their normal range."""
    data = np.random.default_rng(0).uniform(1, 2, 1 << 16).astype(np.float32)
    names = ["e5m2", "e4m3", "e3m4", "bf16", "fp16"]
    snr = [summarise(on_host(data, 1.0, format=name))["snr_db"] for name in names]
    bits = [FORMATS[name].mantissa_bits for name in names]
    np.testing.assert_allclose(np.diff(snr) / np.diff(bits), 20 * np.log10(2), rtol=0.02)


def test_edges_bracket_their_slots():
    assert len(bins.EDGES) == bins.BINADES + 1
    for k in (0, 63, 127):
        value = np.float32(2.0 ** bins.EDGES[k])
        assert on_host(value[None], 1.0)["counts"][bins.FIRST + k] == 1
