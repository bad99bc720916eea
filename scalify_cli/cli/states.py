"""What has become of runs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo


def true_states(runs: "list[RunInfo]") -> "list[RunInfo]":
    """The runs in their true states."""
    return runs
