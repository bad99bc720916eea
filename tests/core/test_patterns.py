"""Activations, softmax and norms as ``jax.nn`` writes them: what scale they leave, what values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli.core import ScaledArray, as_scaled, scalify, unscale

X = np.linspace(-3, 3, 16, dtype=np.float32)
ERROR = {"float32": 2.0**-19, "bfloat16": 2.0**-6, "float16": 2.0**-8}


def swiglu(x):
    return jax.nn.silu(x) * (x + 1)


def layer_norm(x):
    return (x - x.mean()) * lax.rsqrt(x.var() + 1e-5)


def rms_norm(x):
    return x / jnp.sqrt(jnp.mean(jnp.square(x)) + 1e-6)


def cross_entropy(x):
    return jax.nn.logsumexp(x) - x[3]


def attention(x):
    scores = jnp.where(jnp.tri(4, dtype=bool), x.reshape(4, 4) @ x.reshape(4, 4), -jnp.inf)
    return jax.nn.softmax(scores) @ x.reshape(4, 4)


GATES = {
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu²": lambda x: jnp.square(jax.nn.relu(x)),
    "relu² of max": lambda x: jnp.maximum(x, 0) ** 2,
    "swiglu": swiglu,
    "glu": jax.nn.glu,
    "mish": jax.nn.mish,
}
OTHERS = {
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": jax.nn.logsumexp,
    "cross-entropy": cross_entropy,
    "attention": attention,
    "layer norm": layer_norm,
    "rms norm": rms_norm,
    "standardize": jax.nn.standardize,
}


def weighted(f):
    """A scalar of f with a derivative that does not cancel."""

    def total(x):
        y = f(x).astype(jnp.float32)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    return total


def relative_error(got, wanted):
    got, wanted = np.asarray(unscale(got, jnp.float32)), np.asarray(wanted)
    return np.max(np.abs(got - wanted)) / max(np.max(np.abs(wanted)), 2.0**-100)


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("exponent", [-6, 0, 2])
@pytest.mark.parametrize("f", GATES.values(), ids=GATES.keys())
def test_a_gate_keeps_the_scale_of_its_input(f, exponent, dtype):
    x = ScaledArray(jnp.asarray(X, dtype), 2.0**exponent)
    assert float(jax.jit(scalify(f))(x).scale) == 2.0**exponent


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("exponent", [-24, -3, 2])
@pytest.mark.parametrize("f", (GATES | OTHERS).values(), ids=(GATES | OTHERS).keys())
def test_values_are_those_of_plain_float32(f, exponent, dtype):
    x = ScaledArray(jnp.asarray(X, dtype), 2.0**exponent)
    true = jnp.float32(unscale(x, jnp.float32))
    assert relative_error(jax.jit(scalify(f))(x), f(true)) < ERROR[dtype]


@pytest.mark.parametrize("exponent", [-24, 2])
@pytest.mark.parametrize("f", (GATES | OTHERS).values(), ids=(GATES | OTHERS).keys())
def test_derivatives_are_those_of_plain_float32(f, exponent):
    x = ScaledArray(jnp.asarray(X), 2.0**exponent)
    wanted = jax.grad(weighted(f))(jnp.asarray(X) * 2.0**exponent)
    assert relative_error(jax.jit(scalify(jax.grad(weighted(f))))(x), wanted) < 2.0**-14


@pytest.mark.parametrize("f", [layer_norm, rms_norm])
def test_a_norm_has_one_scale_whatever_its_input_has(f):
    results = [jax.jit(scalify(f))(ScaledArray(jnp.asarray(X), 2.0**k)) for k in (-40, 0, 40)]
    assert len({float(result.scale) for result in results}) == 1


@pytest.mark.parametrize("exponent", [-40, -9, 0, 30])
def test_epsilon_is_relative_to_the_true_value(exponent):
    x = ScaledArray(jnp.asarray(X), 2.0**exponent)
    true = np.float64(X) * 2.0**exponent
    wanted = true / np.sqrt(np.mean(true**2) + 1e-6)
    np.testing.assert_allclose(unscale(jax.jit(scalify(rms_norm))(x)), wanted, rtol=2.0**-21)


def products(f, *arguments):
    """Whole arrays multiplied or divided by a scale known at run time, in f under ``scalify``."""
    jaxpr = jax.make_jaxpr(scalify(f))(*arguments).jaxpr
    found = [e for e in jaxpr.eqns if e.primitive.name in ("mul", "div")]
    found = [e for e in found if e.outvars[0].aval.shape == X.shape]
    return sum(any(x.aval.shape == () and not hasattr(x, "val") for x in e.invars) for e in found)


def test_an_activation_is_made_true_once_and_brought_back_once():
    x = ScaledArray(jnp.asarray(X), 2.0)
    assert products(jax.nn.gelu, x) == 2


def test_terms_of_a_sum_are_multiplied_once_each():
    x = ScaledArray(jnp.asarray(X), 2.0)
    assert products(lambda a, b, c: (a + b) + c, x, x, x) == 3 + 1  # the last one to leave
    assert products(lambda a, b, c: ((a + b) / 3) - c, x, x, x) == 3 + 1
    assert products(lambda a, b, c: (a + b, (a + b) * c + c), x, x, x) <= 7


@pytest.mark.parametrize("scales", [(0, 5, -7), (30, -30, 1), (-40, -41, -40)])
def test_merged_multiplications_change_no_bit(scales):
    values = [ScaledArray(jnp.asarray(X) + i, 2.0**k) for i, k in enumerate(scales)]

    def f(a, b, c):
        return (a + b) - c, ((a + b) / c + b) - a

    got, wanted = jax.jit(scalify(f))(*values), f(*map(unscale, values))
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(unscale(x), y)


FAR = {
    "gated, cubed": (lambda a, b: (jax.nn.silu(a) * b) ** 3, (-60, 60)),
    "gated, cubed the other way": (lambda a, b: (jax.nn.silu(a) * b) ** 3, (40, -40)),
    "guard of a fourth power": (lambda x, _: 1 / (x**4 + 1e-6), (-60, 0)),
    "guard of a square": (lambda x, _: x / jnp.sqrt(jnp.mean(x * x) + 1e-6), (-60, 0)),
    "quotient by nothing, not chosen": (lambda x, y: jnp.where(x > -9, x, y / 0), (-30, 10)),
}


@pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(("f", "exponents"), FAR.values(), ids=FAR.keys())
def test_scales_far_apart_lose_nothing(way, f, exponents):
    x, y = (ScaledArray(jnp.asarray(X + 0.3), 2.0**k) for k in exponents)
    wanted = f(*unscale((x, y)))
    np.testing.assert_allclose(unscale(way(scalify(f))(x, y)), wanted, 1e-5)


def test_zeros_do_not_crowd_out_what_is_chosen_in_place_of_a_quotient_by_them():
    def f(x, y, nothing):
        return jnp.where(nothing == 0, x, y / nothing)

    x = as_scaled(X)
    zeros = as_scaled(jnp.zeros_like(X))
    np.testing.assert_array_equal(unscale(jax.jit(scalify(f))(x, x, zeros)), X)


BOUNDED = {name: GATES[name] for name in ("gelu", "exact gelu", "silu", "relu")}
OUTGROWN = [(7, name) for name in BOUNDED] + [(4, name) for name in GATES]


@pytest.mark.parametrize(("binades", "name"), OUTGROWN)
def test_float16_data_above_its_scale_does_not_overflow_in_a_derivative(binades, name):
    def cotangent(x, g):
        y, back = jax.vjp(GATES[name], x)
        return back(g[: y.size])[0]

    data = jnp.asarray(X * 2**binades, jnp.float16)
    x, g = (ScaledArray(data, 2.0**k) for k in (-binades, -16))
    wanted = cotangent(unscale(x, jnp.float32), unscale(g, jnp.float32))
    got = jax.jit(scalify(cotangent))(x, g)
    assert got.dtype == jnp.float16
    assert relative_error(got, wanted) < ERROR["float16"]


def test_float16_stays_in_float32_no_longer_than_until_a_matmul():
    def roundings(f):
        x = ScaledArray(jnp.ones((4, 4), jnp.float16), 2.0)
        casts = jax.make_jaxpr(scalify(f))(x, x).jaxpr.eqns
        casts = [e for e in casts if e.primitive is lax.convert_element_type_p]
        return sum(e.outvars[0].aval.dtype == jnp.float16 for e in casts)

    assert roundings(lambda x, y: (x * y) + x) == 1
    assert roundings(lambda x, y: (x * y) + (x @ y)) == 3


def normalised_mlp(norm):
    def loss(weights, x):
        hidden = jax.nn.gelu(x @ weights["up"]) @ weights["down"]
        return jnp.sum(norm(hidden) * norm(x + hidden) * weights["gain"])

    return loss


NORMS = {
    "layer norm": lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var() + 1e-5),
    "rms norm": lambda x: x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6),
    "standard deviation": lambda x: x / (jnp.std(x, -1, keepdims=True) + 1e-6),
    "length": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
}


@pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("exponent", [-20, 20])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_data_far_from_its_scale_loses_no_gradient_through_a_norm(way, exponent, norm):
    draw = np.random.default_rng(0).normal
    weights = {"up": draw(size=(8, 16)), "down": draw(size=(16, 8)), "gain": draw(size=(1, 8))}
    arguments = jax.tree.map(jnp.float32, (weights, draw(size=(4, 8))))
    gradient = jax.grad(normalised_mlp(norm))
    wanted = gradient(*arguments)
    scaled = jax.tree.map(lambda x: ScaledArray(x * 2.0**-exponent, 2.0**exponent), arguments)
    got = way(scalify(gradient))(*scaled)
    for name, x in wanted.items():
        assert relative_error(got[name], x) < 2.0**-14, name
