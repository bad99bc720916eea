"""``observe(f)``: what f returns, and statistics of its named intermediate values.

Outermost of the transforms: it reads the taps that casts and updates left in the program. The
device measures them in the same program, several at a time; there are no host callbacks.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core import tap_p
from scalify_cli.jaxprs.calls import CALLED_JAXPR, scan_again
from scalify_cli.jaxprs.interpreter import bind, evaluate, trace_call
from scalify_cli.jaxprs.meshes import on_mesh_of
from scalify_cli.numerics.statistics import Pool, Statistics, Tap, measure, statistics

POOLED = 1 << 22
"""Elements kept and copied to be measured together; a larger tensor is measured by itself."""


class Observed(Mapping[str, Statistics]):
    """Statistics by name, in the order in which the values were computed.

    A pytree of what leaves the device. A tensor's statistics are put together when they are looked
    up, on the host, over all iterations of loops and all values of that name.
    """

    def __init__(self, pools: Sequence[Pool] = ()):
        self.pools = list(pools)
        self._waiting: list[Tap] = []

    def __getitem__(self, name: str) -> Statistics:
        return statistics(self.pools, name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for pool in self.pools for name in pool.names))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def tap(self, tap: Tap) -> None:
        """See a tensor, now or together with the next ones of its dtype."""
        size = sum(other.data.size for other in (tap, *self._waiting))
        if size > POOLED or any(_dtypes(other) != _dtypes(tap) for other in self._waiting):
            self.measure()
        self._waiting.append(tap)

    def measure(self) -> list[Pool]:
        """All that was measured, now that nothing is left waiting."""
        if self._waiting:
            self.pools.append(measure(self._waiting))
        self._waiting = []
        return self.pools


def _dtypes(tap: Tap) -> tuple[Any, Any]:
    return tap.data.dtype, tap.rounded.dtype


jax.tree_util.register_pytree_node(
    Observed, lambda seen: (seen.pools, None), lambda _, pools: Observed(pools)
)


def observe(f: Callable) -> Callable:
    """A function that returns ``(f(*args), statistics)``.

    The statistics are ``Observed``: a mapping from names such as ``block/attention/qkv.activation``
    to what ``summarise`` takes, to be read outside of ``jit``.
    """

    @functools.wraps(f)
    def observed(*args: Any, **kwargs: Any) -> tuple[Any, Observed]:
        seen = Observed()
        with on_mesh_of((args, kwargs)):
            program = trace_call(f, args, kwargs)
            outputs = _run(program.closed, program.arguments, seen)
            seen.measure()
        return program.rebuild(outputs), seen

    return observed


def _run(closed: jex.ClosedJaxpr, arguments: Sequence[Any], seen: Observed) -> list[Any]:
    def apply(equation: jex.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        method = _METHODS.get(equation.primitive, _plain)
        return method(equation, operands, seen)

    return evaluate(closed.jaxpr, closed.consts, arguments, apply)


def _plain(equation, operands, seen):
    return bind(equation, operands)


def _tap(equation, operands, seen):
    rounded, data, exponent = operands
    seen.tap(Tap(equation.params["name"], data, rounded, exponent, equation.params["format"]))
    return [rounded]


def _call(equation, operands, seen):
    return _run(equation.params[CALLED_JAXPR[equation.primitive]], operands, seen)


def _remat(equation, operands, seen):
    return _run(jex.ClosedJaxpr(equation.params["jaxpr"], ()), operands, seen)


def _scan(equation, operands, seen):
    if equation.params["length"] == 0:
        return _plain(equation, operands, seen)

    def run(closed, arguments):
        inside = Observed()
        return _run(closed, arguments, inside), inside.measure()

    seen.measure()
    outputs, pools = scan_again(equation, operands, run)
    seen.pools.extend(pools)
    return outputs


_METHODS = {
    tap_p: _tap,
    p.remat_p: _remat,
    p.scan_p: _scan,
    **dict.fromkeys(CALLED_JAXPR, _call),
}
