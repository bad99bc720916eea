"""Numbers known while tracing keep their power of two where they meet plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from scalify_cli.core import ScaledArray, is_scaled, scalify
from scalify_cli.models.gpt import cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(4, 64, 512)).astype(np.float16)
TARGETS = jnp.zeros((4, 64), jnp.int32)


def test_small_probabilities_survive_in_the_cotangent_of_the_loss():
    gradient = jax.jit(scalify(jax.grad(cross_entropy)))(ScaledArray(LOGITS, 1.0), TARGETS)
    exact = jax.grad(cross_entropy)(jnp.float32(LOGITS), TARGETS)
    assert float(gradient.scale) == 1 / 256
    np.testing.assert_allclose(np.float32(gradient), exact, rtol=2**-8)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_scales_are_the_same_on_a_mesh(kind):
    gradient = jax.jit(scalify(jax.grad(lambda x: jnp.mean(jnp.float32(x) ** 3))))
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(kind,))
    spread = ScaledArray(*(jax.device_put(y, _over(mesh, y)) for y in (LOGITS, jnp.float32(4))))
    here, there = gradient(ScaledArray(LOGITS, 4.0)), gradient(spread)
    assert here.scale == there.scale
    np.testing.assert_array_equal(here.data, there.data)


def _over(mesh, x):
    return NamedSharding(mesh, PartitionSpec(*("rows" for _ in x.shape[:1])))


@pytest.mark.parametrize("jit", [False, True])
def test_what_no_scaled_argument_reaches_comes_out_plain(jit):
    function = scalify(lambda x, mask: (x * 2, jnp.where(mask, 0.0, 3.0)))
    doubled, chosen = (jax.jit(function) if jit else function)(
        ScaledArray(jnp.float16([1, 2]), 4.0), jnp.array([True, False])
    )
    assert isinstance(doubled, ScaledArray) and not isinstance(chosen, ScaledArray)
    np.testing.assert_array_equal(chosen, [0, 3])


def test_a_pattern_of_plain_arrays_leaves_as_a_plain_array():
    def f(x, y):
        half = y * 0.5
        return x * 2, jax.nn.silu(half), half / jnp.sqrt(jnp.mean(half**2) + 1e-6)

    x, y = ScaledArray(jnp.ones(3), 4.0), jnp.arange(1.0, 4)
    scaled, *plain = jax.jit(scalify(f))(x, y)
    assert is_scaled(scaled)
    assert not any(map(is_scaled, plain))
