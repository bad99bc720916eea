"""Scale rules of collectives: the shards of an array share one unit before they meet.

Some primitives have no public name but the one in a jaxpr; the table knows them by that.
"""

from dataclasses import replace
from math import prod
from typing import Any

from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import is_narrow
from scalify_cli.core.rules.families import Rule, of_terms, passes_through
from scalify_cli.core.storage import at, scale_array, times
from scalify_cli.core.values import Scaled
from scalify_cli.jaxprs.meshes import varying_axes
from scalify_cli.jaxprs.tracing import shard_level
from scalify_cli.scales.scale import ONE, Scale


def collective(sums=False):
    """Operands pass through, in one unit and at the largest of the shards' scales.

    Args:
        sums: whether shards are added up; narrow data is divided first, so that it cannot overflow.
    """

    def rule(equation, *operands):
        axes = _axes(equation.params)
        grown = of_terms(_group_size(equation.params, axes)) if sums else ONE
        values = [_grown(_shared(x, axes), grown) if isinstance(x, Scaled) else x for x in operands]
        return passes_through(equation, *values)

    return rule


def _shared(x: Scaled, axes: tuple) -> Scaled:
    """x in a unit and with a scale that all shards along some axes have."""
    if x.scale is None or max(x.scale.level, x.unit.level) < max(shard_level(), 1):
        return x
    factor = scale_array(x)
    if varying_axes(x.data).intersection(axes) and not varying_axes(factor).intersection(axes):
        return x
    scale = Scale.unknown(lax.pmax(factor, axes)).of_degree(x.scale.degree, x.scale.drift)
    return Scaled(at(x, ONE), scale, ONE, x.dtype)


def _grown(x: Scaled, by: Scale) -> Scaled:
    scale = x.scale and x.scale * by
    if not is_narrow(x.dtype):
        return replace(x, scale=scale)
    return replace(x, data=times(x.data, by**-1), scale=scale, unit=x.unit * by)


def _axes(params):
    names = params["axes"] if "axes" in params else params["axis_name"]
    names = names if isinstance(names, (tuple, list)) else (names,)
    return tuple(name for name in names if not isinstance(name, int))


def _group_size(params, axes):
    groups = params.get("axis_index_groups")
    return len(groups[0]) if groups else prod(lax.axis_size(axis) for axis in axes)


RULES: dict[Any, Rule] = dict.fromkeys(
    (p.psum_p, "psum_invariant", "reduce_scatter"), collective(sums=True)
)
RULES |= dict.fromkeys(
    (
        *(p.pmax_p, p.pmin_p, p.all_gather_p, p.all_to_all_p, p.ppermute_p),
        "all_gather_invariant",
    ),
    collective(),
)
RULES |= dict.fromkeys(("pvary", "reshard"), passes_through)
