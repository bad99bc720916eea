"""Every point of a sweep ends where it belongs, whatever becomes of jobs, nodes and processes."""

import pytest
from night import LAUNCHER, STEPS, WORDS, Night, losses, scalify


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The losses of seeds 1 and 3 where nothing went wrong."""
    found = {}
    for seed in (1, 3):
        folder = tmp_path_factory.mktemp(f"undisturbed-{seed}")
        done = scalify("run", *WORDS, f"seed={seed}", "--quiet", folder=folder)
        assert done.returncode == 0, done.stderr
        found[seed] = losses(*(folder / "runs").glob("????????"))
    return found


@pytest.fixture(scope="session")
def night(cluster, undisturbed, tmp_path_factory):
    night = Night(cluster, tmp_path_factory.mktemp("night"))
    night.happen()
    return night


def test_every_point_is_in_its_state(night):
    assert night.states() == ["failed", "done", "cancelled", "done", "done", "cancelled"]


def test_the_second_start_finds_everything_under_way(night):
    assert "6 points: 0 new" in night.second.stderr
    assert not (night.folder / "runs/sweeps/n/slurm-2").exists()
    assert night.second.returncode == 1  # one has failed


def test_who_was_killed_is_told_apart_from_who_was_cancelled(night):
    assert night.written(0)["state"] == "failed"
    assert night.written(2)["state"] == night.written(5)["state"] == "cancelled"
    assert not (night.path(5) / "metrics.jsonl").exists()


@pytest.mark.parametrize("seed", [1, 3], ids=["preempted", "node killed"])
def test_what_was_interrupted_ends_as_if_it_was_not(night, undisturbed, seed):
    assert losses(night.path(seed)) == undisturbed[seed]
    assert set(losses(night.path(seed))) == set(range(1, STEPS + 1))


def test_what_was_preempted_began_twice(night):
    assert night.written(1)["attempt"] == 2


def test_what_failed_is_tried_again_when_asked(night):
    again = night.run(*night.sweep("--retry-failed"))
    assert "6 points: 0 new" in again.stderr
    assert night.states() == ["done", "done", "cancelled", "done", "done", "cancelled"]
    assert night.run(*night.sweep("-n")).stderr.count("0 new, 4 done, 2 cancelled") == 1


def test_a_run_of_its_own_diverges_and_says_so(night):
    words = [*LAUNCHER, *WORDS, "optimizer.learning_rate=1e30"]
    detached = night.run("run", *words, "-d")
    assert detached.returncode == 0
    assert "submitted as job" in detached.stderr
    waited = night.run("run", *words)
    assert waited.stdout.startswith(("diverged ", "already diverged "))  # by then, perhaps
