"""Values that outgrow their scale where nothing is measured: sums, additions, known factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli.core import ScaledArray, as_scaled, scalify

AVERAGE = jnp.full((256, 256), 1 / 256, jnp.float16)
POSITIVE = jax.random.uniform(jax.random.key(0), (256, 256), jnp.float16, 0, 2 / 256)
GRID = jnp.linspace(1, 2, 16, dtype=jnp.float16).reshape(4, 4)
HALF = jnp.full((4, 4), 0.5, jnp.float16)
ROWS = jnp.linspace(1, 2, 256 * 4, dtype=jnp.float16).reshape(256, 4)
FEW = 24
"""The newest LLVM takes 2**n steps for the largest of what is added to itself n times."""
IMAGE = jnp.linspace(1, 2, 256, dtype=jnp.float16).reshape(1, 1, 16, 16)


def repeated(f, times):
    """f applied to its own result, in straight-line code."""

    def apply(x, *others):
        for _ in range(times):
            x = f(x, *others)
        return x

    return apply


def smoothed(x):
    kernel = jnp.full((1, 1, 3, 3), 1 / 9, x.dtype)
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME")


def neighbours(x):
    return sum(jnp.roll(x, shift, axis) for shift in (1, -1) for axis in (0, 1)) / 4


def grown_and_shrunk(x):
    grown = repeated(lambda h: h + h, 13)
    shrunk = repeated(lambda h: h * 0.72, 28)(x)
    return grown((grown(x) + shrunk) * 2.0**-13) * 2.0**-13


PROGRAMS = {
    "averages": (repeated(lambda h, p: p @ h, 4), ROWS, AVERAGE),
    "relu network": (repeated(lambda h, w: jax.nn.relu(h @ w), 4), ROWS.T, POSITIVE),
    "power of a matrix": (lambda h, p: jnp.linalg.matrix_power(p, 16) @ h, ROWS, AVERAGE),
    "chain of matmuls": (lambda h, p: jnp.linalg.multi_dot([p, p, p, p, h]), ROWS, AVERAGE),
    "convolutions": (repeated(smoothed, 9), IMAGE),
    "rolls": (repeated(neighbours, 12), GRID),
    "thirds": (repeated(lambda h: (h + h + h) / 3, 12), GRID),
    "gradient of thirds": (
        jax.grad(lambda h: jnp.square(repeated(lambda h: (h + h + h) / 3, 20)(h)).sum()),
        GRID,
    ),
    "means": (repeated(lambda h: jnp.broadcast_to(h.mean(0), h.shape) + 0 * h, 12), ROWS),
    "decay": (repeated(lambda h: h * 0.7, 40), GRID),
    "growth and back": (repeated(lambda h: h * 1.45 * 1.45 / 2.1025, 40), GRID),
    "halves": (repeated(lambda h: h / 2 + h / 2, FEW), GRID),
    "mixtures": (repeated(lambda h: h * 0.7 + 0.3 * h, 40), GRID),
    "quotients": (repeated(lambda h: h / 1.43, 40), GRID),
    "doubling": (repeated(lambda h: h + h, FEW), GRID),
    "doubling in a loop": (lambda h: lax.fori_loop(0, 40, lambda _, h: h + h, h), GRID),
    "segments": (
        lambda h: jax.ops.segment_sum(h, jnp.zeros(h.shape[0], int), 2),
        jnp.ones((1 << 17,), jnp.float16),
    ),
    "parts that grow and shrink": (grown_and_shrunk, GRID),
    "gates": (repeated(lambda h, g: jax.nn.relu(h * jax.nn.sigmoid(g)), 24), GRID, 0 * GRID),
    "erfc": (repeated(lambda h, g: jax.nn.relu(h * lax.erfc(g)), 24), GRID, 0 * GRID + 0.5),
    "cosines": (repeated(lambda h, g: h * jnp.cos(g), 24), GRID, 0 * GRID + 1),
    "angles": (repeated(lambda h, g: h * jnp.arccos(g), 8), GRID, 0 * GRID + 0.996),
    "halves in a loop": (
        lambda h: lax.fori_loop(0, 40, lambda _, h: h * HALF.astype(h.dtype), h),
        GRID,
    ),
    "large weights": (repeated(lambda h, w: h @ w, 16), ROWS.T, POSITIVE * 16),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("shift", [-40, 0, 30])
def test_float16_keeps_up_with_what_it_sums(name, shift):
    """All are linear in their first argument."""
    f, x, *others = PROGRAMS[name]
    wanted = f(*(y.astype(jnp.float32) for y in (x, *others)))
    moved = ScaledArray(x, 2.0**shift)
    found = jax.jit(scalify(f))(moved, *map(as_scaled, others))
    np.testing.assert_allclose(np.asarray(found) * 2.0**-shift, wanted, rtol=0.05)


WEIGHTS = [jax.random.normal(key, (64, 64)) / 8 for key in jax.random.split(jax.random.key(1), 9)]


def swiglu_network(weights, x):
    for gate, up, down in zip(weights[::3], weights[1::3], weights[2::3], strict=True):
        x = x + (jax.nn.silu(x @ gate) * (x @ up)) @ down
    return jnp.mean(jnp.square(x))


@pytest.mark.parametrize("scale", [None, 1.0])
def test_gradients_where_weights_are_far_below_their_scale(scale):
    x = jax.random.normal(jax.random.key(2), (32, 64))
    wanted = jax.grad(swiglu_network)(WEIGHTS, x)
    weights = as_scaled([w.astype(jnp.float16) for w in WEIGHTS], scale)
    found = jax.jit(scalify(jax.grad(swiglu_network)))(weights, as_scaled(x.astype(jnp.float16)))
    for ours, true in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(ours), true, atol=0.01 * float(jnp.abs(true).max()))


@pytest.mark.parametrize("shift", [-40, 0, 40])
def test_gates_of_gates(shift):
    x, y, z = jnp.split(jax.random.uniform(jax.random.key(3), (3, 32), jnp.float16, 1, 2), 3)
    f = lambda x, y, z: jax.nn.silu(x) * (jax.nn.silu(y) * z)  # noqa: E731
    found = np.asarray(jax.jit(scalify(f))(as_scaled(x), as_scaled(y), ScaledArray(z, 2.0**shift)))
    wanted = f(*(x.astype(jnp.float32) for x in (x, y, z)))
    np.testing.assert_allclose(found * 2.0**-shift, wanted, rtol=2.0**-8)


X = jnp.linspace(-30, 30, 16, dtype=jnp.float16)
EXPONENTIALS = {
    "raised": lambda x: jnp.exp(x - x.max() + 20),
    "of what is above": lambda x: jnp.exp(-(x - x.max()) * 0.5),
    "less a part of the largest": lambda x: jnp.exp(x - 0.1 * x.max()),
    "less the largest's negative": lambda x: jnp.exp(x + x.max()),
    "of a distance": lambda x: jnp.exp(jnp.abs(x - x.max()) / 3),
    "less another's largest": lambda x: jnp.exp(x - (x / 10).max()),
    "less the largest": lambda x: jnp.exp(x - x.max()),
    "of a softmax": jax.nn.softmax,
}


@pytest.mark.parametrize("name", EXPONENTIALS)
def test_only_a_softmax_takes_its_exponentials_to_be_below_one(name):
    f = EXPONENTIALS[name]
    wanted = f(X.astype(jnp.float32))
    found = np.asarray(jax.jit(scalify(f))(ScaledArray(X, 1.0)))
    np.testing.assert_allclose(found, wanted, rtol=0.1, atol=2.0**-10 * float(wanted.max()))


@pytest.mark.parametrize("shift", [-40, 26, 40])
def test_data_is_not_left_far_from_its_unit(shift):
    """The gradient of an RMS norm has its operand's third power and its reciprocal's."""

    def f(x):
        return jnp.sum((x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-30)) ** 3)

    x = jax.random.normal(jax.random.key(0), (8, 16), jnp.float16)
    found = np.asarray(jax.jit(scalify(jax.grad(f)))(ScaledArray(x, 2.0**shift)))
    wanted = jax.grad(f)(x.astype(jnp.float32))
    np.testing.assert_allclose(found * 2.0**shift, wanted, atol=2.0**-8 * float(wanted.max()))


def test_additions_of_little_are_not_taken_for_growth():
    f = repeated(lambda h, z: (h + z) * 0.75 * 0.75 / 0.5625, 40)
    little = jnp.zeros((4, 4), jnp.float16).at[0, 0].set(1e-3)
    found = jax.jit(scalify(f))(ScaledArray(GRID, 1.0), ScaledArray(little, 1.0))
    wanted = f(GRID.astype(jnp.float32), little.astype(jnp.float32))
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0.02)


def test_a_bounded_function_of_what_has_outgrown_its_scale():
    double = repeated(lambda h: h + h, 7)
    f = lambda x: double(jnp.tanh(double(double(x))))  # noqa: E731
    found = jax.jit(scalify(f))(ScaledArray(jnp.ones(4, jnp.float16), 2.0**-30))
    np.testing.assert_allclose(np.asarray(found), np.full(4, 2.0**-9), rtol=2.0**-8)


FAR = {
    "exp": (lambda x: jnp.exp(x + 12), 0),
    "small exp": (lambda x: jnp.exp(x - 30), 0),
    "exp2": (lambda x: jnp.exp2(x + 40), 0),
    "sigmoid": (lambda x: jax.nn.sigmoid(x - 30), 0),
    "erfc": (lambda x: jax.scipy.special.erfc(x + 4), 0),
    "a product with exp": (lambda x: x * x * jnp.exp(87 + 0 * x), -60),
    "growth in a loop": (lambda x: lax.fori_loop(0, 75, lambda _, y: y * 4, x), -60),
    "decay in a loop": (lambda x: lax.fori_loop(0, 85, lambda _, y: y * 0.25, x), 60),
}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_results_of_any_size(name, dtype):
    f, exponent = FAR[name]
    x = jnp.linspace(1, 1.875, 8).astype(dtype)
    found = jax.jit(scalify(f))(ScaledArray(x, 2.0**exponent))
    wanted = f(x.astype(jnp.float32) * 2.0**exponent)
    np.testing.assert_allclose(
        np.asarray(found), wanted, rtol=0.05 if dtype == "bfloat16" else 0.01
    )
