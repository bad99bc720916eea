"""Normalisations are found in code that does not announce them, and nothing else is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli.core import ScaledArray, rescale, scalify, unscale
from scalify_cli.core.rescale import rescale_p
from scalify_cli.models.gpt import layer_norm
from scalify_cli.precision import Policy, Precision, Scalify, load_precision, with_precision
from scalify_cli.training.optimizer import AdamW

POLICY = Policy(Precision("test"), Scalify())
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)


def layer_norm_with_var(x):
    return (x - jnp.mean(x, -1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)


def layer_norm_with_std(x):
    return (x - jnp.mean(x, -1, keepdims=True)) / (jnp.std(x, -1, keepdims=True) + 1e-5)


def rms_norm(x):
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def rms_norm_by_power(x):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))


def flax_layer_norm(x):
    mean = x.mean(-1)
    variance = jnp.maximum(0.0, lax.square(x).mean(-1) - lax.square(mean))
    y = x - jnp.expand_dims(mean, -1)
    return y * lax.rsqrt(jnp.expand_dims(variance, -1) + 1e-6)


def batch_norm(x):
    mean = jnp.mean(x, 0, keepdims=True)
    return (x - mean) * lax.rsqrt(jnp.mean(jnp.square(x - mean), 0, keepdims=True) + 1e-5)


def narrow_layer_norm(x):
    return layer_norm(x.astype(jnp.float16), jnp.ones(8, jnp.float16)).astype(jnp.float32)


NORMS = (
    *(layer_norm_with_var, layer_norm_with_std, rms_norm, rms_norm_by_power, flax_layer_norm),
    *(batch_norm, jax.nn.standardize, narrow_layer_norm, lambda x: layer_norm(x, jnp.ones(8))),
)


def rescales(f, *arguments):
    """How many cotangents are rescaled in the gradient of f under the policy."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += equation.primitive is rescale_p
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
                total += count(getattr(value, "jaxpr", value)) if _is_jaxpr(value) else 0
        return total

    loss = with_precision(lambda *xs: jnp.sum(jnp.sin(f(*xs))), POLICY)
    return count(jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr)


def _is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_a_norm_is_found(norm):
    assert rescales(norm, X) == 1


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_it_is_found_after_other_arithmetic_and_inside_wrappers(norm):
    assert rescales(lambda x: norm(jnp.tanh(x) * x) @ jnp.ones((8, 2)), X) == 1
    assert rescales(lambda x: norm(x * x + x), X) == 1
    assert rescales(jax.jit(norm), X) == 1
    assert rescales(lambda x: lax.scan(lambda c, _: (norm(c), None), x, None, length=2)[0], X) == 1
    assert rescales(jax.checkpoint(norm), X) >= 1


def attention(x):
    past = jnp.tril(jnp.ones((3, 3), bool))
    return jax.nn.softmax(jnp.where(past, x @ x.T * 8**-0.5, -jnp.inf)) @ x


def gated(x):
    return jnp.sqrt(jnp.abs(x)) * jnp.square(x) + lax.rsqrt(jnp.exp(x))


def adam(x):
    optimizer = AdamW(clip=0.0).build(10)
    parameters = {"w": jnp.ones((3, 8))}
    updates, _ = optimizer.update({"w": x}, optimizer.init(parameters), parameters)
    return updates["w"]


@pytest.mark.parametrize(
    "f",
    [
        attention,
        gated,
        lambda x: jnp.sqrt(jnp.square(x)),
        lambda x: jnp.sqrt(jnp.where(x > 0, x, 1.0)),
        lambda x: jax.nn.softmax(x),
        jax.nn.gelu,
    ],
)
def test_other_roots_are_not_norms(f):
    assert rescales(f, X) == 0


def test_adams_root_is_not_a_norm():
    with jax.numpy_dtype_promotion("standard"):
        assert rescales(adam, X) == 0


def test_without_a_norm_to_rescale_with_nothing_is_inserted():
    policy = Policy(Precision("test"), Scalify(rescale_norm_backward="none"))
    loss = with_precision(lambda x: jnp.sum(rms_norm(x)), policy)
    assert "rescale" not in str(jax.make_jaxpr(jax.grad(loss))(X))
    unscaled = with_precision(lambda x: jnp.sum(rms_norm(x)), load_precision("fp32", "none"))
    assert "rescale" not in str(jax.make_jaxpr(jax.grad(unscaled))(X))


def test_values_and_gradients_are_those_of_the_function():
    for norm in (layer_norm_with_var, flax_layer_norm):
        loss = lambda x, norm=norm: jnp.sum(jnp.sin(norm(x)))  # noqa: E731
        got = jax.jit(scalify(jax.value_and_grad(with_precision(loss, POLICY))))(
            ScaledArray(X, 4.0)
        )
        wanted = jax.value_and_grad(loss)(X * 4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            unscale(got),
            wanted,
        )


def test_the_rescaled_cotangent_has_unit_data():
    gradient_of = jax.grad(with_precision(lambda y: jnp.sum(rms_norm(y) * 2.0**-40), POLICY))
    gradient = jax.jit(scalify(gradient_of))(ScaledArray(X, 1.0))
    size = float(jnp.sqrt(jnp.mean(jnp.square(gradient.data))))
    assert 0.5 <= size < 4
    measured = scalify(lambda x: rescale(x))(gradient)
    np.testing.assert_array_equal(unscale(measured), unscale(gradient))
