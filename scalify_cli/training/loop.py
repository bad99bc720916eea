"""The training loop: a generator of records. Whoever iterates prints, logs and stops.

Records of step k are yielded before the checkpoint of step k is written, and a resumed run yields
what the uninterrupted one would have, number for number (``perf/*`` apart).
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from scalify_cli.errors import UserError
from scalify_cli.numerics import bins
from scalify_cli.numerics.statistics import summarise
from scalify_cli.training.checkpoint import Checkpoints
from scalify_cli.training.trainer import Trainer

Record = dict[str, Any]


class Step(Protocol):
    """One compiled update; the state is donated to it."""

    def init(self, key: jax.Array) -> Any: ...
    def update(self, state: Any, batch: np.ndarray) -> tuple[Any, dict[str, Any]]: ...
    def evaluate(self, state: Any, batch: np.ndarray) -> Any: ...
    def observe(self, state: Any, batch: np.ndarray) -> dict[str, dict[str, Any]]: ...


class Dataset(Protocol):
    """Token batches, int32 [batch_size, sequence_length + 1], the same for the same arguments."""

    @property
    def fingerprint(self) -> str: ...
    def batch(
        self, seed: int, step: int, batch_size: int, sequence_length: int, split: str = "train"
    ) -> np.ndarray: ...
    def evaluation_batches(
        self, split: str, batch_size: int, sequence_length: int, count: int
    ) -> Iterator[np.ndarray]: ...


@dataclass(frozen=True)
class Start:
    """Where training goes on from: updates made, and the state after them."""

    step: int
    state: Any


def begin(
    step: Step, dataset: Dataset, *, seed: int, checkpoints: Checkpoints | None = None
) -> Start:
    """The newest usable checkpoint, or a fresh state.

    Raises:
        UserError: the checkpoint was made from other data, or for another training state.
    """
    state = step.init(jax.random.key(seed))
    if checkpoints is None or not checkpoints.steps():
        return Start(0, state)
    template = jax.tree.map(_abstract, state)
    del state  # one copy in memory is enough
    found = checkpoints.restore_newest(template)
    if found is None:
        return Start(0, step.init(jax.random.key(seed)))
    if found[2].get("data") != dataset.fingerprint:
        raise UserError(
            "the data has changed since this run's checkpoint was written.",
            "start the run afresh with --force.",
        )
    return Start(found[0], found[1])


def train(
    step: Step,
    dataset: Dataset,
    trainer: Trainer,
    *,
    seed: int,
    start: Start,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], str | None] = lambda: None,
) -> Iterator[Record]:
    """Train, yielding records in order of their step.

    * metrics, for every update: ``step tokens train/loss train/grad_norm optimizer/learning_rate
      perf/step_seconds perf/tokens_per_second``, and ``val/loss`` and ``<statistic>/<tensor>``
      where they are due. ``step`` counts updates made; ``train/loss`` is of the batch that made
      the update, ``val/loss`` and the statistics are of the state after it;
    * ``{"event": "histograms", "step", "statistics"}``: the raw statistics of every tensor;
    * ``{"event": "checkpoint", "step", "message"}``;
    * ``{"event": "end", "step", "state", "message", "tensor"}``, last and once: ``done``,
      ``diverged`` (``tensor`` is the first with a value that is not finite) or ``preempted``.

    Args:
        step: the compiled update. On values that are not finite it returns the state unchanged.
        dataset: where the batches come from.
        trainer: how long, how much, how often.
        seed: chooses the batches.
        start: from ``begin``; its state is donated.
        checkpoints: where to save; None saves nothing.
        stop: asked after each update; a reason to stop (such as a signal's name) or None.
    """
    return _Loop(step, dataset, trainer, seed, checkpoints, stop).run(start)


class _Loop:
    def __init__(self, step, dataset, trainer, seed, checkpoints, stop):
        self.step: Step = step
        self.dataset: Dataset = dataset
        self.trainer: Trainer = trainer
        self.seed: int = seed
        self.checkpoints: Checkpoints | None = checkpoints
        self.stop: Callable[[], str | None] = stop
        self.clock = time.perf_counter()

    def run(self, start: Start) -> Iterator[Record]:
        state, done = start.state, start.step
        batch = self.batch(done)
        if done == 0:
            yield from self.look(state, batch, 0, {"step": 0, "tokens": 0})
        while done < self.trainer.steps:
            self.clock = time.perf_counter()
            state, metrics = self.step.update(state, batch)
            following = self.batch(done + 1)  # made while the device is at work
            metrics = jax.device_get(metrics)
            done += 1
            record = self.metrics(done, metrics)
            if not metrics["finite"]:
                yield record
                yield self.diverged(state, batch, record)
                return
            batch = following
            yield from self.look(state, batch, done, record)
            reason = self.stop() if done < self.trainer.steps else None
            yield from self.save(state, done, force=reason is not None)
            if reason is not None:
                yield _end("preempted", done, f"stopped by {reason} after step {done}")
                return
        yield _end("done", done, f"done after step {done}")

    def batch(self, index: int) -> np.ndarray:
        size, length = self.trainer.batch_size, self.trainer.sequence_length
        return self.dataset.batch(self.seed, index, size, length)

    def metrics(self, done: int, metrics: dict[str, Any]) -> Record:
        seconds = time.perf_counter() - self.clock
        return {
            "step": done,
            "tokens": done * self.trainer.tokens_per_step,
            "train/loss": float(metrics["loss"]),
            "train/grad_norm": float(metrics["grad_norm"]),
            "optimizer/learning_rate": float(metrics["learning_rate"]),
            "perf/step_seconds": seconds,
            "perf/tokens_per_second": self.trainer.tokens_per_step / seconds,
        }

    def look(self, state: Any, batch: np.ndarray, done: int, record: Record) -> Iterator[Record]:
        """The record of this step with what is due added to it, and the raw statistics."""
        statistics = {}
        if self.due(done, self.trainer.validate_every):
            record["val/loss"] = self.evaluate(state)
        if self.due(done, self.trainer.observe_every):
            statistics = self.step.observe(state, batch)
            record |= _summaries(statistics)
        if done or len(record) > 2:
            yield record
        if statistics:
            yield {"event": "histograms", "step": done, "statistics": statistics}

    def evaluate(self, state: Any) -> float:
        size, length = self.trainer.batch_size, self.trainer.sequence_length
        batches = self.dataset.evaluation_batches(
            "validation", size, length, self.trainer.validation_batches
        )
        losses = [self.step.evaluate(state, batch) for batch in batches]
        return float(np.mean(np.asarray(jax.device_get(losses), np.float64)))

    def save(self, state: Any, done: int, *, force: bool) -> Iterator[Record]:
        if self.checkpoints and (force or self.due(done, self.trainer.checkpoint_every)):
            self.checkpoints.save(done, state, {"data": self.dataset.fingerprint})
            message = f"checkpoint of step {done}"
            yield {"event": "checkpoint", "step": done, "message": message}

    def due(self, done: int, every: int) -> bool:
        return done == self.trainer.steps or (every > 0 and done % every == 0)

    def diverged(self, state: Any, batch: np.ndarray, record: Record) -> Record:
        statistics = self.step.observe(state, batch)
        tensor = _first_bad(statistics) or _bad_metric(record)
        message = f"{tensor} is not finite at step {record['step']}"
        return _end("diverged", record["step"], message) | {"tensor": tensor}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _summaries(statistics: dict[str, dict[str, Any]]) -> Record:
    return {
        f"{quantity}/{tensor}": float(value)
        for tensor, raw in statistics.items()
        for quantity, value in summarise(raw).items()
    }


def _first_bad(statistics: dict[str, dict[str, Any]]) -> str | None:
    bad = [name for name, raw in statistics.items() if np.any(raw["counts"][[bins.INF, bins.NAN]])]
    return bad[0] if bad else None


def _bad_metric(record: Record) -> str:
    return "train/loss" if not math.isfinite(record["train/loss"]) else "train/grad_norm"


def _end(state: str, step: int, message: str) -> Record:
    return {"event": "end", "state": state, "step": step, "message": message}
