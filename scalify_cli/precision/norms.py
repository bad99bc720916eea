"""Finds normalisations in a jaxpr, so that a model need not mark them.

A norm divides by the root of a mean of squares: walking back from the root through the mean and the
square (and the subtraction of the mean) leads to the value that is normalised. Calls are looked
through (``jnp.var`` is one), so a variable is known by the calls it lies in and itself.
"""

from typing import Any, NamedTuple

from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core import is_float

_TO_THE_SUM = {
    *(p.add_p, p.sub_p, p.div_p, p.mul_p, p.max_p, p.broadcast_in_dim_p, p.reshape_p),
    *(p.convert_element_type_p, p.squeeze_p, p.copy_p, p.select_n_p),
}
_CASTS = {p.convert_element_type_p}
_CENTRES = {p.sub_p, p.convert_element_type_p}

Path = tuple[int, ...]
Node = tuple[Path, Any]


class _Graph(NamedTuple):
    """Who computes what, calls included; ``same`` maps a call's variables to their other names."""

    producers: dict[Node, tuple[Path, jex.JaxprEqn]]
    same: dict[Node, Node]

    def producer(self, node: Node | None) -> tuple[Path, jex.JaxprEqn] | None:
        return None if node is None else self.producers.get(node)

    def resolve(self, path: Path, atom: Any) -> Node | None:
        if not isinstance(atom, jex.Var):
            return None
        node = (path, atom)
        while node in self.same:
            node = self.same[node]
        return node


def norm_inputs(jaxpr: jex.Jaxpr) -> set[jex.Var]:
    """The values that ``jaxpr`` itself (not a function it calls) holds and normalises."""
    graph = _Graph({}, {})
    _index(graph, jaxpr, ())
    roots = [x for x in graph.producers.values() if x[1].primitive in (p.rsqrt_p, p.sqrt_p)]
    sources = (_source(graph, graph.resolve(path, e.invars[0])) for path, e in roots)
    return {source[1] for source in sources if source is not None and not source[0]}


def _index(graph: _Graph, jaxpr: jex.Jaxpr, path: Path) -> None:
    for equation in jaxpr.eqns:
        if equation.primitive is not p.jit_p:
            graph.producers.update({(path, var): (path, equation) for var in equation.outvars})
            continue
        inner, within = equation.params["jaxpr"].jaxpr, (*path, id(equation))
        _join(graph, within, inner.invars, path, equation.invars)
        _join(graph, path, equation.outvars, within, inner.outvars)
        _index(graph, inner, within)


def _join(graph, path, variables, other_path, atoms):
    for variable, atom in zip(variables, atoms, strict=True):
        if isinstance(atom, jex.Var):
            graph.same[(path, variable)] = (other_path, atom)


def _source(graph: _Graph, statistic: Node | None) -> Node | None:
    """The normalised value behind a root's operand, or None where it is not a mean of squares."""
    total = _sum_behind(graph, statistic)
    if total is None:
        return None
    squares = graph.producer(_back(graph, _operand(graph, *total), _CASTS))
    if squares is None or not _is_square(squares[1]):
        return None
    return _back(graph, _operand(graph, *squares), _CENTRES)


def _sum_behind(graph: _Graph, node: Node | None) -> tuple[Path, jex.JaxprEqn] | None:
    """The sum that a statistic is computed from, past the arithmetic of means and epsilons."""
    producer = graph.producer(node)
    if producer is None or producer[1].primitive is p.reduce_sum_p:
        return producer
    if producer[1].primitive not in _TO_THE_SUM:
        return None
    found = (_sum_behind(graph, operand) for operand in _operands(graph, *producer))
    return next((total for total in found if total is not None), None)


def _is_square(equation: jex.JaxprEqn) -> bool:
    if equation.primitive is p.mul_p:
        return equation.invars[0] is equation.invars[1]
    power = equation.primitive is p.integer_pow_p and equation.params["y"] == 2
    return power or equation.primitive is p.square_p


def _back(graph: _Graph, node: Node | None, through: set) -> Node | None:
    """Follow the largest operand back while the equations are among ``through``."""
    producer = graph.producer(node)
    while producer is not None and producer[1].primitive in through:
        node = _operand(graph, *producer)
        producer = graph.producer(node)
    return node


def _operand(graph: _Graph, path: Path, equation: jex.JaxprEqn) -> Node | None:
    return next(iter(_operands(graph, path, equation)), None)


def _operands(graph: _Graph, path: Path, equation: jex.JaxprEqn) -> list[Node]:
    """The float operands, the largest first."""
    nodes = (graph.resolve(path, atom) for atom in equation.invars)
    floats = [node for node in nodes if node is not None and is_float(node[1].aval)]
    return sorted(floats, key=lambda node: -node[1].aval.size)
