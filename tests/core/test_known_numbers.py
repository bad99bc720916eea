"""Numbers known while tracing keep their power of two where they meet plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalify_cli.core import ScaledArray, scalify
from scalify_cli.models.gpt import cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(4, 64, 512)).astype(np.float16)
TARGETS = jnp.zeros((4, 64), jnp.int32)


def test_small_probabilities_survive_in_the_cotangent_of_the_loss():
    gradient = jax.jit(scalify(jax.grad(cross_entropy)))(ScaledArray(LOGITS, 1.0), TARGETS)
    exact = jax.grad(cross_entropy)(jnp.float32(LOGITS), TARGETS)
    assert float(gradient.scale) == 1 / 256
    np.testing.assert_allclose(np.float32(gradient), exact, rtol=2**-8)


@pytest.mark.parametrize("jit", [False, True])
def test_what_no_scaled_argument_reaches_comes_out_plain(jit):
    function = scalify(lambda x, mask: (x * 2, jnp.where(mask, 0.0, 3.0)))
    doubled, chosen = (jax.jit(function) if jit else function)(
        ScaledArray(jnp.float16([1, 2]), 4.0), jnp.array([True, False])
    )
    assert isinstance(doubled, ScaledArray) and not isinstance(chosen, ScaledArray)
    np.testing.assert_array_equal(chosen, [0, 3])
