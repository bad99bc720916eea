"""Data parallelism: every device keeps the whole state and takes a part of every batch.

A batch of as many micro-batches as devices, or a multiple, is shared out in whole micro-batches.
Each is computed where it lies as one device would, and gradients are added in the same pairs on
any number of devices, so the numbers do not depend on it. Otherwise the rows of each micro-batch
are shared out, and the compiler adds up what they give: only the order of sums differs then.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scalify_cli.training.trainer import Trainer

PAIRED_LEVELS = 3
"""How often a sum is halved; what remains is added up in order."""


class DataParallel:
    """Some devices, and how arrays lie on them.

    Args:
        devices: of all processes, in the order of the rows they take.
        batch_size: rows of a batch, which splits over the devices (``Trainer.splits_over``).
        accumulate: micro-batches of a batch.
    """

    def __init__(self, devices: Sequence[Any], batch_size: int, accumulate: int = 1):
        count = len(devices)
        levels = min(PAIRED_LEVELS, (count & -count).bit_length() - 1)
        shape = (count >> levels, *[2] * levels)
        self.axes = tuple(f"data{level}" for level in range(len(shape)))
        self.mesh = Mesh(np.array(devices).reshape(shape), self.axes)
        self.takes_whole_parts = accumulate % count == 0
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self._rows = NamedSharding(self.mesh, PartitionSpec(self.axes))
        splits = (batch_size // accumulate) % count == 0
        self._of_parts = NamedSharding(
            self.mesh, PartitionSpec(None, self.axes if splits else None)
        )

    def place(self, batch: np.ndarray) -> jax.Array:
        """The batch, which every process has, with its rows shared out."""
        return jax.make_array_from_callback(batch.shape, self._rows, lambda index: batch[index])

    def share_rows(self, parts: jax.Array) -> jax.Array:
        """Micro-batches [part, row, ...] with each one's rows shared out, where they split."""
        return lax.with_sharding_constraint(parts, self._of_parts)

    def total(self, f: Callable[[Any, jax.Array], Any], same: Any, parts: jax.Array) -> Any:
        """``f(same, parts)``, a sum over micro-batches, with whole ones shared out."""

        def own(same: Any, parts: jax.Array) -> Any:
            result = f(same, parts)
            for axis in reversed(self.axes):
                if self.mesh.shape[axis] > 1:
                    result = lax.optimization_barrier(lax.psum(result, axis))
            return result

        specs = PartitionSpec(), PartitionSpec(self.axes)
        return jax.shard_map(
            own, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )(same, parts)


def over_devices(trainer: Trainer, say: Callable[[str], None]) -> tuple[int, DataParallel | None]:
    """The micro-batches of a batch, and all devices of all processes; None where there is one.

    Raises:
        UserError: a batch does not split over them.
    """
    devices = usable(found := jax.devices(), trainer)
    if len(devices) < len(found):
        say(f"uses {len(devices)} of {len(found)} devices: the batch splits over no more")
    trainer.require_split(len(devices))
    parts = trainer.micro_batches(len(devices))
    return parts, DataParallel(devices, trainer.batch_size, parts) if len(devices) > 1 else None


def usable(devices: Sequence[Any], trainer: Trainer) -> list[Any]:
    """As many of the devices as a batch splits over; all of them where processes share the work."""
    if len({device.process_index for device in devices}) > 1:
        return list(devices)
    return list(devices)[: next(n for n in range(len(devices), 0, -1) if trainer.splits_over(n))]
