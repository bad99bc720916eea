"""Which sinks a run's records go to: the ``tracking`` group of the configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from scalify_cli.errors import UserError
from scalify_cli.tracking.sinks import Fanout, Histograms, Jsonl, Sink, read_records
from scalify_cli.tracking.wandb import Wandb, WandbRun, require_credentials

MODES = ("auto", "online", "offline", "off")


@dataclass(frozen=True)
class Tracking:
    """W&B's part of the tracking; the run directory's files are always written.

    Args:
        wandb: ``auto`` (online when an API key is configured, else offline), ``online``,
            ``offline`` or ``off``.
        project: W&B project.
        entity: W&B team or user; None: the account's default.
        group: W&B group.
        init_timeout: seconds to wait for the W&B server before logging offline.

    Raises:
        UserError: an unknown mode, or a timeout that is not positive.
    """

    wandb: str = "auto"
    project: str = "scalify"
    entity: Optional[str] = None  # noqa: UP045  (OmegaConf reads this annotation)
    group: Optional[str] = None  # noqa: UP045
    init_timeout: float = 10.0

    def __post_init__(self):
        if self.wandb not in MODES:
            raise UserError(
                f"tracking.wandb={self.wandb}: no such mode.", f"choose from: {', '.join(MODES)}."
            )
        if not self.init_timeout > 0:
            raise UserError(
                f"tracking.init_timeout={self.init_timeout} is not positive.",
                "give a number of seconds, such as tracking.init_timeout=10.",
            )

    def open(
        self,
        directory: Path,
        *,
        run_id: str,
        resumed_step: int | None = None,
        attempt: int = 1,
        config: dict[str, Any] | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> Sink:
        """The sinks of one attempt at a run.

        Args:
            directory: the run directory.
            run_id: the run's id.
            resumed_step: the step training goes on from; later records of an earlier attempt are
                dropped. None: start afresh.
            attempt: 1 for the first process that runs this point, 2 for the next, ...
            config, name, tags: shown in W&B.
            notify: gets one line when W&B has something to say.

        Raises:
            UserError: ``online`` was asked for and no API key is configured.
        """
        files: list[Sink] = [
            Jsonl(directory / "metrics.jsonl", resumed_step),
            Histograms(directory / "histograms", resumed_step),
        ]
        if self.wandb == "off":
            return Fanout(files)
        if self.wandb == "online":
            require_credentials()
        run = self._run(directory, f"{run_id}-{attempt}", name or run_id, tags or [], config or {})
        history = list(read_records(directory / "metrics.jsonl"))
        return Fanout([*files, Wandb(run, history=history, notify=notify)])

    def _run(
        self, directory: Path, id: str, name: str, tags: list[str], config: dict[str, Any]
    ) -> WandbRun:
        return WandbRun(
            directory=directory,
            id=id,
            name=name,
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=tuple(tags),
            config=config,
            mode=self.wandb,
            init_timeout=self.init_timeout,
        )
