"""Scales needed at run time, computed many at once.

One by one they would be thousands of scalar operations, copied by XLA into every loop that reads
them. A program's exponents stand in one int32 vector instead, and what is asked for is a product of
it and a constant matrix.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend import core as jex

from scalify_cli.jaxprs.interpreter import bind, evaluate, is_variable, live_equations
from scalify_cli.jaxprs.meshes import here, varying_alike, varying_axes
from scalify_cli.jaxprs.tracing import new_trace
from scalify_cli.scales.powers import (
    BIAS,
    MAX_EXPONENT,
    MIN_EXPONENT,
    ZEROS,
    exponent_of_power,
    inverse_exp2,
)
from scalify_cli.scales.rules import RULES

_MOST_KEPT = 64
"""Exponents that a product gives again: of more, it would be most of the program's text."""


class Request:
    """A scale needed at run time, as a float32 factor.

    It is a parameter of an equation, which JAX hashes and keeps: each is one of its own.
    """

    def __init__(self, scale: Any):
        self.scale = scale
        self.sources = list({x: None for atom, _ in scale.terms for x in atom.sources})


def _type(first: Any, *_: Any, asked: Request) -> Any:
    dtype = jnp.dtype(jnp.float32)
    return first.update(dtype=dtype) if varying_axes(first) else ShapedArray((), dtype)


factor_p = jex.Primitive("factor")
factor_p.def_abstract_eval(_type)


def requested(scale: Any) -> Any:
    """A scale at run time, once it is settled."""
    request = Request(scale)
    arrays = [atom.array for atom in request.sources]
    return factor_p.bind(*varying_alike(arrays), asked=request)


def settled(f: Callable, shards: bool = False) -> Callable:
    """f with the scales that it asks for computed in batches, each when its first is needed.

    Args:
        shards: whether f is of one shard, and shards may differ in what it makes.
    """

    @functools.wraps(f)
    def run(*args: Any) -> Any:
        with new_trace(shards):
            closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        jaxpr = _in_rounds(closed.jaxpr)
        asked, leaves = _Requests(jaxpr), jax.tree.leaves(args)
        outputs = evaluate(jaxpr, closed.consts, leaves, asked.apply, on_value=asked.see)
        for equation in filter(_asks, closed.jaxpr.eqns):  # JAX's caches keep the parameters
            equation.params["asked"].scale = equation.params["asked"].sources = None
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


def _asks(equation: jex.JaxprEqn) -> bool:
    return equation.primitive is factor_p


