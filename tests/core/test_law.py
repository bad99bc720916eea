"""The specification of ``scalify``: with power-of-two scales and data in range it is f itself.

unscale(scalify(f)(xs)) == f(unscale(xs)), bit for bit, for every row of the table of rules.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collective_examples import COLLECTIVES
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from law_examples import COARSE, EXAMPLES, NOT_YET, POSITIVE, primitives_of

from scalify_cli.core import RULES, ScaledArray, scalify, unscale

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
LAW = settings(
    max_examples=3, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
SEEDS = st.integers(0, 1000)
EXPONENTS = st.lists(st.integers(-60, 60), min_size=3, max_size=3)
SHIFTS = st.integers(-3, 3).map(lambda k: 6 * k)  # even and odd roots divide them


def data(kind, shape, dtype, rng):
    """Values of magnitude 1/4 to 4 with some zeros; see ``Example``."""
    if kind == COARSE:
        return jnp.asarray(rng.integers(-4, 5, shape) / 2, dtype)
    values = 2.0 ** rng.uniform(-2, 2, shape)
    if kind == POSITIVE:
        return jnp.asarray(values, dtype)
    signs = rng.choice([-1.0, -1.0, 0.0, 1.0, 1.0], shape)
    return jnp.asarray(values * signs, dtype)


def operands(example, dtype, seed, exponents, reach):
    """``ScaledArray`` arguments, the exponents of their scales brought within the reach."""
    rng = np.random.default_rng(seed)
    reached = [round(e * reach / 60) for e in exponents]
    return [
        ScaledArray(data(example.data, shape, dtype, rng), 2.0**e)
        for shape, e in zip(example.shapes, reached, strict=False)
    ]


@cache
def compiled(primitive, scaled):
    f = EXAMPLES[primitive].f
    return jax.jit(scalify(f) if scaled else f)


def both_ways(primitive):
    """Eager, where scales are known while tracing, and compiled, where they are arguments.

    An opaque function is the same in both.
    """
    eager = () if EXAMPLES[primitive].opaque else (scalify(EXAMPLES[primitive].f),)
    return *eager, compiled(primitive, True)


def leaves(tree):
    return [np.float32(x) for x in jax.tree.leaves(unscale(tree, jnp.float32))]


def check_agreement(got, wanted, dtype, example):
    """Equal, or for opaque functions within units in the last place of the dtype."""
    for value, reference in zip(leaves(got), leaves(wanted), strict=True):
        assert value.shape == reference.shape
        if not example.opaque:
            np.testing.assert_array_equal(value, reference)
            continue
        unit = float(jnp.finfo(dtype).eps) * example.units
        tiny = float(jnp.finfo(dtype).smallest_subnormal)
        np.testing.assert_allclose(value, reference, rtol=unit, atol=tiny)


def test_every_rule_has_an_example():
    assert EXAMPLES.keys() | COLLECTIVES.keys() == RULES.keys()


@pytest.mark.parametrize("primitive", [x for x in EXAMPLES if x not in NOT_YET], ids=str)
def test_the_example_uses_its_primitive(primitive):
    example = EXAMPLES[primitive]
    plain = [jnp.ones(shape) for shape in example.shapes]
    assert str(primitive) in map(str, primitives_of(example.f, *plain))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("primitive", EXAMPLES, ids=str)
@LAW
@given(seed=SEEDS, exponents=EXPONENTS)
def test_scalified_is_the_function_itself(primitive, dtype, seed, exponents):
    example = EXAMPLES[primitive]
    reach = example.narrow_reach if dtype == jnp.float16 else example.reach
    xs = operands(example, dtype, seed, exponents, reach)
    # Compilers may take 16-bit shortcuts in transcendental functions; the rules use float32.
    wanted = compiled(primitive, False)(*unscale(xs, jnp.float32 if example.opaque else None))
    for function in both_ways(primitive):
        got = function(*xs)
        check_agreement(got, wanted, dtype, example)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("primitive", EXAMPLES, ids=str)
def test_floats_come_back_scaled_in_their_dtype(primitive, dtype):
    example = EXAMPLES[primitive]
    xs = operands(example, dtype, 0, (1, 2, 3), example.narrow_reach)
    plain = jax.eval_shape(example.f, *unscale(xs))
    scaled = jax.eval_shape(scalify(example.f), *xs)
    for value, wanted in zip(scaled_leaves(scaled), jax.tree.leaves(plain), strict=True):
        assert isinstance(value, ScaledArray) == jnp.issubdtype(wanted.dtype, jnp.floating)
        assert (value.shape, value.dtype) == (wanted.shape, wanted.dtype)


def scaled_leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, ScaledArray))


HOMOGENEOUS = [primitive for primitive, e in EXAMPLES.items() if e.degree is not None]


@pytest.mark.parametrize("primitive", HOMOGENEOUS, ids=str)
@LAW
@given(seed=SEEDS, exponents=EXPONENTS, shift=SHIFTS)
def test_a_factor_of_the_scales_leaves_the_data_alone(primitive, seed, exponents, shift):
    example = EXAMPLES[primitive]
    xs = operands(example, jnp.float16, seed, exponents, example.reach // 3)
    shifted = [ScaledArray(x.data, x.scale * 2.0**shift) for x in xs]
    factor = 2.0 ** round(shift * example.degree)
    for function in both_ways(primitive):
        before, after = scaled_leaves(function(*xs)), scaled_leaves(function(*shifted))
        for x, y in zip(before, after, strict=True):
            if not isinstance(x, ScaledArray):
                np.testing.assert_array_equal(x, y)
                continue
            np.testing.assert_array_equal(np.asarray(x.data), np.asarray(y.data))
            assert np.float32(y.scale) == np.float32(x.scale) * np.float32(factor)


@pytest.mark.parametrize("primitive", HOMOGENEOUS, ids=str)
@LAW
@given(seed=SEEDS, exponents=EXPONENTS)
def test_float16_holds_what_float16_could_not(primitive, seed, exponents):
    """Scales far beyond float16: right within its rounding, and half a step of the data."""
    example = EXAMPLES[primitive]
    xs = operands(example, jnp.float16, seed, exponents, example.reach)
    wanted = leaves(example.f(*unscale(xs, jnp.float32)))
    for function in both_ways(primitive):
        for got, reference in zip(scaled_leaves(function(*xs)), wanted, strict=True):
            scale = float(got.scale) if isinstance(got, ScaledArray) else 0.0
            value = np.float32(unscale(got, jnp.float32))
            unit, step = 2.0**-10, 2.0**-24 * scale
            np.testing.assert_allclose(value, reference, rtol=unit, atol=step)
