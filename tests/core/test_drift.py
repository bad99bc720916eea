"""Values that outgrow their scale where nothing is measured: sums, additions, known factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli import as_scaled, scalify, unscale

AVERAGE = jnp.full((256, 256), 1 / 256, jnp.float16)
POSITIVE = jax.random.uniform(jax.random.key(0), (256, 256), jnp.float16, 0, 2 / 256)
GRID = jnp.linspace(1, 2, 16, dtype=jnp.float16).reshape(4, 4)
ROWS = jnp.linspace(1, 2, 256 * 4, dtype=jnp.float16).reshape(256, 4)
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


PROGRAMS = {
    "averages": (repeated(lambda h, p: p @ h, 4), ROWS, AVERAGE),
    "relu network": (repeated(lambda h, w: jax.nn.relu(h @ w), 4), ROWS.T, POSITIVE),
    "power of a matrix": (lambda p: jnp.linalg.matrix_power(p, 16), AVERAGE),
    "chain of matmuls": (lambda h, p: jnp.linalg.multi_dot([p, p, p, p, h]), ROWS, AVERAGE),
    "convolutions": (repeated(smoothed, 9), IMAGE),
    "rolls": (repeated(neighbours, 12), GRID),
    "thirds": (repeated(lambda h: (h + h + h) / 3, 12), GRID),
    "gradient of thirds": (
        jax.grad(lambda h: repeated(lambda h: (h + h + h) / 3, 20)(h).sum()),
        GRID,
    ),
    "means": (repeated(lambda h: jnp.broadcast_to(h.mean(0), h.shape) + 0 * h, 12), ROWS),
    "decay": (repeated(lambda h: h * 0.7, 40), GRID),
    "growth and back": (repeated(lambda h: h * 1.45 * 1.45 / 2.1025, 40), GRID),
    "halves": (repeated(lambda h: h / 2 + h / 2, 40), GRID),
    "mixtures": (repeated(lambda h: h * 0.7 + 0.3 * h, 40), GRID),
    "quotients": (repeated(lambda h: h / 1.43, 40), GRID),
    "doubling": (repeated(lambda h: h + h, 40), GRID),
    "doubling in a loop": (lambda h: lax.fori_loop(0, 40, lambda _, h: h + h, h), GRID),
    "segments": (
        lambda h: jax.ops.segment_sum(h, jnp.zeros(h.shape[0], int), 2),
        jnp.ones((1 << 17,), jnp.float16),
    ),
    "large weights": (repeated(lambda h, w: h @ w, 16), ROWS.T, POSITIVE * 16),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("shift", [-40, 0, 30])
def test_float16_keeps_up_with_its_values(name, shift):
    f, x, *others = PROGRAMS[name]
    if name == "power of a matrix":
        shift = 0
    wide = [y.astype(jnp.float32) for y in (x, *others)]
    wanted = np.asarray(f(wide[0], *wide[1:]), np.float64) * (
        1 if name.startswith("gradient") else 2.0**shift
    )
    moved = as_scaled(x)
    moved = type(moved)(moved.data, moved.scale * 2.0**shift)
    found = np.asarray(unscale(jax.jit(scalify(f))(moved, *map(as_scaled, others)), jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=0.05)
