"""Scale rules of higher-order primitives: their bodies are evaluated again under the scale rules.

Calls are inlined; other bodies are traced anew. They see the scales of what is outside as they are,
for scales are expressions and not arrays. What leaves a body leaves with its scale where that is
made of scales from outside; otherwise as true values that are measured there: a loop that squares
its carry would square its scale too. So a loop's stacked outputs, saved activations among them, are
as narrow as plain JAX's where their scales are known.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex
from jax.extend.core import primitives as p
from jax.sharding import PartitionSpec, Sharding

from scalify_cli.core.dtypes import cast, is_float, is_narrow
from scalify_cli.core.values import (
    Scaled,
    Uniform,
    held,
    measured,
    plain,
    promote,
    register,
    scale_array,
    sized,
    stored,
    times,
    true,
)
from scalify_cli.jaxprs.calls import CALLED_JAXPR, choice, scan_counts, scan_with, switch_again
from scalify_cli.jaxprs.meshes import varying_as, varying_axes
from scalify_cli.jaxprs.tracing import level
from scalify_cli.scales.powers import MAX_EXPONENT
from scalify_cli.scales.scale import ONE, Scale, maximum, read_as, sources_of
from scalify_cli.scales.settle import settled

UNKNOWN, OWN = Scale(1 << 20), Scale(1 << 21)
"""In place of a scale that only the inside of a body knows; and that each iteration has its own."""


def leaving(x: Any, alone: bool = True, stacked: bool = False) -> tuple[Any, Any]:
    """What is known outside of a value that leaves a body, and its array.

    Args:
        alone: whether nothing else must be of the array's type.
        stacked: whether it is one of many: a narrow one then leaves with a scale of its own.

    Returns:
        A ``Scaled`` without data, None for what is no float; and the array.
    """
    if not is_float(x):
        return None, x
    loose, x = not isinstance(x, Scaled) or x.loose, promote(x)
    role = x.role if isinstance(x.role, str) else ""  # others are of arrays that stay inside
    x = sized(replace(x, loose=loose, role=role))
    known, narrow = x.scale is None or x.scale.level < level(), is_narrow(x.dtype)
    if narrow and stacked and x.scale and not known:
        x = stored(held(x))
        return replace(x, data=None, scale=OWN), (x.data, scale_array(x))
    x = stored(x) if narrow and known and alone else x
    if not alone or x.unit.level == level():
        x = true(x)
    return replace(x, data=None, scale=x.scale if known else UNKNOWN), x.data


def _left(values: Sequence[Any], forms: list[Any], **options: bool) -> list[Any]:
    """The arrays that leave a body, and in ``forms`` what is known of them outside."""
    pairs = [leaving(x, **options) for x in values]
    forms[:] = [form for form, _ in pairs]
    return [array for _, array in pairs]


def arrived(form: Any, array: Any) -> Any:
    """The value again, outside."""
    if form is None or form.scale != UNKNOWN:
        return array if form is None else form.with_data(array)
    return replace(measured(array, form.dtype, form.unit), loose=form.loose)


def _apart(arrays: Sequence[Any]) -> tuple[list[Any], dict[tuple, Any]]:
    """The arrays that leave an iteration, and the scales of those that have their own: in one
    array for all data that differs along the same axes."""
    scales: dict[tuple, list[Any]] = {}
    for data, scale in (x for x in arrays if isinstance(x, tuple)):
        scales.setdefault(_axes(data), []).append(varying_as(scale, data))
    data = [x[0] if isinstance(x, tuple) else x for x in arrays]
    return data, {axes: jnp.stack(group) for axes, group in scales.items()}


def _axes(data: Any) -> tuple:
    return tuple(sorted(varying_axes(data)))


def _joined(forms: Sequence[Any], stacks: Sequence[Any], scales: dict[tuple, Any]) -> list[Any]:
    """The values again, after the loop; a stack of data with scales of their own at the largest."""

    def each(scales: Any) -> Iterator[tuple[Any, Any]]:
        largest = lax.reduce_max(scales, (0,))
        above = lax.min(lax.div(largest[None], scales), np.float32(2.0**MAX_EXPONENT))
        return zip(jnp.unstack(largest), jnp.unstack(above, axis=1), strict=True)

    own = {axes: each(group) for axes, group in scales.items()}

    def value(form: Any, data: Any) -> Any:
        if form is None or form.scale != OWN:
            return arrived(form, data)
        most, by = next(own[_axes(data)])
        scale = Scale.unknown(most)
        rows = lax.div(cast(data, jnp.float32), lax.broadcast_in_dim(by, data.shape, (0,)))
        return replace(form, data=rows, scale=scale, unit=scale)

    return list(map(value, forms, stacks))


class Carry:
    """What goes round a loop.

    A wide float goes as true values, and keeps the scale that it enters with: it is the same in
    each iteration then. A narrow one goes with its scale, and is measured where an iteration
    changes its scale, as is a wide one that enters as zeros.
    """

    def __init__(self, initial: Any):
        self.value = promote(initial) if is_float(initial) else None
        self.narrow = self.value is not None and is_narrow(self.value.dtype)
        self.scale = self.value and self.value.scale
        self.form: Any = None
        self.start = self.leave(initial)

    def inside(self, arrays: Any) -> Any:
        """The value at the start of an iteration."""
        if self.value is None:
            return arrays
        if self.narrow:
            self.scale = Scale.unknown(arrays[1])
            return Scaled(arrays[0], self.scale)
        if self.value.scale is None:
            return measured(arrays, self.value.dtype)
        return Scaled(arrays, self.value.scale.vague(), ONE)

    def leave(self, x: Any) -> Any:
        """Its arrays at the end of an iteration."""
        if not self.narrow:
            self.form, array = leaving(x, alone=False)
            return array
        x = promote(x)
        x = stored(held(x) if self._keeps(x) else measured(_true_data(x), x.dtype))
        return x.data, varying_as(scale_array(x), x.data)

    def _keeps(self, x: Scaled) -> bool:
        """Whether its size is that at the start of the iteration."""
        own, new = self.scale, x.scale
        if own is None or new is None or own != new:
            return False
        return (own.degree, own.drift) == (new.degree, new.drift)

    def after(self, arrays: Any) -> Any:
        """The value that the loop ends with."""
        zeros = self.value and self.value.scale is None and not self.narrow
        return arrived(replace(self.form, loose=False), arrays) if zeros else self.inside(arrays)


def _true_data(x: Scaled) -> Any:
    """Data in the unit 1, by two products: float32 may not hold the unit."""
    unit = ONE if x.scale is None else x.unit
    return times(times(register(x), Scale(unit.constant)), Scale(0, unit.terms))


def call(name: str) -> Callable:
    """A call is its body, evaluated in place; the shardings that it asks for are kept."""

    def rule(equation, *operands, run):
        params = equation.params
        inputs = map(_constrained, operands, params.get("in_shardings", operands))
        outputs = run(params[name], list(inputs))
        return list(map(_constrained, outputs, params.get("out_shardings", outputs)))

    return rule


def linear_solve(equation, *operands, run):
    """What solves is a program; the others are for derivatives, which have been taken."""
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
        stacked = _left(outputs[count:], forms, stacked=True)
        return list(map(Carry.leave, carries, outputs)), _apart(stacked)

    start = [own.start for own in carries]
    carry, stacked = scan_with(equation, settled(body), start, list(map(_array, rows)))
    return [*map(Carry.after, carries, carry), *_joined(forms, *stacked)]


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
            return _left(run(closed, list(operands)), forms[-1], alone=False)

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
    return replace(forms[0], scale=scale, loose=loose)


def remat(equation, *operands, run):
    """The body is traced anew under the scale rules, and stays rematerialised."""
    closed = jex.ClosedJaxpr(equation.params["jaxpr"], ())
    forms: list[Any] = []

    def body():
        return _left(run(closed, list(operands)), forms)

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
            return _left(run(closed, list(own)), forms)

    outputs = jax.shard_map(
        settled(body, shards=True),
        mesh=params["mesh"],
        in_specs=(list(params["in_specs"]), PartitionSpec()),
        out_specs=list(params["out_specs"]),
        axis_names=params["newly_manual_axes"],
        check_vma=False,
    )(list(map(_array, operands)), [x.array for x in sources])
    return list(map(arrived, forms, outputs))


def _shard(variable: Any, x: Any, data: Any) -> Any:
    """A shard of a value; a known number is as large as the variable, and lies where it does."""
    if isinstance(x, Uniform):
        return Uniform.like(variable.aval, x.value)
    return x.with_data(data) if isinstance(x, Scaled) else data


CALLS = {primitive.name: call(name) for primitive, name in CALLED_JAXPR.items()}
CALLS |= {"custom_vmap_call": call("call"), "custom_linear_solve": linear_solve}
LOOPS = {
    p.scan_p.name: scan,
    p.while_p.name: while_loop,
    p.cond_p.name: cond,
    p.remat_p.name: remat,
    "shard_map": shard_map,
}
"""By name, as some of the primitives are not public."""
