"""Scale rules of higher-order primitives: calls are inlined, loops carry one scale a float carry.

A loop's stacked outputs may have another scale in each iteration. They keep one exponent an
iteration as long as only another loop reads them (the backward pass of a scan over layers does), so
saved activations are not rewritten between the two.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.interpreter import CALLED_JAXPR
from scalify_cli.core.scale import Scale
from scalify_cli.core.scaled_array import is_float
from scalify_cli.core.settle import settled
from scalify_cli.core.values import (
    Scaled,
    Uniform,
    exponent_of,
    plain,
    promote,
    unstack,
)


def call(name):
    """A call is its body, evaluated in place."""

    def rule(equation, *operands, run):
        return run(equation.params[name], operands)

    return rule


def scan(equation, *operands, run):
    """Every float carry is promoted: data and an exponent go round the loop."""
    params = equation.params
    count = params["num_carry"]
    first, last = params["num_consts"], params["num_consts"] + count
    consts = [_Input(unstacked(x)) for x in operands[:first]]
    init = [_carried(x) for x in operands[first:last]]
    xs = [_Input(x) for x in operands[last:]]
    stacked: list[_Output] = []

    def body(carry, slices):
        arguments = [x.open(x.arrays) for x in consts]
        arguments += [_open_carry(arrays) for arrays in carry]
        arguments += [x.slice(arrays) for x, arrays in zip(xs, slices, strict=True)]
        outputs = run(params["jaxpr"], arguments)
        stacked[:] = [_Output(x) for x in outputs[count:]]
        carry = [_carried(x, like) for x, like in zip(outputs[:count], carry, strict=True)]
        return carry, [x.arrays for x in stacked]

    carry, ys = lax.scan(
        settled(body),
        init,
        [x.arrays for x in xs],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    results = [_open_carry(arrays) for arrays in carry]
    return results + [y.gather(a, params["length"]) for y, a in zip(stacked, ys, strict=True)]


def remat(equation, *operands, run):
    """The body is traced anew under the scale rules, and stays rematerialised."""
    inputs = [_Input(unstacked(x)) for x in operands]
    results: list[_Output] = []

    def body(arguments):
        values = [x.open(arrays) for x, arrays in zip(inputs, arguments, strict=True)]
        outputs = run(jex.ClosedJaxpr(equation.params["jaxpr"], ()), values)
        results[:] = [_Output(x) for x in outputs]
        return [x.arrays for x in results]

    arguments = [x.arrays for x in inputs]
    traced = jax.make_jaxpr(settled(body))(arguments)
    params = {**equation.params, "jaxpr": without_consts(traced.jaxpr)}
    flat = p.remat_p.bind(*traced.consts, *jax.tree.leaves(arguments), **params)
    outputs = jax.tree.unflatten(jax.tree.structure([x.arrays for x in results]), flat)
    return [x.close(arrays) for x, arrays in zip(results, outputs, strict=True)]


def without_consts(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    """The same jaxpr with its constants as leading arguments."""
    return jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])


def unstacked(x: Any) -> Any:
    """x at one scale, if a loop stacked it."""
    return unstack(x) if isinstance(x, Scaled) else x


def _carried(x: Any, like: tuple | None = None) -> tuple:
    """A carry as arrays: data and an exponent for floats, in the form of ``like`` if given."""
    if not is_float(x) if like is None else len(like) == 1:
        return (plain(x),)
    x = promote(x)
    return x.data, jnp.asarray(exponent_of(x), jnp.int32)


def _open_carry(arrays: tuple) -> Any:
    return Scaled(arrays[0], Scale.unknown(arrays[1])) if len(arrays) == 2 else arrays[0]


class _Input:
    """A value that enters an inner trace: ``arrays`` are passed, the rest is closed over."""

    def __init__(self, value: Any):
        self.value = value
        self.arrays: tuple = () if isinstance(value, Uniform) else (value,)
        self.exponent = None
        if isinstance(value, Scaled):
            self.arrays = (value.data,) if value.stacked is None else (value.data, value.stacked)
            if value.scale is not None and not value.scale.static:
                self.exponent = value.scale.exponent()

    def slice(self, arrays: tuple) -> Any:
        """One iteration's part of a value that a loop runs over."""
        if isinstance(self.value, Uniform):
            return replace(self.value, shape=self.value.shape[1:])
        return self.open(arrays)

    def open(self, arrays: tuple) -> Any:
        """The value again, from arrays that belong to the inner trace."""
        if not isinstance(self.value, Scaled):
            return arrays[0] if arrays else self.value
        if len(arrays) == 2:
            return Scaled(arrays[0], Scale.unknown(arrays[1]))
        known = self.value.scale if self.exponent is None else Scale.unknown(self.exponent)
        return Scaled(arrays[0], known)


class _Output:
    """A value that leaves an inner trace: its arrays, and what is static about it."""

    def __init__(self, value: Any):
        self.uniform = value if isinstance(value, Uniform) else None
        self.scaled = isinstance(value, Scaled)
        self.arrays: tuple = () if self.uniform else (value,)
        if isinstance(value, Scaled):
            value = unstack(value)
            self.scale = value.scale
            unknown = value.scale is not None and not value.scale.static
            self.arrays = (value.data, exponent_of(value)) if unknown else (value.data,)

    def close(self, arrays: tuple) -> Any:
        """The value in the outer trace."""
        if not self.scaled:
            return self.uniform or arrays[0]
        return Scaled(arrays[0], Scale.unknown(arrays[1]) if len(arrays) == 2 else self.scale)

    def gather(self, arrays: tuple, length: int) -> Any:
        """The outputs of all iterations; one exponent an iteration where it was not static."""
        if self.uniform:
            return replace(self.uniform, shape=(length, *self.uniform.shape))
        if len(arrays) == 2:
            return Scaled(arrays[0], None, stacked=arrays[1])
        return self.close(arrays)


CALLS = {primitive: call(name) for primitive, name in CALLED_JAXPR.items()}
LOOPS = {p.scan_p: scan, p.remat_p: remat}
