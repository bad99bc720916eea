"""The composition root: a configuration becomes objects, and the objects a run."""

import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from omegaconf import DictConfig, OmegaConf

from scalify_cli.config import build, signature, to_yaml
from scalify_cli.data.cache import cache_root
from scalify_cli.errors import UserError
from scalify_cli.launch import distributed
from scalify_cli.launch.stopping import EXIT_CODES, Stopped, stop_on_signals
from scalify_cli.precision import Policy
from scalify_cli.tracking import Null, RunDirectory, Sink, Tracking, read_records
from scalify_cli.tracking.cancelling import is_cancelled
from scalify_cli.tracking.follower import Follower
from scalify_cli.tracking.run_directory import end_lost_run, read_status
from scalify_cli.tracking.submission import code_change
from scalify_cli.training.compilation import persist_compilation
from scalify_cli.training.loop import Dataset, begin, train
from scalify_cli.training.model import for_vocabulary, require_model
from scalify_cli.training.parallel import over_devices
from scalify_cli.training.processes import Agreed, LedCheckpoints, leads, led
from scalify_cli.training.step import Step
from scalify_cli.training.trainer import Trainer

Record = dict[str, Any]
OnRecord = Callable[[Record], None]

_ENDED = ("done", "diverged")
_STARTED = time.time()


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    ``state`` is ``done``, ``diverged``, ``preempted`` or ``cancelled``; ``already_done`` when it
    had ended before this call; ``summary`` has the newest value of every key of ``metrics.jsonl``,
    and ``peak_memory_bytes``.
    """

    id: str
    path: Path
    state: str
    already_done: bool = False
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0


@dataclass(frozen=True)
class Job:
    """What a configuration stands for."""

    dataset: Dataset
    step: Step
    trainer: Trainer
    tracking: Tracking
    seed: int


def run(
    config: DictConfig,
    overrides: list[str],
    runs_dir: Path,
    *,
    force: bool = False,
    wandb: str | None = None,
    on_record: OnRecord = lambda record: None,
) -> Outcome:
    """Run one point, or go on with it, until it is done, diverges or is stopped.

    A process that has a place among others (``launch.distributed``) joins them first.

    Args:
        config: the composed configuration.
        overrides: the words it was made from.
        runs_dir: the run's directory is ``runs_dir/<id>``.
        force: forget what there is of this run, and start over.
        wandb: instead of ``tracking.wandb``.
        on_record: gets every record of ``metrics.jsonl`` and ``{"event", "message"}`` for what
            else is worth saying: ``resumed``, ``checkpoint``, ``note``, ``end``.

    Raises:
        UserError: the data, the model or the run's directory cannot be used as asked.
        OSError: the directory cannot be written.
    """
    path = Path(runs_dir) / signature(config)
    here = distributed.place()
    if here:
        distributed.join(here)
    if led(lambda: not force and read_status(path).get("state") in _ENDED):
        return _outcome(path, already_done=True)
    persist_compilation(cache_root(None) / "compiled")
    say = on_record if leads() else lambda record: None
    try:
        with stop_on_signals() as stop, ExitStack() as stack:
            if here:
                stack.enter_context(stop.deferred())  # until all agree on it
                stack.enter_context(_last_words(path))
            job = assemble(config, wandb, lambda text: say(_event("note", text)))
            directory = stack.enter_context(_directory(path))
            if led(lambda: is_cancelled(path, since=_STARTED)):
                raise Stopped("SIGTERM")
            if led(lambda: not force and directory.status.get("state") in _ENDED):
                return _outcome(path, already_done=True)  # while we waited for it
            led(lambda: _start(directory, job, config, overrides, say, force))
            end = _Attempt(job, directory, say).train(config, Agreed(stop, EXIT_CODES))
    except Stopped as stopped:
        state = "cancelled" if is_cancelled(path) else "preempted"
        return Outcome(path.name, path, state, exit_code=EXIT_CODES[str(stopped)])
    return replace(_outcome(path), exit_code=EXIT_CODES.get(end.get("reason", ""), 0))


@contextmanager
def _last_words(path: Path) -> Iterator[None]:
    """A process that loses the one that writes says so in its place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        with suppress(UserError, OSError):
            end_lost_run(path, f"process {jax.process_index()} lost the others: {error}")
        raise


@contextmanager
def _directory(path: Path) -> Iterator[RunDirectory]:
    """The run's directory, held by one of the run's processes for all."""
    with ExitStack() as stack:
        directory = RunDirectory(path) if leads() else Follower(path)
        led(lambda: stack.enter_context(directory) and None)
        yield directory


def assemble(config: DictConfig, wandb: str | None, say: Callable[[str], None]) -> Job:
    """The objects of a configuration, checked against each other before anything is compiled.

    Raises:
        UserError: the data are missing or too few, or the model does not fit them.
    """
    parts = {
        group: build(config[group], group)
        for group in ("precision", "scaling", "model", "optimizer", "data", "trainer", "tracking")
    }
    model = require_model(parts["model"])
    trainer, dataset = parts["trainer"], parts["data"].prepare(say)
    dataset.require("train", trainer.tokens_per_step + 1)
    dataset.require("validation", trainer.sequence_length + 1)
    model = for_vocabulary(model, dataset.vocab_size)
    policy = Policy(parts["precision"], parts["scaling"])
    accumulate, parallel = over_devices(trainer, say)
    length = trainer.steps, accumulate
    step = Step(model, policy, parts["optimizer"], *length, config.seed, parallel)
    tracking = replace(parts["tracking"], wandb=wandb) if wandb else parts["tracking"]
    return Job(dataset, step, trainer, tracking, config.seed)


