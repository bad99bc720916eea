"""One ``error:`` line, one ``hint:`` line, an exit code; a traceback only on request."""

import errno

import pytest

from scalify_cli.cli.errors import explain
from scalify_cli.config import signature
from scalify_cli.errors import UserError

GOLDEN = {
    ("run", "precison=fp8"): (
        "error: 'precison=fp8': there is no 'precison'\nhint: did you mean 'precision'?\n"
    ),
    ("run", "precision=fp8,fp16"): (
        "error: 'precision=fp8,fp16' names more than one value, and this is one run\n"
        "hint: use `scalify sweep precision=fp8,fp16`\n"
    ),
    ("run", "trainer.steps=-1"): (
        "error: trainer.steps=-1 is too small\n"
        "hint: trainer.steps is a whole number of at least 1\n"
    ),
    ("run", "--presicion=fp8"): (
        "error: No such option: --presicion\n"
        "hint: configuration is written key=value, without dashes\n"
    ),
    ("run", "--wandb", "maybe"): (
        "error: Invalid value for '--wandb': 'maybe' is not one of "
        "'auto', 'online', 'offline', 'off'\n"
        "hint: see `scalify run --help`\n"
    ),
    (
        "rum",
    ): "error: No such command 'rum'. Did you mean 'rm', 'run'?\nhint: see `scalify --help`\n",
    ("show",): "error: Missing argument 'ID|SWEEP...'\nhint: see `scalify show --help`\n",
    ("configs", "modl"): "error: there is no group 'modl'\nhint: did you mean 'model'?\n",
    ("configs", "model=gpt_nona"): (
        "error: model has no option 'gpt_nona'\nhint: did you mean 'gpt_nano'?\n"
    ),
}
MISTAKES = [
    "precision=fp9",
    "model.widht=3",
    "+foo=1",
    "~seed",
    "=3",
    "precision",
    "precision=null",
    "hydra.run.dir=x",
    "model.width=abc",
    "model.width=${nope}",
    "name=a=b",
]


@pytest.mark.parametrize("arguments", GOLDEN)
def test_golden_messages(scalify, arguments):
    result = scalify(*arguments)
    assert (result.err, result.out, result.code) == (GOLDEN[arguments], "", 2)


@pytest.mark.parametrize("word", MISTAKES)
def test_every_mistake_is_two_lines_and_exit_2(scalify, word):
    result = scalify("run", word)
    first, second = result.err.splitlines()
    assert first.startswith("error: ") and second.startswith("hint: ")
    assert result.code == 2


@pytest.mark.parametrize("ask", ["flag", "variable"])
def test_a_traceback_only_on_request(scalify, monkeypatch, ask):
    if ask == "variable":
        monkeypatch.setenv("SCALIFY_DEBUG", "1")
    result = scalify("run", "precison=fp8", *(["-v"] if ask == "flag" else []))
    assert "Traceback" in result.err
    assert result.err.splitlines()[-2].startswith("error: ")


@pytest.mark.parametrize("command", [("run",), ("sweep", "smoke")])
def test_runs_dir_that_cannot_be_written(scalify, experiment, tmp_path, command):
    (tmp_path / "file").write_text("")
    result = scalify(*command, "--runs-dir", str(tmp_path / "file" / "runs"))
    assert result.code == 2
    assert result.err == (
        f"error: runs cannot be written to {tmp_path}/file/runs: Not a directory\n"
        "hint: choose another folder with --runs-dir\n"
    )
    assert experiment.calls == []


def test_a_disk_that_is_full_before_the_start(scalify, experiment):
    experiment.records = []
    experiment.fail = OSError(errno.ENOSPC, "No space left on device", "runs/x")
    result = scalify("run")
    assert result.code == 2
    assert result.err == (
        "error: the disk is full: runs/x\n"
        "hint: free some space, or choose another disk with --runs-dir\n"
    )


def test_a_runs_folder_on_a_full_disk(scalify, experiment, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    result = scalify("run")
    assert (result.code, experiment.calls) == (2, [])
    assert result.err == (
        "error: runs cannot be written to runs: No space left on device\n"
        "hint: free some space, or choose another disk with --runs-dir\n"
    )


def test_a_disk_that_fills_while_running(scalify, experiment):
    experiment.fail = RuntimeError("write failed: No space left on device [code 28]")
    result = scalify("run", "-q")
    assert result.code == 1
    assert result.err.startswith("error: the disk is full\nhint: free some space")


def test_an_unknown_exception_points_to_the_log(scalify, experiment, tmp_path):
    from scalify_cli.config import compose

    log = tmp_path / "runs" / signature(compose()) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("")
    experiment.fail = RuntimeError("two\nlines")
    result = scalify("run", "-q", "--runs-dir", str(tmp_path / "runs"))
    assert result.code == 1
    assert result.err == (
        f"error: RuntimeError: two lines\nhint: see {log}; -v prints the traceback\n"
    )


def test_a_user_error_of_the_run_is_printed_as_it_is(scalify, experiment):
    experiment.fail = UserError("the file is empty.", "name another.", 2)
    result = scalify("run", "-q")
    assert (result.code, result.err) == (2, "error: the file is empty\nhint: name another\n")


def test_interruption_is_130(scalify, experiment):
    experiment.fail = KeyboardInterrupt()
    assert scalify("run", "-q").code == 130


def test_a_full_disk_is_found_below_other_errors():
    cause = OSError(errno.ENOSPC, "No space left on device")
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = cause
    assert explain(wrapped).message == "the disk is full"
