"""Functions that take several equations, found in jaxprs as ``jax.nn`` and models write them.

* *Activations and softmax*: where an opaque function is applied to a polynomial of one array, as in
  ``gelu``, ``silu``, ``softmax`` and ``logsumexp``, that array is made true once, so that all that
  follows, derivatives too, has scales known while tracing. A narrow dtype could not hold it.
* *Norms*: where squares are summed, what they are squares of is made true as well, outside of the
  function that sums them too: data far from its scale is further from it with every power.
* *Gates*: an array times a bounded function of itself (``gelu``, ``silu``), the square of what is
  positive (``relu²``) and a gate times another array (``swiglu``) keep the array's scale (Scalify,
  section 3.2.1).
* *Guards*: the ε of a norm or of Adam is added at the scale of what it guards, relative to its true
  value, so that ``x * rsqrt(var(x) + ε)`` has scale 1.
* *Steps of arithmetic*: what only arithmetic reads, and soon, keeps float32 data in place of 16-bit
  data, as inside a fused kernel: powers of data that has outgrown its scale are more than FP16
  holds, and a compiler that rounds every step of bfloat16 has more to do.

A pattern changes how a value is split, never the value.
"""

import copy
import math
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import cast, is_float, is_narrow, wide_dtype
from scalify_cli.core.interpreter import CALLED_JAXPR, is_variable, live_equations
from scalify_cli.core.rules.arithmetic import OPAQUE, RULES, SATURATING
from scalify_cli.core.rules.definitions import PRIMITIVES as DEFINITIONS
from scalify_cli.core.rules.families import in_float32
from scalify_cli.core.scale import ONE, Scale, maximum, minimum
from scalify_cli.core.values import Scaled, Uniform, at_scale, true_values

_SHAPES = {p.reshape_p, p.broadcast_in_dim_p, p.squeeze_p, p.convert_element_type_p}
_LINEAR = _SHAPES | {p.neg_p, p.copy_p, p.stop_gradient_p, p.transpose_p}
_POLYNOMIAL = {p.add_p, p.sub_p, p.integer_pow_p, p.square_p, p.max_p, p.reduce_max_p, p.select_n_p}
_BOUNDED = {p.tanh_p, p.logistic_p, p.erf_p, p.erfc_p}
_ROOTS = {p.rsqrt_p, p.sqrt_p}
_PRODUCTS, _SQUARES = {p.mul_p, p.div_p}, {p.integer_pow_p, p.square_p}
_CHOICES = {p.select_n_p, p.max_p, p.min_p}
_ARITHMETIC = _PRODUCTS | _SQUARES | _ROOTS | _CHOICES
_ARITHMETIC |= {p.add_p, p.sub_p, p.add_jaxvals_p, p.neg_p, p.abs_p, p.copy_p}
_WIDE = _ARITHMETIC | OPAQUE | SATURATING | {p.reduce_sum_p}  # computed in float32 anyway
_ELEMENTWISE = _SHAPES | RULES.keys()
_BODIES = {primitive.name: name for primitive, name in CALLED_JAXPR.items()} | {
    **{p.scan_p.name: "jaxpr", p.while_p.name: "body_jaxpr", p.cond_p.name: "branches"},
    **{p.remat_p.name: "jaxpr", "shard_map": "jaxpr", "custom_vmap_call": "call"},
}
"""Where a primitive has its program; its last operands are the program's."""
_GATES = ("silu", "swish", "gelu", "glu")
_LARGEST_GUARD = 2.0**-6
_NEAR = 16  # binades from 1 of a known scale that is as good
_HEADROOM, _WIDE_HEADROOM = 7, 24  # binades between the scale that a gate keeps and its own


