"""How arrays lie on a mesh, and along which axes of ``shard_map`` JAX tracks them to differ."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax import lax
from jax.core import ShapedArray
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scalify_cli.jaxprs.tracing import shard_level


def here(x: Any) -> Any:
    """A replicated array where it is read: a part of a program may see the mesh as another kind."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    own = jax.typeof(x).sharding.mesh
    tracked = AxisType.Explicit in (*own.axis_types, *mesh.axis_types)
    moves = tracked and own != mesh and not own.empty
    return jax.sharding.reshard(x, PartitionSpec()) if moves else x


def replicated(x: Any) -> Any:
    """An array whole on each device, where JAX tracks how it lies."""
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def on_mesh_of(arguments: Sequence[Any]) -> AbstractContextManager:
    """Sees the mesh that arrays lie on where JAX tracks how: what is made of no array lies there
    too. A mesh that is seen already, as under ``jit``, stays."""
    shardings = (getattr(x, "sharding", None) for x in jax.tree.leaves(arguments))
    meshes = {x.mesh for x in shardings if isinstance(x, NamedSharding)}
    tracked = [x for x in meshes if isinstance(x, Mesh) and AxisType.Explicit in x.axis_types]
    if len(tracked) != 1 or not jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    try:
        return jax.set_mesh(*tracked)
    except ValueError:  # while tracing
        return jax.sharding.use_abstract_mesh(tracked[0].abstract_mesh)


def varying_as(x: Any, *others: Any) -> Any:
    """x, with the shards tracked to differ where those of any other do."""
    missing = frozenset().union(*map(varying_axes, others)) - varying_axes(x)
    return lax.pcast(x, tuple(missing), to="varying") if missing else x


def varying_alike(values: Sequence[Any]) -> list[Any]:
    """The values, each with the shards tracked to differ where those of any do."""
    differ = [x for x in values if varying_axes(x)]
    return [varying_as(x, *differ) for x in values] if differ else list(values)


def varying_axes(x: Any) -> frozenset:
    """The axes of ``shard_map`` along which JAX has tracked x to differ between the shards."""
    kind = x if isinstance(x, ShapedArray) else jax.typeof(x)
    tracked = getattr(kind, "mat", None)  # a plain set in JAX before 0.10
    return tracked.varying if tracked else getattr(kind, "vma", frozenset())


def _varied(x: Any, params: dict) -> Any:
    return x if shard_level() or not varying_axes(x).isdisjoint(params["axes"]) else None


def _summed(x: Any, params: dict) -> Any:
    return None if varying_axes(x) else lax.psum(x, params["axes"])


def _gathered(x: Any, params: dict) -> Any:
    axis, tiled = params["all_gather_dimension"], params["tiled"]
    name = params["axis_name"]
    return None if varying_axes(x) else lax.all_gather(x, name, axis=axis, tiled=tiled)


UNTRACKED: dict[str, Callable] = {
    "pvary": _varied,
    "psum_invariant": _summed,
    "all_gather_invariant": _gathered,
}
"""What such primitives are where JAX does not track how shards differ; None where it does."""
