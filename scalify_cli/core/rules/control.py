"""Scale rules of higher-order primitives: their bodies are evaluated again under the scale rules.

Calls are inlined. A loop carries one exponent beside each float, and branches agree on what they
return. A loop's stacked outputs may have another scale in each iteration: they keep one exponent an
iteration as long as only another loop reads them (the backward pass of a scan over layers does), so
saved activations are not rewritten between the two.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex
from jax.extend.core import primitives as p
from jax.sharding import PartitionSpec, Sharding

from scalify_cli.core.interpreter import CALLED_JAXPR, scan_counts, scan_with, switch_again
from scalify_cli.core.rules.boundary import (
    Form,
    Outside,
    Rows,
    State,
    common_form,
    gathered,
    joined,
    numbered,
    related,
    split,
    unstacked,
)
from scalify_cli.core.rules.definitions import PRIMITIVES, rewritten
from scalify_cli.core.rules.parallel import at_one_scale
from scalify_cli.core.settle import settled
from scalify_cli.core.values import Scaled, Uniform, bounded, plain, promote


def call(name: str) -> Callable:
    """A call is its body, evaluated in place; the shardings that it asks for are kept."""

    def rule(equation, *operands, run):
        params = equation.params
        inputs = map(_constrained, operands, params.get("in_shardings", operands))
        outputs = run(rewritten(params[name]), list(inputs))
        return list(map(_constrained, outputs, params.get("out_shardings", outputs)))

    return rule


def _constrained(x: Any, sharding: Any) -> Any:
    if not isinstance(sharding, Sharding):
        return x
    if isinstance(x, Scaled):
        return promote(x).with_data(lax.with_sharding_constraint(promote(x).data, sharding))
    return lax.with_sharding_constraint(plain(x), sharding)


def scan(equation, *operands, run):
    """Every float carry is promoted; data goes round the loop, with an exponent where it drifts."""
    params = equation.params
    first, count = scan_counts(equation)
    last = first + count
    state, rows = State(operands[first:last]), Rows(operands[last:])
    outside = Outside([*map(unstacked, operands[:first]), *state.kept, *rows.whole])
    forms: list[Form] = []

    def body(carry, slices):
        seen = outside.inside()
        values = state.joined(seen[first:last], carry)
        parts = rows.join(seen[last:], slices)
        outputs = run(params["jaxpr"], [*seen[:first], *values, *parts])
        forms[:], stacked = related(outputs[count:], outside)
        return state.split(state.advanced(values, outputs)), stacked

    start = state.split(state.initial)
    carry, stacked = scan_with(equation, settled(body), start, rows.arrays)
    return [*state.joined(state.kept, carry), *gathered(forms, stacked, params["length"])]


def while_loop(equation, *operands, run):
    """The carries are a scan's; the condition sees their true sizes."""
    params = equation.params
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    consts, state = list(map(unstacked, operands[:last])), State(operands[last:])
    tested = Outside([*consts[:first], *state.kept])
    used = Outside([*consts[first:], *state.kept])

    def holds(carry):
        seen = tested.inside()
        values = state.joined(seen[first:], carry)
        return run(params["cond_jaxpr"], [*seen[:first], *values])[0]

    def body(carry):
        seen = used.inside()
        values = state.joined(seen[last - first :], carry)
        outputs = run(params["body_jaxpr"], [*seen[: last - first], *values])
        return state.split(state.advanced(values, outputs))

    carry = lax.while_loop(settled(holds), settled(body), state.split(state.initial))
    return state.joined(state.kept, carry)


def cond(equation, which, *operands, run):
    """Each branch is traced anew; where their scales differ, an exponent is returned as well."""
    values = [unstacked(x) for x in operands]
    traced = [Body(closed, values, run) for closed in equation.params["branches"]]
    columns = zip(*(body.forms for body in traced), strict=True)
    forms = numbered(map(common_form, columns))

    def branch(body):
        return settled(lambda *arrays: split(forms, map(_bounded, forms, body(*arrays))))

    arguments = [plain(which), *traced[0].arguments]
    return joined(forms, switch_again(equation, arguments, list(map(branch, traced))))


def remat(equation, *operands, run):
    """The body is traced anew under the scale rules, and stays rematerialised."""
    closed = jex.ClosedJaxpr(equation.params["jaxpr"], ())
    body = Body(closed, [unstacked(x) for x in operands], run)
    jaxpr = without_consts(body.traced.jaxpr)
    params = {**equation.params, "jaxpr": jaxpr}
    return body.outputs(p.remat_p.bind(*body.traced.consts, *body.arguments, **params))


def shard_map(equation, *operands, run):
    """Data is sharded as the value was; its exponent is one for all shards, which may split even
    what has the same value on all of them otherwise.

    JAX does not track how shards differ: scales that are computed together would all vary.
    """
    params = equation.params
    mesh, manual = params["mesh"], params["newly_manual_axes"]
    axes = tuple(x for x in mesh.axis_names if x in manual and mesh.shape[x] > 1)  # in one order
    inputs, arguments = related([unstacked(x) for x in operands])
    forms: list[Form] = []

    def body(arrays):
        own = map(_lying_as, params["jaxpr"].invars, joined(inputs, arrays))
        outputs = run(jex.ClosedJaxpr(params["jaxpr"], ()), list(own))
        forms[:], arrays = related([at_one_scale(x, axes) for x in outputs])
        return arrays

    outputs = jax.shard_map(
        settled(body),
        mesh=mesh,
        in_specs=((list(params["in_specs"]), PartitionSpec()),),
        out_specs=(list(params["out_specs"]), PartitionSpec()),
        axis_names=manual,
        check_vma=False,
    )(arguments)
    return list(map(_lying_as, equation.outvars, joined(forms, outputs)))


def without_consts(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    """The same jaxpr with its constants as leading arguments."""
    return jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])


class Body:
    """A called jaxpr, traced anew on scaled values: flat arrays in, flat arrays out."""

    def __init__(self, closed: jex.ClosedJaxpr, values: list[Any], run: Callable):
        inputs, arguments = related(values)
        self.forms: list[Form] = []

        def body(arrays):
            self.forms, arrays = related(run(closed, joined(inputs, arrays)))
            return arrays

        self.traced, shape = jax.make_jaxpr(settled(body), return_shape=True)(arguments)
        self.arguments, self.result = jax.tree.leaves(arguments), jax.tree.structure(shape)

    def outputs(self, arrays: Any) -> list[Any]:
        """The results as values again."""
        return joined(self.forms, jax.tree.unflatten(self.result, arrays))

    def __call__(self, *arrays: Any) -> list[Any]:
        return self.outputs(jex.jaxpr_as_fun(self.traced)(*arrays))


def _lying_as(variable: Any, x: Any) -> Any:
    """A known number as large as a variable, and where it lies: one shard of it, or the whole."""
    return Uniform.like(variable.aval, x.value) if isinstance(x, Uniform) else x


def _bounded(form: Form, x: Any) -> Any:
    x = promote(x) if form.kind == "unknown" else x
    return x if form.kind != "unknown" or x.scale is None else bounded(x)


CALLS = {primitive.name: call(name) for primitive, name in CALLED_JAXPR.items()}
CALLS["custom_vmap_call"] = call("call")
LOOPS = {
    p.scan_p.name: scan,
    p.while_p.name: while_loop,
    p.cond_p.name: cond,
    p.remat_p.name: remat,
    "shard_map": shard_map,
    **PRIMITIVES,
}
"""By name, as some of the primitives are not public."""
