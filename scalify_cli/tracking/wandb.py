"""W&B through its own client, at arm's length: it may be slow, fail or be absent.

The client lives in a thread behind a bounded queue. Training only ever puts a record in the queue;
what the client makes of it, and how long it takes, never comes back.
"""

import netrc
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from scalify_cli.errors import UserError
from scalify_cli.tracking.sinks import BINS, LOWEST_EXPONENT, SPECIALS, Statistics, scale_counts

QUEUE = 8192  # records
OPEN_SECONDS = 40.0  # two starts of W&B's own process, and a server that does not answer
FINISH_SECONDS = 20.0
_ONLINE = ("", "online", "shared")  # values of WANDB_MODE
_EDGES = np.arange(LOWEST_EXPONENT, LOWEST_EXPONENT + BINS + 1)


@dataclass(frozen=True)
class WandbRun:
    """How the run appears in W&B; ``mode`` is ``auto``, ``online`` or ``offline``."""

    directory: Path
    id: str
    name: str
    project: str = "scalify"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    mode: str = "auto"
    init_timeout: float = 10.0


class Wandb:
    """A sink that hands records to the W&B client's thread, and drops them when it lags far behind.

    Args:
        run: how the run appears.
        history: records of earlier attempts, logged first so that each W&B run is whole.
        notify: gets a line when W&B has something to say; called from the client's thread.
        client: makes the client; it has ``log(record)`` and ``finish(state)``.
    """

    def __init__(
        self,
        run: WandbRun,
        *,
        history: Iterable[Mapping[str, Any]] = (),
        notify: Callable[[str], None] = lambda message: None,
        client: Callable[[WandbRun, Callable[[str], None]], Any] | None = None,
    ):
        self._notify = notify
        self._queue: queue.Queue[Callable[[Any], None]] = queue.Queue(QUEUE)
        self._dropped = False
        self._opened = threading.Event()
        work = (client or Client, run, list(history))
        self._thread = threading.Thread(target=self._work, args=work, name="wandb", daemon=True)
        self._thread.start()

    def record(self, record: Mapping[str, Any]) -> None:
        copy = dict(record)
        self._put(lambda client: client.log(_scalars(copy)))

    def histograms(self, step: int, statistics: Statistics) -> None:
        copy = {name: dict(tensor) for name, tensor in statistics.items()}
        self._put(lambda client: client.log(_histograms(step, copy)))

    def finish(self, state: str) -> None:
        """Wait for the client to write what it has, for ``FINISH_SECONDS`` once it is open."""

        def end(client: Any) -> None:
            try:
                client.finish(state)
            except Exception as error:  # its process dies with ours when a whole job is signalled
                self._notify_stopped(error)
            raise _Finished

        self._opened.wait(OPEN_SECONDS)
        with suppress(queue.Full):
            self._queue.put(end, timeout=FINISH_SECONDS / 2)
            self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._notify("W&B did not finish in time; `wandb sync` can send the rest later.")

    def _put(self, work: Callable[[Any], None]) -> None:
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self._warn_of_drop()

    def _warn_of_drop(self) -> None:
        if not self._dropped:
            self._dropped = True
            self._notify("W&B is too slow: some records are left out there, none in metrics.jsonl.")

    def _work(self, make: Callable, run: WandbRun, history: list[Mapping[str, Any]]) -> None:
        client: Any = None
        try:
            client = make(run, self._notify)
            self._opened.set()
            for record in history:
                client.log(_scalars(record))
            while True:
                self._queue.get()(client)
        except _Finished:
            return
        except Exception as error:  # whatever W&B raises, training goes on
            self._notify_stopped(error)
        self._opened.set()
        self._drain()

    def _notify_stopped(self, error: Exception) -> None:
        self._notify(f"W&B stopped: {_first_line(error)}; metrics.jsonl has everything.")

    def _drain(self) -> None:
        """Without a client: swallow records until the run ends."""
        swallow = _Swallow()
        try:
            while True:
                self._queue.get()(swallow)
        except _Finished:
            return


