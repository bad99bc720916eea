"""Finds normalisations in a jaxpr, so that a model need not mark them.

A norm divides by the root of a mean of squares: walking back from the root through the mean and the
square (and the subtraction of the mean) leads to the value that is normalised.
"""

from jax.extend import core as jex
from jax.extend.core import primitives as p

_TO_THE_SUM = {
    *(p.add_p, p.sub_p, p.div_p, p.mul_p, p.max_p, p.broadcast_in_dim_p, p.reshape_p),
    *(p.convert_element_type_p, p.squeeze_p, p.copy_p),
}
_SQUARES = {p.square_p, p.integer_pow_p, p.mul_p, p.convert_element_type_p, p.abs_p}
_CENTRES = {p.sub_p, p.convert_element_type_p}


def norm_inputs(jaxpr: jex.Jaxpr) -> set[jex.Var]:
    """The values that ``jaxpr`` normalises (layer norm, RMS norm), not looking into calls."""
    producers = {var: equation for equation in jaxpr.eqns for var in equation.outvars}
    roots = [e for e in jaxpr.eqns if e.primitive in (p.rsqrt_p, p.sqrt_p)]
    sources = (_source(e.invars[0], producers) for e in roots)
    return {source for source in sources if source is not None}


def _source(statistic, producers):
    """The normalised value behind a root's operand, or None where it is not a mean of squares."""
    total = _back(statistic, producers, _TO_THE_SUM)
    equation = producers.get(total)
    if equation is None or not equation.invars:
        return None
    if equation.primitive is p.jit_p:  # jnp.var and the like
        return _array_operand(equation)
    if equation.primitive is not p.reduce_sum_p:
        return None
    squared = producers.get(equation.invars[0])
    if squared is None or squared.primitive not in _SQUARES:
        return None
    centred = _back(equation.invars[0], producers, _SQUARES)
    return _back(centred, producers, _CENTRES)


def _back(var, producers, through):
    """Follow first array operands back while the equations are among ``through``."""
    equation = producers.get(var)
    while equation is not None and equation.primitive in through:
        var = _array_operand(equation)
        equation = producers.get(var)
    return var


def _array_operand(equation):
    variables = [atom for atom in equation.invars if isinstance(atom, jex.Var)]
    return max(variables, key=lambda var: var.aval.size, default=None) if variables else None
