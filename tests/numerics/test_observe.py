"""``observe``: f's results, and statistics of what it named, from inside the same program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli.core import ScaledArray, scalify, tap, unscale
from scalify_cli.formats import saturating_cast
from scalify_cli.numerics import observe as module
from scalify_cli.numerics.observe import observe
from scalify_cli.numerics.statistics import Tap, measure, statistics, summarise

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)


def named(x, name="value"):
    return tap(x, name) * 2


def rounded(x, name):
    return tap(x, name, saturating_cast(x, "e4m3"), "e4m3")


def directly(x, format=""):
    q = saturating_cast(x, format) if format else x
    return statistics([measure([Tap("x", x, q, 0, format)])], "x")


def check_equal(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize("compile", [False, True])
def test_results_are_fs_and_statistics_those_of_the_values(compile):
    def f(x, n, *, tree):
        y = named(jnp.sin(x), "wave") * n
        return {"y": rounded(y, "result"), "rest": tree}

    program = observe(lambda x, tree: f(x, 3, tree=tree))
    program = jax.jit(program) if compile else program
    result, seen = program(X, (jnp.arange(2), None))
    check_equal(result, f(X, 3, tree=(jnp.arange(2), None)))
    assert list(seen) == ["wave", "result"] and len(seen) == 2
    check_equal(seen["wave"], directly(jnp.sin(X)))
    check_equal(seen["result"], directly(jnp.sin(X) * 6, "e4m3"))
    assert summarise(seen["result"])["snr_db"] < 50


def test_names_come_in_the_order_of_computation():
    def f(x):
        return named(named(named(x, "z"), "a"), "m")

    assert list(observe(f)(X)[1]) == ["z", "a", "m"]


def test_the_order_of_computation_holds_across_loops_and_dtypes_and_out_of_jit():
    def f(x):
        y = named(x, "z").astype(jnp.float16)
        y = lax.scan(lambda c, r: (c, named(named(r, "y"), "c")), 0, named(y, "x"))[1]
        return named(named(y, "b") + 1, "a")

    assert list(jax.jit(observe(f))(X)[1]) == ["z", "x", "y", "c", "b", "a"]


@pytest.mark.parametrize("pooled", [0, 30, 1 << 22])
def test_how_many_are_measured_together_changes_nothing(pooled, monkeypatch):
    monkeypatch.setattr(module, "POOLED", pooled)
    _, seen = jax.jit(observe(lambda x: rounded(named(named(x, "a"), "b"), "c")))(X)
    assert len(seen.pools) == {0: 3, 30: 3, 1 << 22: 1}[pooled]
    check_equal(dict(seen), {"a": directly(X), "b": directly(2 * X), "c": directly(4 * X, "e4m3")})


def test_a_loop_that_does_not_run_is_not_seen():
    result, seen = jax.jit(observe(lambda x: lax.scan(lambda c, r: (c, named(r)), 0, x)[1]))(X[:0])
    assert result.shape == (0, 6) and dict(seen) == {}


def test_a_name_used_twice_counts_both():
    _, seen = observe(lambda x: named(x) + named(x * 2))(X)
    assert int(seen["value"]["size"]) == 2 * X.size
    np.testing.assert_allclose(float(seen["value"]["amax"]), 2 * float(jnp.max(jnp.abs(X))))


LOOPS = {
    "scan": lambda x: lax.scan(lambda c, row: (c + named(row), None), x[0] * 0, x)[0],
    "reversed": lambda x: lax.scan(lambda c, r: (c, named(r)), x[0], x, reverse=True)[1],
    "unrolled": lambda x: lax.scan(lambda c, r: (c, named(r)), x[0], x, unroll=2)[1],
    "remat in scan": lambda x: lax.scan(jax.checkpoint(lambda c, r: (c, named(r))), 0, x)[1],
    "scan in scan": lambda x: lax.scan(
        lambda c, row: (c, lax.scan(lambda d, y: (d, named(y)), 0, row)[1]), 0, x
    )[1],
    "jit": lambda x: jax.jit(named)(x),
    "jit in jit": lambda x: jax.jit(jax.jit(named))(x),
    "remat": lambda x: jax.checkpoint(named)(x),
}


@pytest.mark.parametrize("f", LOOPS.values(), ids=LOOPS.keys())
def test_loops_and_calls_are_seen_as_a_whole(f):
    result, seen = jax.jit(observe(f))(X)
    np.testing.assert_allclose(result, f(X), rtol=1e-6)
    whole = directly(X)
    for field in ("counts", "size", "amax", "scale_exponent"):
        np.testing.assert_array_equal(seen["value"][field], whole[field])
    got, wanted = summarise(seen["value"]), summarise(whole)
    assert got["rms"] == pytest.approx(wanted["rms"], rel=1e-5)


def test_the_backward_pass_of_a_loop():
    def loss(w, x):
        layer = lambda c, row: (jnp.tanh(named(c * row)), None)  # noqa: E731
        return jnp.sum(lax.scan(layer, w, x)[0])

    (value, gradient), seen = jax.jit(observe(jax.value_and_grad(loss)))(X[0], X)
    wanted = jax.value_and_grad(loss)(X[0], X)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-5, atol=1e-7)
    assert int(seen["value"]["size"]) == X.size


@pytest.mark.parametrize("exponent", [-40, 0, 40])
def test_under_scalify_values_and_their_scale(exponent):
    x = ScaledArray(X.astype(jnp.float16), 2.0**exponent)
    result, seen = jax.jit(observe(scalify(lambda x: named(x * x))))(x)
    np.testing.assert_array_equal(
        unscale(result, jnp.float32), unscale(scalify(lambda x: x * x * 2)(x), jnp.float32)
    )
    assert int(seen["value"]["scale_exponent"]) == 2 * exponent
    amax = float(np.max(np.float64(X.astype(jnp.float16)) ** 2)) * 4.0**exponent
    np.testing.assert_allclose(float(seen["value"]["amax"]), amax, rtol=1e-3)


def test_what_is_rounded_under_scalify_is_the_data():
    def seen_of(exponent):
        x = ScaledArray(X, 2.0**exponent)
        return jax.jit(observe(scalify(lambda x: rounded(x, "x"))))(x)[1]["x"]

    middle, *others = (seen_of(e) for e in (0, -40, 40))
    assert float(middle["error_squares"]) > 0
    for exponent, other in zip((-40, 40), others, strict=True):
        assert all(other[field] == middle[field] for field in ("overflow", "underflow"))
        for field in ("error_squares", "sum_squares"):
            assert other[field] == middle[field] * 4.0**exponent


def test_no_name_no_statistics():
    result, seen = observe(jnp.sin)(X)
    np.testing.assert_array_equal(result, jnp.sin(X))
    assert dict(seen) == {}


def test_everything_happens_on_the_device():
    text = jax.jit(observe(lambda x: named(x))).lower(X).as_text()
    assert "callback" not in text and "custom_call" not in text
