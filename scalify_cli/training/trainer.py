"""How long to train and how often to look: the ``trainer`` group of the configuration."""

import math
from dataclasses import dataclass, fields

from scalify_cli.errors import UserError

_AT_LEAST_ONE = (
    "steps",
    "batch_size",
    "sequence_length",
    "accumulate",
    "validation_batches",
    "keep_checkpoints",
    "log_every",
)
_FEW = 4
"""Micro-batches where nobody says how many: what a step may cost more for them is little."""


@dataclass(frozen=True)
class Trainer:
    """Counts and periods, in optimizer updates.

    Args:
        steps: updates of the whole run.
        batch_size: sequences in one update, over all its micro-batches.
        sequence_length: tokens of a sequence.
        accumulate: micro-batches whose gradients are summed into one update. None: the greatest
            common divisor of batch_size and 4, so that losses are the same on one, two and four
            processes; where those do not split over the processes, one for each.
        validate_every: updates between two validations; 0: only after the last update.
        validation_batches: batches, always the same ones, of one validation.
        observe_every: updates between two observations of tensors; 0: only after the last update.
        checkpoint_every: updates between two checkpoints; 0: only after the last update.
        keep_checkpoints: newest checkpoints kept.
        log_every: updates between two lines on the console; metrics.jsonl has every update.

    Raises:
        UserError: a count is not positive, or a batch does not split into its micro-batches.
    """

    steps: int
    batch_size: int
    sequence_length: int
    accumulate: int | None = 1
    validate_every: int = 100
    validation_batches: int = 8
    observe_every: int = 100
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    log_every: int = 10

    def __post_init__(self):
        for field in fields(self):
            if field.name != "accumulate" or self.accumulate is not None:
                self._check_count(field.name, int(field.name in _AT_LEAST_ONE))
        if self.batch_size % (self.accumulate or 1):
            raise UserError(
                f"trainer.batch_size={self.batch_size} does not split into "
                f"trainer.accumulate={self.accumulate} equal micro-batches.",
                "choose a batch_size that is a multiple of accumulate.",
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted in one update."""
        return self.batch_size * self.sequence_length

    def micro_batches(self, devices: int) -> int:
        """The parts in which so many devices take a batch; see ``accumulate``."""
        if self.accumulate is not None:
            return self.accumulate
        few = math.gcd(self.batch_size, _FEW)
        if self._splits(devices, few):
            return few
        return 1 if self.batch_size % devices else devices

    def splits_over(self, devices: int) -> bool:
        """Whether each of so many devices has as much of a batch to do."""
        return self._splits(devices, self.micro_batches(devices))

    def require_split(self, devices: int) -> None:
        """Check that a batch splits over so many devices.

        Raises:
            UserError: it does not.
        """
        if self.splits_over(devices):
            return
        count = self.micro_batches(devices)
        parts = f" in {count} micro-batches" if count > 1 else ""
        raise UserError(
            f"trainer.batch_size={self.batch_size}{parts} does not split over {devices} devices.",
            f"choose a trainer.batch_size that is a multiple of {devices * count}, "
            "or another number of processes.",
        )

    def _splits(self, devices: int, parts: int) -> bool:
        return parts % devices == 0 or (self.batch_size // parts) % devices == 0

    def _check_count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value < least:
            raise UserError(
                f"trainer.{name}={value} is too small.",
                f"trainer.{name} is a whole number of at least {least}.",
            )