class Client:
    """The real client: online if it can be, else offline. Never asks anything.

    Raises:
        Exception: whatever the client raises; the caller is in its own thread.
    """

    def __init__(self, run: WandbRun, notify: Callable[[str], None]):
        self._wandb = _quiet_wandb()
        self._run = self._open(run, notify)
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")
        if self._run.url:
            notify(f"W&B: {self._run.url}")

    def log(self, record: Mapping[str, Any]) -> None:
        histogram = self._wandb.Histogram
        values = {
            key: histogram(np_histogram=(value, _EDGES)) if isinstance(value, np.ndarray) else value
            for key, value in record.items()
        }
        self._run.log(values)

    def finish(self, state: str) -> None:
        self._run.summary["state"] = state
        self._run.finish(exit_code=int(state == "failed"))

    def _open(self, run: WandbRun, notify: Callable[[str], None]) -> Any:
        credentials = find_credentials() if _may_go_online(run.mode) else None
        if credentials is None:
            return self._init(run, "offline")
        try:
            return self._init(run, "online", init_timeout=run.init_timeout, **credentials)
        except Exception as error:
            notify(f"W&B is out of reach ({_first_line(error)}); logging offline.")
            self._wandb.teardown()  # its service would refuse the run's id a second time
            return self._init(run, "offline")

    def _init(self, run: WandbRun, mode: str, **more: Any) -> Any:
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            disable_git=True,
            disable_code=True,
            finish_timeout=FINISH_SECONDS / 2,
            **more,
        )
        return self._wandb.init(
            mode=mode,
            settings=settings,
            dir=str(run.directory),
            id=run.id,
            name=run.name,
            project=run.project,
            entity=run.entity,
            group=run.group,
            tags=run.tags,
            config=run.config,
        )


def find_credentials() -> dict[str, str] | None:
    """What to tell the client's settings so that it need not ask; None: nothing is configured.

    Looks where the client looks: WANDB_API_KEY, an identity token, the settings files, netrc.
    """
    settings = _quiet_wandb().setup().settings
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return {}
    key = os.environ.get("WANDB_API_KEY") or settings.api_key or _netrc_key(settings.base_url)
    return {"api_key": key} if key else None


def require_credentials() -> None:
    """Check that an online run can be opened without asking for a key.

    Raises:
        UserError: no API key is configured.
    """
    if find_credentials() is None:
        raise UserError(
            "tracking.wandb=online needs a W&B API key, and none is configured.",
            "run `wandb login` or set WANDB_API_KEY, or use tracking.wandb=offline.",
        )


class _Finished(Exception):
    """The client's thread is done."""


class _Swallow:
    def log(self, record: Mapping[str, Any]) -> None:
        pass

    def finish(self, state: str) -> None:
        pass


def _quiet_wandb() -> Any:
    """The module; its import takes half a second, and these two it reads only from here."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its reports delay a process's exit
    import wandb

    return wandb


def _may_go_online(mode: str) -> bool:
    return mode == "online" or (mode == "auto" and os.environ.get("WANDB_MODE", "") in _ONLINE)


def _netrc_key(base_url: str) -> str | None:
    hosts = (urlsplit(base_url).netloc, "api.wandb.ai")
    path = os.environ.get("NETRC") or str(Path("~/.netrc").expanduser())
    try:
        entries = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        return None
    found = [entry[2] for host in hosts if (entry := entries.authenticators(host)) and entry[2]]
    return found[0] if found else None


def _scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in record.items() if k != "step" and v is not None}
    return {"train/step": record["step"], **rest}


def _histograms(step: int, statistics: Statistics) -> dict[str, Any]:
    record: dict[str, Any] = {"train/step": step}
    for name, tensor in statistics.items():
        record[f"histogram/{name}"] = np.asarray(tensor["counts"])[SPECIALS:]
        record[f"scale_histogram/{name}"] = scale_counts(tensor["scale_exponent"])[SPECIALS:]
    return record


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
