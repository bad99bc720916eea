"""``trace`` lists the equations of a scalified function, with what their scales and data were."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli import as_scaled, scalify, trace, unscale, with_precision
from scalify_cli.precision import load_precision

X = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)


def rows_of(f, *args):
    """Rows by primitive; the last one of a name wins."""
    return {row.primitive: row for row in trace(f, *args).rows}


def line_of(f, text: str) -> str:
    """``path:line`` of the line of f that holds the text."""
    lines, first = inspect.getsourcelines(f)
    (number,) = [i for i, line in enumerate(lines) if text in line]
    return f"{Path(__file__).resolve()}:{first + number}"


def network(x):
    with jax.named_scope("block"):
        y = x * x
    return jnp.tanh(y).sum()


def test_a_row_says_what_where_how_and_how_large():
    rows = trace(network, as_scaled(X, 2.0**-20)).rows
    assert [row.primitive for row in rows] == ["mul", "tanh", "reduce_sum"]
    mul, tanh, total = rows
    assert (mul.rule, tanh.rule, total.rule) == ("product", "opaque", "sums")
    assert (mul.shape, mul.dtype, mul.scope) == ((3, 4), jnp.float32, "block")
    assert mul.source == line_of(network, "x * x")
    assert (mul.kind, mul.scale) == ("run time", (-40, -40))
    assert (tanh.kind, tanh.scale, total.scale) == ("static", (0, 0), (1, 1))


def test_the_data_is_what_scalify_computes():
    x = as_scaled(X, 2.0**-20)
    y = scalify(lambda x: x * x)(x)
    row = rows_of(lambda x: x * x, x)["mul"]
    expected = np.log2(np.sqrt(np.mean(np.square(np.float64(y.data)))))
    assert row.data == pytest.approx((expected, expected), rel=1e-6)
    assert row.drift == pytest.approx(expected, rel=1e-6)


def stack(x):
    def layer(x, _):
        return x * x, x[0]

    return lax.scan(layer, x, None, length=3)


def test_equations_in_a_loop_are_listed_once_with_the_range_over_its_iterations():
    rows = trace(stack, as_scaled(X.astype(np.float16), 0.5)).rows
    (mul,) = [row for row in rows if row.primitive == "mul"]
    assert (mul.depth, mul.scale) == (1, (-2, 8))
    assert mul.source == line_of(stack, "x * x")
    carry, stacked = [row for row in rows if row.primitive == "scan"]
    assert (carry.depth, carry.scale, stacked.scale) == (0, (8, 8), (4, 4))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_equations_of_inner_programs_are_listed(wrap):
    def f(x):
        return wrap(lambda y: y * y)(jnp.abs(x))

    row = rows_of(f, as_scaled(X, 0.25))["mul"]
    assert (row.depth, row.scale) == (1, (-4, -4))


def test_a_primitive_without_a_rule_is_marked():
    def f(x):
        return jnp.linalg.cholesky(x @ x.T) @ x

    table = trace(f, as_scaled(X))
    assert [row.primitive for row in table.fallbacks] == ["cholesky"]
    assert "! fallback" in str(table)
    assert str(table).endswith("1 without a rule: cholesky")


@pytest.mark.parametrize(
    ("f", "primitive"),
    [
        (lambda x: jnp.flip((x / 2) * x) - x, "mul"),
        (lambda x: (x / 2) * x - x, "sub"),  # the product is in float32 until then
    ],
)
def test_the_equation_that_overflows_is_the_worst(f, primitive):
    x = as_scaled(X.astype(np.float16) * np.float16(2.0**9), 1.0)
    table = trace(f, x)
    first = table.worst(1).rows[0]
    assert (first.primitive, first.nonfinite, first.drift) == (primitive, 12, float("inf"))
    assert "inf/nan" in str(table.worst(1))


def test_any_scale_is_named():
    row = rows_of(lambda x: jnp.abs(x * 0.0), as_scaled(X))["abs"]
    assert (row.kind, row.scale, row.data) == ("any", None, (-np.inf, -np.inf))


def test_values_without_a_scale_are_listed_without_one():
    row = rows_of(lambda x, n: (x * x, n + n), as_scaled(X), np.int32(3))["add"]
    assert (row.rule, row.kind, row.scale, row.data) == ("unscaled", "", None, None)


def test_shapes_alone_give_the_static_scales():
    shapes = jax.eval_shape(lambda x: x, as_scaled(X, 0.25))
    rows = rows_of(network, shapes)
    assert (rows["mul"].kind, rows["mul"].scale, rows["mul"].data) == ("run time", None, None)
    assert rows["tanh"].scale == (0, 0)


def test_numbers_and_keywords_are_passed_as_they_are():
    def f(x, power, *, negate=False):
        return -(x**power) if negate else x**power

    names = [row.primitive for row in trace(f, as_scaled(X), 3, negate=True).rows]
    assert names == ["integer_pow", "neg"]


def test_backward_passes_name_the_forward_line():
    rows = trace(jax.grad(network), as_scaled(X)).rows
    backward = [row for row in rows if row.scope.startswith("transpose")]
    assert line_of(network, "x * x") in {row.source for row in backward}


def projection(x):
    return jnp.sum(x @ x.T)


def test_lines_survive_the_other_transforms():
    rounded = with_precision(projection, load_precision("fp8"))
    rows = trace(jax.grad(rounded), as_scaled(X)).rows
    casts = [row for row in rows if row.primitive == "saturating_cast"]
    assert len(casts) >= 3
    assert {row.source for row in casts} == {line_of(projection, "x @ x.T")}


def test_the_table_is_aligned():
    lines = str(trace(stack, as_scaled(X.astype(np.float16), 0.5))).splitlines()
    assert lines[0].split() == ["equation", "output", "scale", "data", "rule", "source", "scope"]
    start = lines[0].index("rule")
    rules = {line[start:].split()[0] for line in lines[1:-1]}
    assert {"scan", "product"} <= rules
    assert "2^-2..2^8" in "\n".join(lines)


def test_unscale_is_not_needed_to_trace_a_training_step():
    def update(w, x):
        return w - 2.0**-7 * jax.grad(lambda w: jnp.mean((x @ w) ** 2))(w)

    w = as_scaled(np.ones((4, 2), np.float32))
    rows = trace(update, w, as_scaled(X)).rows
    assert rows[-1].scale == (0, 0)
    assert np.isfinite(unscale(scalify(update)(w, as_scaled(X)))).all()
