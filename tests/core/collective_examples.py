"""A program for every collective that has a scale rule, over one mapped axis ``i``."""

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p


def shifted(x):
    size = lax.axis_size("i")
    return lax.ppermute(x, "i", [(k, (k + 1) % size) for k in range(size)])


def exchanged(x):
    """Rows to columns, over as many rows as there are shards."""
    size = lax.axis_size("i")
    return lax.all_to_all(jnp.stack([x * (k + 1) for k in range(size)]), "i", 0, 0)


def scattered(x):
    return lax.psum_scatter(jnp.stack([x] * lax.axis_size("i")), "i")


COLLECTIVES = {
    p.psum_p: lambda x: lax.psum(x, "i"),
    "psum_invariant": lambda x: lax.psum(x, "i") + jnp.maximum(x * 2, 0.5),
    p.pmax_p: lambda x: lax.pmax(x, "i"),
    p.pmin_p: lambda x: lax.pmin(x, "i"),
    p.all_gather_p: lambda x: lax.all_gather(x, "i"),
    "all_gather_invariant": lambda x: lax.pmean(lax.all_gather(x, "i"), "i"),
    p.ppermute_p: shifted,
    p.all_to_all_p: exchanged,
    "reduce_scatter": scattered,
    "pvary": lambda x: lax.psum(x.sum(), "i") * x,
}
