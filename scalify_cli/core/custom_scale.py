"""``custom_scale``: a scale rule of one's own for a function (Scalify, section 3.2.1).

It composes with ``grad``, ``vmap`` and ``jit`` as the function itself does; where the function is
differentiated, the primal keeps its rule and the derivative follows from the function's code.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jax.interpreters import ad, batching, mlir

from scalify_cli.core.dtypes import cast, wide_dtype
from scalify_cli.core.ruled_primitive import RuledPrimitive
from scalify_cli.core.scaled_array import SMALLEST_SCALE, ScaledArray, is_scaled
from scalify_cli.core.storage import enter, held, leave, plain
from scalify_cli.core.values import Scaled


class custom_scale:
    """Decorates a function; give its rule with ``def_rule``.

    The rule takes the function's array arguments (``ScaledArray`` where scaled) and returns its
    result as ``ScaledArray``. Keyword arguments are static and go to both.

    Raises:
        TypeError: the rule's result is of another structure, shape or dtype than the function's.
    """

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)
        self.function = function
        self.rule: Callable | None = None
        self.traced = False

    def def_rule(self, rule: Callable) -> Callable:
        """Set the rule; usable as a decorator. What was compiled without it is forgotten."""
        self.rule = rule
        if self.traced:
            jax.clear_caches()
        return rule

    def __call__(self, *args: Any, **static: Any) -> Any:
        self.traced = True
        function = functools.partial(self.function, **static)
        if self.rule is None:
            return function(*args)
        leaves, structure = jax.tree.flatten(args, is_leaf=is_scaled)
        flat = lambda *xs: function(*jax.tree.unflatten(structure, xs))  # noqa: E731
        closed, shape = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        rule = _Rule(functools.partial(self.rule, **static), structure, jax.tree.structure(shape))
        outputs = custom_scale_p.bind(*leaves, call=closed, rule=rule)
        return jax.tree.unflatten(rule.outputs, outputs)


class _Rule:
    """A rule over flat arguments, with the structures it must be called and answer with."""

    def __init__(self, function: Callable, arguments: Any, outputs: Any):
        self.function, self.arguments, self.outputs = function, arguments, outputs

    def __call__(self, *flat: Any) -> list[Any]:
        result = self.function(*jax.tree.unflatten(self.arguments, flat))
        leaves, structure = jax.tree.flatten(result, is_leaf=is_scaled)
        if structure != self.outputs:
            raise TypeError(f"the scale rule returned {structure}, not {self.outputs}.")
        return leaves


def _scale_rule(equation: Any, *operands: Any) -> list[Any]:
    scales = {}

    def argument(x: Any) -> Any:
        if not isinstance(x, Scaled) or x.loose:
            return plain(x)
        x = held(x)
        array = leave(x)
        scales[id(array.scale)] = (x.scale, array.scale)
        return array

    def result(x: Any) -> Any:
        if isinstance(x, ScaledArray) and id(x.scale) in scales:
            return Scaled(x.data, scales[id(x.scale)][0])
        return enter(x)

    answers = equation.params["rule"](*map(argument, operands))
    outputs = [x if is_scaled(x) else jnp.asarray(x) for x in answers]
    for variable, x in zip(equation.outvars, outputs, strict=True):
        kind, wanted = jax.typeof(x.data if isinstance(x, ScaledArray) else x), variable.aval
        if (kind.shape, kind.dtype) != (wanted.shape, wanted.dtype):
            raise TypeError(f"the scale rule returned {kind}, not {wanted}.")
    return list(map(result, outputs))


def _batched(args: Any, axes: Any, *, call: Any, rule: Any) -> Any:
    def data_axes(x, axis):
        return ScaledArray.tree_unflatten(None, (axis, None)) if is_scaled(x) else axis

    def mapped(*flat):
        inputs = tuple(data_axes(x, axis) for x, axis in zip(flat, axes, strict=True))
        outputs = jax.vmap(rule.__call__, inputs)(*flat)
        return [_at_one_scale(x) if is_scaled(x) else x for x in outputs]

    function = jax.vmap(jex.jaxpr_as_fun(call), axes, 0)
    structures = (0,) * len(args), [0] * len(call.out_avals)
    flat_rule = _Rule(mapped, *map(jax.tree.structure, structures))
    outputs = custom_scale_p.bind(*args, call=jax.make_jaxpr(function)(*args), rule=flat_rule)
    return outputs, [0] * len(outputs)


def _at_one_scale(x: ScaledArray) -> ScaledArray:
    """A batch at the largest scale of its elements."""
    largest = jnp.max(x.scale, initial=SMALLEST_SCALE)
    share = jnp.expand_dims(x.scale / largest, range(1, x.data.ndim))
    wide = cast(x.data, wide_dtype(x.dtype)) * share
    return ScaledArray(cast(wide, x.dtype), largest)


def _jvp(primals: Any, tangents: Any, *, call: Any, rule: Any) -> Any:
    tangents = tuple(ad.instantiate_zeros(t) for t in tangents)
    outputs = custom_scale_p.bind(*primals, call=call, rule=rule)
    _, derivative = jax.jvp(jex.jaxpr_as_fun(call), tuple(primals), tangents)
    return outputs, derivative


def _called(*args: Any, call: Any, rule: Any) -> list[Any]:
    return jex.jaxpr_as_fun(call)(*args)


custom_scale_p = RuledPrimitive("custom_scale")
custom_scale_p.multiple_results = True
custom_scale_p.scale_rule = _scale_rule
custom_scale_p.def_impl(_called)
custom_scale_p.def_abstract_eval(lambda *_, call, rule: call.out_avals)
mlir.register_lowering(custom_scale_p, mlir.lower_fun(_called, multiple_results=True))
batching.primitive_batchers[custom_scale_p] = _batched
ad.primitive_jvps[custom_scale_p] = _jvp
