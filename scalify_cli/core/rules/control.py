"""Scale rules of higher-order primitives: their bodies are evaluated again under the scale rules.

Calls are inlined; other bodies are traced anew. They see the scales of what is outside as they are,
for scales are expressions and not arrays.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex
from jax.extend.core import primitives as p
from jax.sharding import PartitionSpec, Sharding

from scalify_cli.core.dtypes import is_narrow
from scalify_cli.core.rules.derivatives import DIFFERENTIATED, with_derivative
from scalify_cli.core.rules.edges import UNKNOWN, Carry, apart, arrived, joined, left
from scalify_cli.core.storage import plain
from scalify_cli.core.values import Scaled, Uniform, nonzero
from scalify_cli.jaxprs.calls import CALLED_JAXPR, choice, scan_counts, scan_with, switch_again
from scalify_cli.scales.choices import maximum
from scalify_cli.scales.scale import ONE, read_as, sources_of
from scalify_cli.scales.settle import settled


def call(name: str) -> Callable:
    """A call is its body, evaluated in place; the shardings that it asks for are kept."""

    def rule(equation, *operands, run):
        params = equation.params
        inputs = map(_constrained, operands, params.get("in_shardings", operands))
        outputs = run(params[name], list(inputs))
        return list(map(_constrained, outputs, params.get("out_shardings", outputs)))

    return rule


def own_derivative(rule: Callable) -> Callable:
    """The rule of a call that brings its derivative."""
    return lambda equation, *operands, run: with_derivative(
        equation, operands, rule(equation, *operands, run=run)
    )


def linear_solve(equation, *operands, run):
    """What solves is a program; the others are for derivatives."""
    lengths = equation.params["const_lengths"]
    first = lengths.matvec + lengths.vecmat
    inputs = [*operands[first : first + lengths.solve], *operands[sum(lengths) :]]
    return run(equation.params["jaxprs"].solve, inputs)


def _constrained(x: Any, sharding: Any) -> Any:
    if not isinstance(sharding, Sharding):
        return x
    if isinstance(x, Scaled):
        return x.with_data(lax.with_sharding_constraint(x.data, sharding))
    return lax.with_sharding_constraint(plain(x), sharding)


def scan(equation, *operands, run):
    """Rows have the scale of the whole."""
    first, count = scan_counts(equation)
    last = first + count
    carries, rows = list(map(Carry, operands[first:last])), operands[last:]
    forms: list[Any] = []

    def body(carry, slices):
        values = map(Carry.inside, carries, carry)
        parts = map(_row, rows, slices)
        inputs = [*operands[:first], *values, *parts]
        outputs = run(equation.params["jaxpr"], inputs, carries=count)
        stacked = left(outputs[count:], forms, stacked=True)
        return list(map(Carry.leave, carries, outputs)), apart(stacked)

    start = [own.start for own in carries]
    carry, stacked = scan_with(equation, settled(body), start, list(map(_array, rows)))
    return [*map(Carry.after, carries, carry), *joined(forms, *stacked)]


def _array(x: Any) -> Any:
    """The array of a value; None where there is none."""
    return x.data if isinstance(x, Scaled) else None if isinstance(x, Uniform) else x


def _row(x: Any, data: Any) -> Any:
    if isinstance(x, Uniform):
        return x.of_shape(x.shape[1:], *(x.sharding.spec[1:] if x.sharding else ()))
    return x.with_data(data) if isinstance(x, Scaled) else data


def while_loop(equation, *operands, run):
    """The carries are a scan's. In each iteration they are rounded before anything reads them, and
    so is what is added up: what waits until nothing changes would wait forever. Where the condition
    is an array that ``vmap`` made, each element keeps its carries once its own loop has ended."""
    params = equation.params
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    carries = list(map(Carry, operands[last:]))
    [holding] = params["cond_jaxpr"].out_avals

    def condition(values):
        return plain(run(params["cond_jaxpr"], [*operands[:first], *values], rounds=True)[0])

    def holds(carry):
        which = condition(map(Carry.inside, carries, carry))
        return lax.reduce_or(which, range(holding.ndim)) if holding.ndim else which

    def body(carry):
        values = list(map(Carry.inside, carries, carry))
        outputs = run(params["body_jaxpr"], [*operands[first:last], *values], rounds=True)
        if holding.ndim:
            chosen = choice(holding, params["body_jaxpr"].out_avals)
            outputs = run(chosen, [condition(values), *values, *outputs])
        return list(map(Carry.leave, carries, outputs))

    carry = lax.while_loop(settled(holds), settled(body), [own.start for own in carries])
    return list(map(Carry.after, carries, carry))


def cond(equation, which, *operands, run):
    """The scale of what branches return is the largest of theirs."""
    forms: list[list[Any]] = []

    def branch(closed):
        def body():
            forms.append([])
            return left(run(closed, list(operands)), forms[-1], alone=False)

        return settled(body)

    branches = list(map(branch, equation.params["branches"]))
    arrays = switch_again(equation, [plain(which)], branches)
    return list(map(arrived, map(_joint, *forms), arrays))


def _joint(*forms: Any) -> Any:
    """What is known of the result of one of several branches; a narrow one has one scale only,
    which says nothing of the zeros of another."""
    scales = [form.scale for form in forms if form is not None and form.scale is not None]
    if not scales:
        return forms[0]
    same, loose = len(set(scales)) == 1, all(form.loose for form in forms)
    known = UNKNOWN not in scales and (same or not is_narrow(forms[0].dtype))
    scale, sure = maximum(scales), same and len(scales) == len(forms)
    scale = UNKNOWN if not known else scale if sure else scale.vague()
    role = forms[0].role if len({form.role for form in forms}) == 1 else nonzero(forms)
    return replace(forms[0], scale=scale, loose=loose, role=role)


def remat(equation, *operands, run):
    """The body is traced anew under the scale rules, and stays rematerialised."""
    closed = jex.ClosedJaxpr(equation.params["jaxpr"], ())
    forms: list[Any] = []

    def body():
        return left(run(closed, list(operands)), forms)

    traced = jax.make_jaxpr(settled(body))()  # what it reads from outside are its constants
    inner = traced.jaxpr.replace(constvars=[], invars=traced.jaxpr.constvars)
    arrays = p.remat_p.bind(*traced.consts, **{**equation.params, "jaxpr": inner})
    return list(map(arrived, forms, arrays))


def shard_map(equation, *operands, run):
    """Data is sharded as the value was. JAX does not track how shards differ: scales that are
    computed together would all vary."""
    params = equation.params
    closed = jex.ClosedJaxpr(params["jaxpr"], ())
    forms: list[Any] = []
    scaled = [x for x in operands if isinstance(x, Scaled)]
    sources = sources_of(scale for x in scaled for scale in (x.scale or ONE, x.unit))

    def body(arrays, exponents):
        own = map(_shard, params["jaxpr"].invars, operands, arrays)
        with read_as(sources, exponents):
            return left(run(closed, list(own)), forms)

    mapped = jax.shard_map(
        settled(body, shards=True),
        mesh=params["mesh"],
        in_specs=(list(params["in_specs"]), PartitionSpec()),
        out_specs=list(params["out_specs"]),
        axis_names=params["newly_manual_axes"],
        check_vma=False,
    )
    whole = set(params["newly_manual_axes"]) == set(params["mesh"].axis_names)
    mapped = mapped if whole else jax.jit(mapped)  # which alone splits along some of the axes only
    outputs = mapped(list(map(_array, operands)), [x.array for x in sources])
    return list(map(arrived, forms, outputs))


def _shard(variable: Any, x: Any, data: Any) -> Any:
    """A shard of a value; a known number is as large as the variable, and lies where it does."""
    if isinstance(x, Uniform):
        return Uniform.like(variable.aval, x.value)
    return x.with_data(data) if isinstance(x, Scaled) else data


CALLS = {primitive.name: call(name) for primitive, name in CALLED_JAXPR.items()}
CALLS |= {"custom_vmap_call": call("call"), "custom_linear_solve": linear_solve}
CALLS |= {name: own_derivative(CALLS[name]) for name in DIFFERENTIATED}
LOOPS = {
    p.scan_p.name: scan,
    p.while_p.name: while_loop,
    p.cond_p.name: cond,
    p.remat_p.name: remat,
    "shard_map": shard_map,
}
"""By name, as some of the primitives are not public."""
