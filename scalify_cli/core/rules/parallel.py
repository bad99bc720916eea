"""Scale rules of collectives: the shards of an array share one scale before they meet.

Some primitives have no public name but the one in a jaxpr; the table knows them by that.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.interpreter import bind, varies
from scalify_cli.core.rules.families import (
    Rule,
    binades,
    each_passes_through,
    in_own_dtype,
    passes_through,
)
from scalify_cli.core.scale import Scale
from scalify_cli.core.values import Scaled, at_scale, plain, promote, times


def collective(sums=False):
    """Operands pass through at the largest of the shards' scales.

    Args:
        sums: whether shards are added up; the data is divided first, so that it cannot overflow.
    """

    def rule(equation, *operands):
        axes = _axes(equation.params)
        shift = binades(_group_size(equation.params, axes)) if sums else 0
        values = [at_one_scale(x if isinstance(x, Scaled) else plain(x), axes) for x in operands]
        data = [times(x.data, Scale(-shift)) if isinstance(x, Scaled) else x for x in values]
        return [
            Scaled(output, x.scale and x.scale.shifted(shift)) if isinstance(x, Scaled) else output
            for x, output in zip(values, bind(equation, data), strict=True)
        ]

    return rule


def _axes(params):
    names = params["axes"] if "axes" in params else params["axis_name"]
    names = names if isinstance(names, (tuple, list)) else (names,)
    return tuple(name for name in names if not isinstance(name, int))


def _group_size(params, axes):
    groups = params.get("axis_index_groups")
    return len(groups[0]) if groups else int(np.prod([lax.axis_size(axis) for axis in axes]))


def at_one_scale(x: Any, axes: tuple[Any, ...]) -> Any:
    """x at the largest of the shards' scales along some axes, where it may have several."""
    if not isinstance(x, Scaled):
        return x
    x = promote(x)
    if x.scale is None or x.scale.static or x.scale.shared.issuperset(axes):
        return x
    exponent = jnp.asarray(x.scale.exponent(), jnp.int32)
    if varies(x.data, axes) and not varies(exponent, axes):
        return x
    largest = Scale.unknown(lax.pmax(exponent, axes), x.scale.shared.union(axes))
    return Scaled(at_scale(x, largest), largest)


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
RULES["pvary"] = each_passes_through
RULES["reshard"] = passes_through
RULES |= dict.fromkeys(("pure_callback", "io_callback"), in_own_dtype)
