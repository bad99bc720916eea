"""How long to train and how often to look: the ``trainer`` group of the configuration."""

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

    def _check_count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value < least:
            raise UserError(
                f"trainer.{name}={value} is too small.",
                f"trainer.{name} is a whole number of at least {least}.",
            )
