"""Jobs as SLURM's commands tell of them."""

import signal
from pathlib import Path

import pytest

from scalify_cli.errors import UserError
from scalify_cli.launch.squeue import (
    Job,
    NoAnswer,
    accounted,
    cancel,
    largest_array,
    poll,
    submit,
)

QUEUE = """\
12_0|RUNNING|None|node1
12_1|PENDING|Resources|
12_2|FAILED|NonZeroExitCode|node2
13|COMPLETED|None|node1
"""


def test_one_question_for_all_jobs(slurm):
    slurm.answers("squeue", QUEUE)
    jobs = poll(["12_0", "12_1", "12_2", "99"])
    assert jobs == {
        "12_0": Job("12_0", "RUNNING", "", "node1"),
        "12_1": Job("12_1", "PENDING", "Resources"),
        "12_2": Job("12_2", "FAILED", "NonZeroExitCode", "node2"),
    }
    assert slurm.calls == ["squeue -h -r --states=all -j 12,99 -o %i|%T|%r|%N"]
    assert [job.over for job in jobs.values()] == [False, False, True]


def test_nothing_is_asked_about_no_jobs(slurm):
    assert poll([]) == accounted([]) == {}
    cancel()
    assert slurm.calls == []


def test_a_job_that_the_controller_has_forgotten_is_not_there(slurm):
    slurm.answers("squeue", "error: slurm_load_jobs error: Invalid job id specified")
    assert poll(["12_0"]) == {}


def test_a_controller_that_does_not_answer_is_no_empty_queue(slurm):
    slurm.answers("squeue", "error: Unable to contact slurm controller")
    with pytest.raises(NoAnswer, match="Unable to contact slurm controller"):
        poll(["12_0"])


def test_a_machine_without_slurm_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoAnswer, match="there is no squeue on this machine"):
        poll(["12_0"])


def test_accounting_remembers(slurm):
    slurm.answers("sacct", "12_0|CANCELLED by 1000|0:0|node1\n12_1|PENDING|0:0|None assigned\n")
    assert accounted(["12_0", "12_1"]) == {
        "12_0": Job("12_0", "CANCELLED", "", "node1"),
        "12_1": Job("12_1", "PENDING"),
    }


def test_without_accounting_nothing_is_remembered(slurm):
    slurm.answers("sacct", "error: Slurm accounting storage is disabled")
    assert accounted(["12_0"]) == {}


def test_a_script_is_submitted_without_an_outer_jobs_variables(slurm, monkeypatch):
    slurm.answers("sbatch", "12;cluster\n")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    (slurm.folder / "sbatch").write_text(
        (slurm.folder / "sbatch").read_text()
        + "import os; assert 'SLURM_MEM_PER_NODE' not in os.environ\n"
    )
    answer = slurm.folder / "job"
    assert submit(Path("job.sbatch"), answer, "--dependency=afterany:11") == "12"
    assert slurm.calls == ["sbatch --parsable --dependency=afterany:11 job.sbatch"]


@pytest.fixture
def interruptible():
    """Ctrl-C raises here, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_until_the_jobs_id_is_on_the_disk(slurm, interruptible):
    script = "#!/bin/sh\nkill -INT $PPID\nsleep 0.5\necho 12\n"
    (slurm.folder / "sbatch").write_text(script)
    with pytest.raises(KeyboardInterrupt):
        submit(Path("job.sbatch"), slurm.folder / "job")
    assert (slurm.folder / "job").read_text() == "12\n"


def test_what_slurm_refuses_is_told_with_its_own_reason(slurm):
    slurm.answers("sbatch", "error: sbatch: error: invalid partition specified: gpu")
    with pytest.raises(UserError, match="invalid partition specified: gpu") as refusal:
        submit(Path("job.sbatch"), slurm.folder / "job")
    assert "job.sbatch" in refusal.value.hint
    assert not (slurm.folder / "job").exists()


@pytest.mark.parametrize(
    ("answer", "size"),
    [("MaxArraySize            = 64\n", 64), ("MaxArraySize = 0\n", 1), ("error: down", 1001)],
)
def test_the_cluster_says_how_large_an_array_may_be(slurm, answer, size):
    slurm.answers("scontrol", answer)
    assert largest_array() == size
