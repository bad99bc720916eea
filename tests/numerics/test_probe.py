"""Probed values reach the host in the order of computation, whatever wraps them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli.numerics.probe import evaluate_probed, probe

X = np.float32([1, 2, 3])


def evaluated(f, *args):
    """What the evaluation of f gives, and what its probes saw; f takes the probe first."""
    seen = []

    def look(x):
        return probe(lambda *values: seen.append([v.tolist() for v in values]), x)

    closed = jax.make_jaxpr(lambda *args: f(look, *args))(*args)
    assert seen == []
    return evaluate_probed(closed, args), seen


def sums(look, x):
    return lax.scan(lambda total, y: ((s := look(total + y)), -s), jnp.float32(0), x)


def sums_backwards(look, x):
    return lax.scan(lambda total, y: ((s := look(total + y)), -s), jnp.float32(0), x, reverse=True)


def no_iterations(look, x):
    return lax.scan(lambda total, y: (look(total + y), total), jnp.float32(1), x[:0])


def doubled_below_ten(look, x):
    return lax.while_loop(lambda y: y[0] < 10, lambda y: look(y * x[1]), x[:1])


def counted(look, x):
    return lax.fori_loop(1, 3, lambda i, y: look(y + jnp.float32(i)), x[0])


def chosen(look, x):
    return [lax.switch(i, [look, lambda y: look(-y)], x[0]) for i in (-4, 0, 1, 7)]


def wrapped(look, x):
    return jax.checkpoint(lambda y: look(y[0]) * 2)(x)


def batched(look, x):
    return jax.vmap(lambda y: look(y + 1))(x)


@pytest.mark.parametrize(
    ("f", "expected", "sights"),
    [
        (sums, [6, [-1, -3, -6]], [1, 3, 6]),
        (sums_backwards, [6, [-6, -5, -3]], [3, 5, 6]),
        (no_iterations, [1, []], []),
        (doubled_below_ten, [[16]], [[2], [4], [8], [16]]),
        (counted, [4], [2, 4]),
        (chosen, [1, 1, -1, -1], [1, 1, -1, -1]),
        (wrapped, [2], [1]),
        (batched, [[2, 3, 4]], [[2, 3, 4]]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_values_are_seen_in_order_and_left_alone(f, expected, sights):
    outputs, seen = evaluated(f, X)
    assert [np.asarray(x).tolist() for x in outputs] == expected
    assert seen == [[x] for x in sights]


def test_details_are_seen_beside_the_data():
    seen = []
    f = lambda x: probe(lambda *values: seen.append(values), x, x[0], x[1])  # noqa: E731
    evaluate_probed(jax.make_jaxpr(f)(X), [X])
    assert [float(x) for x in seen[0][1:]] == [1, 2]


def test_compiled_it_is_the_identity():
    f = lambda x: probe(pytest.fail, x) + 1  # noqa: E731
    np.testing.assert_array_equal(jax.jit(f)(X), X + 1)