def _start(
    directory: RunDirectory,
    job: Job,
    config: DictConfig,
    overrides: list[str],
    on_record: OnRecord,
    force: bool,
) -> None:
    if force:
        directory.clear()
    devices = [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
    step = directory.status.get("step", 0)
    words = list(overrides)
    directory.start(
        config=to_yaml(config), overrides=words, steps=job.trainer.steps, step=step, devices=devices
    )
    directory.log(f"attempt {directory.attempt}: {' '.join(words) or 'the defaults'}")
    changed = code_change(Path.cwd())
    if changed:
        directory.log(f"warning: {changed}")
        on_record(_event("warning", changed))


class _Attempt:
    """One process's part of a run: trains, and hands every record to whom it concerns."""

    def __init__(self, job: Job, directory: RunDirectory, on_record: OnRecord):
        self.job = job
        self.directory = directory
        self.on_record = on_record
        self.kinds = {None: self.metrics, "histograms": self.histograms, "end": self.end}

    def train(self, config: DictConfig, stop: Agreed) -> Record:
        """Go on from the newest checkpoint; the ``end`` record of the loop."""
        try:
            return self._train(config, stop)
        except Exception:
            with suppress(OSError):  # a full disk: the first error is the one to report
                self.directory.log(traceback.format_exc().rstrip())
            raise

    def _train(self, config: DictConfig, stop: Agreed) -> Record:
        job, seed = self.job, self.job.seed
        folder = self.directory.path / "checkpoints"
        checkpoints = LedCheckpoints(folder, job.trainer.keep_checkpoints, self.note)
        start = begin(job.step, job.dataset, seed=seed, checkpoints=checkpoints)
        if start.step:
            self.directory.record({"step": start.step})
            self.say("resumed", f"resumed at step {start.step}", step=start.step)
        record: Record = {}
        with self.sinks(config, start.step or None) as self.sink, stop.asked.deferred():
            for record in train(
                job.step,
                job.dataset,
                job.trainer,
                seed=seed,
                start=start,
                checkpoints=checkpoints,
                stop=stop,
            ):
                self.kinds.get(record.get("event"), self.pass_on)(record)
        return record | {"reason": stop.reason if record["state"] == "preempted" else ""}

    @contextmanager
    def sinks(self, config: DictConfig, resumed_step: int | None) -> Iterator[Sink]:
        """The sinks, finished in the state in which the run is when all is over."""
        sink = self.sink_of(config, resumed_step) if leads() else Null()
        state = "failed"
        try:
            yield sink
            state = self.directory.status["state"]
        finally:
            sink.finish(state)

    def sink_of(self, config: DictConfig, resumed_step: int | None) -> Sink:
        return self.job.tracking.open(
            self.directory.path,
            run_id=self.directory.id,
            resumed_step=resumed_step,
            attempt=self.directory.attempt,
            config=_plain(config),
            name=config.name,
            tags=list(config.tags),
            notify=self.note,
        )

    def metrics(self, record: Record) -> None:
        self.sink.record(record)
        self.directory.record(record)
        if record["step"] % self.job.trainer.log_every == 0 or "val/loss" in record:
            self.directory.log(_line(record))
        self.on_record(record)

    def histograms(self, record: Record) -> None:
        self.sink.histograms(record["step"], record["statistics"])

    def end(self, record: Record) -> None:
        self.directory.log(record["message"])
        done = record["state"] == "done"
        self.directory.finish(
            record["state"],
            error=None if done else record["message"],
            step=record["step"],
            tensor=record.get("tensor"),
            peak_memory_bytes=peak_memory(),
        )
        if not done:
            self.on_record(record)

    def pass_on(self, record: Record) -> None:
        self.directory.log(record["message"])
        self.on_record(record)

    def note(self, message: str) -> None:
        self.say("note", message)

    def say(self, event: str, message: str, **facts: Any) -> None:
        self.pass_on(_event(event, message, **facts))


def peak_memory() -> int:
    """Bytes of memory in use at the most: on the devices where they count, else in the process."""
    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    on_devices = sum(stats.get("peak_bytes_in_use", 0) for stats in counted)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return on_devices or (resident if sys.platform == "darwin" else resident * 1024)


def _outcome(path: Path, *, already_done: bool = False) -> Outcome:
    """The end of a run, read from its directory."""
    if not leads():
        return Outcome(path.name, path, "done", already_done)
    status, summary = read_status(path), {}
    for record in read_records(path / "metrics.jsonl"):
        summary |= record
    summary["peak_memory_bytes"] = status.get("peak_memory_bytes")
    return Outcome(path.name, path, status["state"], already_done, summary)


def _line(record: Mapping[str, Any]) -> str:
    shown = ("train/loss", "val/loss", "perf/tokens_per_second")
    values = [f"{key}={record[key]:.5g}" for key in shown if key in record]
    return " ".join([f"step={record['step']}", *values])


def _event(event: str, message: str, **facts: Any) -> Record:
    return {"event": event, "message": message, **facts}


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # pyright: ignore[reportReturnType]