def _in_rounds(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    """The same program: what no request that is left has to wait for comes first, so that as many
    as can be are answered together."""
    rounds: dict[Any, int] = {}
    placed, last = [], 0
    for equation in jaxpr.eqns:
        own = max((rounds.get(x, 0) for x in equation.invars if is_variable(x)), default=0)
        own = max(own + _asks(equation), last if equation.effects else 0)
        last = own if equation.effects else last
        rounds |= dict.fromkeys(equation.outvars, own)
        placed.append((own, equation))
    placed.sort(key=lambda pair: pair[0])
    return jaxpr.replace(eqns=[equation for _, equation in placed])


class _Requests:
    """The requests of a jaxpr that is evaluated in order."""

    def __init__(self, jaxpr: jex.Jaxpr):
        self.waiting = list(filter(_asks, live_equations(jaxpr)))
        self.sources = {x for e in self.waiting for x in e.invars if is_variable(x)}
        self.asked = {e.outvars[0] for e in self.waiting}
        self.values: dict[Any, Any] = {}  # of the sources, and the answers
        self.exponents: dict[Any, _Exponents] = defaultdict(_Exponents)  # by how shards differ

    def see(self, variable: Any, value: Any) -> Any:
        if variable in self.sources:
            self.values[variable] = value
        return value

    def apply(self, equation: jex.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        if not _asks(equation):
            asked = [is_variable(x) and x in self.asked for x in equation.invars]
            pairs = zip(asked, operands, strict=True)
            return bind(equation, [here(x) if answer else x for answer, x in pairs])
        [variable] = equation.outvars
        if variable not in self.values:
            self.compute()
        return [self.values[variable]]

    def compute(self) -> None:
        """All that can be computed by now."""
        ready = [e for e in self.waiting if all(map(self.known, e.invars))]
        self.waiting = [e for e in self.waiting if e not in ready]
        groups: dict[Any, list[Any]] = {}
        for e in ready:
            values = [
                here(x.val if isinstance(x, jex.Literal) else self.values[x]) for x in e.invars
            ]
            axes = varying_axes(e.outvars[0].aval)
            self.exponents[axes].given |= zip(e.params["asked"].sources, values, strict=True)
            groups.setdefault(axes, []).append(e)
        for axes, group in groups.items():
            answers = self.exponents[axes].compute([e.params["asked"] for e in group])
            self.values |= {e.outvars[0]: answers[e.params["asked"]] for e in group}

    def known(self, x: Any) -> bool:
        return not is_variable(x) or x in self.values


class _Exponents:
    """The int32 exponents of the atoms of a program, in one vector that grows as they are known.

    Its first element is 1, which constants are multiples of.
    """

    def __init__(self):
        self.given: dict[Any, Any] = {}
        self.place: dict[Any, int] = {}
        self.vector: Any = np.ones(1, np.int32)

    def compute(self, requests: Sequence[Request]) -> dict[Request, Any]:
        """What was asked for, in a few operations on vectors."""
        self.vector = here(self.vector)
        self._include([atom for atom in self.given if atom not in self.place])
        for atoms in self._levels(request.scale for request in requests):
            self._append(self._made(atoms), atoms)
        codes = self._sums([request.scale for request in requests], inverse=True)
        return dict(zip(requests, jnp.unstack(inverse_exp2(codes)), strict=True))

    def _include(self, atoms: Sequence[Any]) -> None:
        """Adds what came from outside: float32 scales and sizes, then int32 exponents."""
        for dtype, exponents in ((jnp.float32, exponent_of_power), (jnp.int32, lambda x: x)):
            group = [atom for atom in atoms if self.given[atom].dtype == dtype]
            if group:
                found = exponents(jnp.stack([self.given[atom] for atom in group]))
                sized = any(atom.is_size for atom in group)
                self._append(_held(found, group) if sized else found, group)

    def _append(self, new: Any, atoms: Sequence[Any]) -> None:
        self.place |= {atom: self.vector.size + i for i, atom in enumerate(atoms)}
        self.vector = lax.concatenate([self.vector, new], 0)

    def _levels(self, scales: Iterable[Any]) -> list[list[Any]]:
        """The atoms still to be made of others, each level from those before it; a level has one
        kind of rule."""
        found: dict[Any, None] = {}
        waiting = [atom for scale in scales for atom, _ in scale.terms]
        while waiting:
            atom = waiting.pop()
            if atom not in found and atom not in self.place:
                found[atom] = None
                waiting += [below for scale in atom.operands for below, _ in scale.terms]
        levels: dict[Any, list[Any]] = {}
        for atom in sorted(found, key=lambda atom: (atom.depth, atom.rule, atom.serial)):
            levels.setdefault((atom.depth, atom.rule), []).append(atom)
        return list(levels.values())

    def _made(self, atoms: Sequence[Any]) -> Any:
        """The exponents of atoms that one rule makes."""
        count = max(len(atom.operands) for atom in atoms)
        padded = [x.operands + x.operands[:1] * (count - len(x.operands)) for x in atoms]
        columns = [scale for scales in zip(*padded, strict=True) for scale in scales]
        return RULES[atoms[0].rule].of_rows(self._sums(columns).reshape(count, -1))

    def _sums(self, scales: Sequence[Any], inverse: bool = False) -> Any:
        """The exponents of some scales: one product of the vector and a constant matrix.

        It gives the vector anew too, unless that is long, because XLA computes again in each reader
        what is no product.

        Args:
            inverse: whether the codes of ``inverse_exp2`` are wanted.
        """
        known, wanted = self.vector.size, len(scales)
        kept = known if known <= _MOST_KEPT else 0
        matrix = np.zeros((known, kept + wanted), np.int32)
        matrix[:, :kept] = np.eye(known, kept)
        for column, scale in enumerate(scales, kept):
            matrix[0, column] = scale.constant
            for atom, n in scale.terms:
                matrix[self.place[atom], column] = n
        if inverse:
            matrix[:, kept:] *= -1
            matrix[0, kept:] += BIAS + 1
        vector, sums = lax.split(lax.dot(self.vector, matrix), (kept, wanted))
        self.vector = vector if kept else self.vector
        return sums


def _held(exponents: Any, atoms: Sequence[Any]) -> Any:
    """Those of sizes within their bounds, and of zeros at the scale of those."""
    least = np.asarray([atom.bounds[0] for atom in atoms], np.int32)
    zeros = np.maximum(least, np.int32(ZEROS))
    found = lax.clamp(least, exponents, np.int32(MAX_EXPONENT))
    return lax.select(exponents >= MIN_EXPONENT, found, zeros)
