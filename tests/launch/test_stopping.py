"""A first signal is noted or ends the run; a second one does what it always did."""

import os
import signal
import threading

import pytest

from scalify_cli.launch.stopping import Stopped, stop_on_signals


@pytest.fixture(autouse=True)
def heard():
    """Signals that reached the handlers there were before."""
    numbers = []
    before = {
        number: signal.signal(number, lambda number, frame: numbers.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_waits_to_be_asked_for(name, heard):
    with stop_on_signals() as stop, stop.deferred():
        assert stop() is None
        os.kill(os.getpid(), signal.Signals[name])
        assert stop() == name
    assert heard == []


def test_a_signal_with_nothing_to_save_ends_the_run_at_once():
    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signals() as stop:
        with stop.deferred():
            pass
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_is_not_caught(heard):
    with stop_on_signals() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGINT, signal.SIGTERM]


def test_afterwards_signals_do_what_they_did(heard):
    with stop_on_signals():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_a_thread_catches_nothing(heard):
    found = []

    def work():
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (found, heard) == ([None], [signal.SIGTERM])


def test_a_cluster_may_repeat_itself(heard, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with stop_on_signals() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == "SIGTERM"
    assert heard == []