class Patterns:
    """What is found in a jaxpr, and the scales met while it is evaluated."""

    @staticmethod
    def of(jaxpr: jex.Jaxpr) -> "Patterns":
        """For a new evaluation; what was found before is not looked for again."""
        patterns = copy.copy(_patterns(jaxpr))
        patterns.scales = {}
        return patterns

    def __init__(self, jaxpr: jex.Jaxpr):
        self.source: dict[Any, Any] = {}  # the variable that another is a polynomial of
        self.linear: dict[Any, Any] = {}  # ... a known multiple of
        self.bounded: dict[Any, Any] = {}  # ... a bounded function of
        self.square: dict[Any, Any] = {}  # ... the square of
        self.gate: dict[Any, Any] = {}  # the variable that a gate keeps the scale of
        self.positive: set[Any] = set()
        self.known: set[Any] = set()
        self.made_true: set[Any] = set()
        self.normed: set[Any] = set()
        self.scales: dict[Any, Scale] = {}
        equations = [e for e in live_equations(jaxpr) if e.outvars]
        for equation in equations:
            self._look_at(equation)
        self._find_guards(jaxpr, equations)
        self.steps = _steps(jaxpr, equations)
        self.made_true |= self.normed
        self.variables = jaxpr.invars
        self.watched = self.made_true | set(self.gate.values())

    def read(self, variable: Any, value: Any) -> Any:
        """A value as the equations after it see it."""
        if variable not in self.watched or not isinstance(value, Scaled) or value.scale is None:
            return value
        self.scales[variable] = value.scale
        near = value.scale.static and abs(value.scale.constant) <= _NEAR
        held = near or is_narrow(value.dtype) or variable not in self.made_true
        return (
            value if held else replace(value, data=cast(true_values(value), value.dtype), scale=ONE)
        )

    def widened(self, equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
        """The operands of a step of arithmetic in float32, or of what follows one."""
        if not self.steps:
            return operands
        scaled = [x for x in operands if isinstance(x, Scaled)]
        step = equation.outvars[0] in self.steps if equation.outvars else False
        wide = any(x in self.steps for x in equation.invars if is_variable(x))
        return [in_float32(x) for x in operands] if scaled and (step or wide) else operands

    def narrowed(self, equation: Any, outputs: Sequence[Any]) -> Sequence[Any]:
        """The outputs of an equation in their own dtypes, unless they are a step of arithmetic."""
        if not self.steps:
            return outputs
        pairs = zip(equation.outvars, outputs, strict=True)
        return [
            x.with_data(cast(x.data, var.aval.dtype))
            if isinstance(x, Scaled) and var not in self.steps
            else x
            for var, x in pairs
        ]

    def guarded(self, equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
        """The operands of an equation, a guard at the scale of what it guards."""
        scaled = [x for x in operands if isinstance(x, Scaled) and x.scale is not None]
        if id(equation) not in self.guards or not scaled or is_narrow(scaled[0].dtype):
            return operands
        scale = scaled[0].scale
        if scale is None or scale.static or any(abs(n) > 2 for _, n in scale.terms):
            return operands  # beside a fourth power it could lie beyond float32
        return [
            replace(scaled[0], data=x.data_at(scale)) if isinstance(x, Uniform) else x
            for x in operands
        ]

    def gated(self, equation: Any, outputs: Sequence[Any]) -> Sequence[Any]:
        """The outputs of an equation, a gate's at the scale that it keeps, as far as it can."""
        wanted = self.scales.get(self.gate.get(equation.outvars[0])) if outputs else None
        if wanted is None or not isinstance(outputs[0], Scaled) or outputs[0].scale is None:
            return outputs
        x, scale = outputs[0], outputs[0].scale
        room = _HEADROOM if is_narrow(equation.outvars[0].aval.dtype) else _WIDE_HEADROOM
        wanted = maximum([scale.shifted(-room), minimum([wanted, scale.shifted(room)])])
        return [replace(x, data=at_scale(x, wanted), scale=wanted), *outputs[1:]]

    def _look_at(self, equation: Any) -> None:
        primitive, out = equation.primitive, equation.outvars[0]
        inputs = [x for x in equation.invars if is_variable(x) and is_float(x.aval)]
        inputs = [x for x in inputs if x not in self.known]
        if not inputs:
            self.known.add(out)
        elif primitive in OPAQUE or primitive in SATURATING:
            self.made_true.update(self.source.get(x, x) for x in inputs)
            if primitive in _BOUNDED:
                self.bounded[out] = self.source.get(inputs[0], inputs[0])
        elif primitive in CALLED_JAXPR:
            name = _name(equation)
            if name in _GATES and len(inputs) == 1:
                self.gate[out] = inputs[0]
            elif name == "relu":
                self.positive.add(out)
            self._enter(equation)
        elif primitive.name in _BODIES:
            self._enter(equation)
        elif primitive in _LINEAR or (primitive in _PRODUCTS and len(inputs) == 1):
            self._follow(inputs[0], out)
        elif primitive in _POLYNOMIAL:
            self._combine(equation, inputs, out)
        elif primitive is p.mul_p:
            self._multiply(inputs[0], inputs[1], out)
        elif primitive is p.reduce_sum_p:
            x = inputs[0]
            self.source[out] = self.source.get(x, x)
            if x in self.square:  # a sum of squares is a norm
                self._norm(self.square[x])

    def _enter(self, equation: Any) -> None:
        """What a program inside takes the norm of is true outside already."""
        inner = equation.params[_BODIES[equation.primitive.name]]
        for body in inner if isinstance(inner, tuple) else (inner,):
            inside = _patterns(getattr(body, "jaxpr", body))
            pairs = zip(equation.invars[::-1], inside.variables[::-1], strict=False)
            for x, own in pairs if inside.normed else ():
                if own in inside.normed and is_variable(x):
                    self._norm(x)

    def _norm(self, x: Any) -> None:
        self.normed.add(self.source.get(x, x))

    def _follow(self, x: Any, out: Any) -> None:
        """``out`` is a known multiple of x."""
        self.source[out], self.linear[out] = self.source.get(x, x), self.linear.get(x, x)
        for found in (self.bounded, self.square):
            if x in found:
                found[out] = found[x]

    def _combine(self, equation: Any, inputs: Sequence[Any], out: Any) -> None:
        """``out`` is a polynomial of the variables ``inputs``."""
        sources = {self.source.get(x, x) for x in inputs}
        if len(sources) == 1:
            self.source[out] = sources.pop()
        if len(inputs) == 1 and inputs[0] in self.bounded:
            self.bounded[out] = self.bounded[inputs[0]]
        if equation.primitive in _SQUARES and equation.params.get("y", 2) == 2:
            self.square[out] = inputs[0]
            if inputs[0] in self.positive:
                self.gate[out] = inputs[0]
        if (
            equation.primitive is p.max_p
            and len(inputs) == 1
            and 0 in map(_number, equation.invars)
        ):
            self.positive.add(out)

    def _multiply(self, x: Any, y: Any, out: Any) -> None:
        """``out`` is a product of two variables."""
        if x is y:
            self.square[out] = x
        for one, other in ((x, y), (y, x)):
            if one in self.gate:
                self.gate[out] = one
            elif other in self.bounded and self.linear.get(one, one) is self.bounded[other]:
                self.gate[out] = self.bounded[other]

    def _find_guards(self, jaxpr: jex.Jaxpr, equations: Sequence[Any]) -> None:
        """Small numbers that are added to what is only divided by, or the argument of a root."""
        read = set(filter(is_variable, jaxpr.outvars))  # otherwise than that
        for e in reversed(equations):
            passes = e.primitive in _ROOTS or (e.primitive in _SHAPES and e.outvars[0] not in read)
            operands = e.invars[:1] if e.primitive is p.div_p else () if passes else e.invars
            read.update(filter(is_variable, operands))
        self.guards = {
            id(e)
            for e in equations
            if e.primitive is p.add_p
            and e.outvars[0] not in read
            and any(0 < _number(x) <= _LARGEST_GUARD for x in e.invars)
        }


_found: MutableMapping[jex.Jaxpr, Patterns] = WeakKeyDictionary()


def _patterns(jaxpr: jex.Jaxpr) -> Patterns:
    if jaxpr not in _found:
        _found[jaxpr] = Patterns(jaxpr)
    return _found[jaxpr]


def _steps(jaxpr: jex.Jaxpr, equations: Sequence[Any]) -> set[Any]:
    """16-bit results of arithmetic that only arithmetic, functions and sums read, soon.

    They are fused with what reads them; what lives on across a matmul stays narrow in memory.
    """
    made: dict[Any, int] = {}  # in which run of elementwise equations
    others, run = set(filter(is_variable, jaxpr.outvars)), 0
    for equation in equations:
        inputs = filter(is_variable, equation.invars)
        others.update(x for x in inputs if equation.primitive not in _WIDE or made.get(x) != run)
        out = equation.outvars[0]
        apart = equation.primitive.name in DEFINITIONS or equation.primitive in _ELEMENTWISE
        run += not apart and bool(out.aval.shape) and is_float(out.aval)
        short = is_float(out.aval) and wide_dtype(out.aval.dtype) != out.aval.dtype
        if equation.primitive in _ARITHMETIC and short:
            made[out] = run
    return made.keys() - others


def _number(x: Any) -> float:
    """The value of a literal; NaN for anything else."""
    known = isinstance(x, jex.Literal) and np.ndim(x.val) == 0 and is_float(x.val)
    return float(x.val) if known else math.nan


def _name(equation: Any) -> str:
    """The name of the function that an equation calls, through ``custom_jvp``."""
    inner = equation.params[CALLED_JAXPR[equation.primitive]].jaxpr.eqns
    first = equation.params.get("name") or (inner[0].params.get("name") if inner else "")
    return first or ""
