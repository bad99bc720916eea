"""Batches shared out over devices: which, how many, and that the numbers stay."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from scalify_cli.errors import UserError
from scalify_cli.training.parallel import DataParallel, usable

LOSSES = """
import sys, jax
from scalify_cli.config import build, compose
from scalify_cli.experiment import assemble
words = "model=gpt_nano model.layers=1 model.width=24 data.tokenizer=bytes"
words += " trainer.batch_size=4 trainer.sequence_length=32"
job = assemble(compose([*words.split(), *sys.argv[1:]]), "off", lambda text: None)
state = job.step.init(jax.random.key(0))
for step in range(3):
    batch = job.dataset.batch(0, step, 4, 32)
    state, metrics = job.step.update(state, batch)
    print(float(metrics["loss"]))
print(float(job.step.evaluate(state, batch)))
"""


def losses(devices: int, *words: str) -> list[float]:
    """Of three updates and an evaluation in a process that has so many devices."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", LOSSES, *words]
    done = subprocess.run(command, env={**os.environ, **flags}, stdout=subprocess.PIPE, check=True)
    return [float(line) for line in done.stdout.split()]


def devices(*processes: int) -> Any:
    return [SimpleNamespace(process_index=index) for index in processes]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "count"),
    [(8, 1, 8), (8, 2, 4), (4, 1, 4), (6, 1, 6), (7, 1, 7), (5, 5, 5), (5, 1, 5), (3, 1, 3)],
)
def test_one_process_uses_as_many_devices_as_the_batch_splits_over(batch_size, accumulate, count):
    found = usable(devices(*[0] * 8), batch_size, accumulate)
    assert len(found) == count


def test_processes_use_all_or_none():
    assert len(usable(devices(0, 1), 3, 1)) == 2


def test_a_batch_that_does_not_split_is_refused():
    message = r"trainer\.batch_size=8 in 2 micro-batches does not split over 3 devices"
    with pytest.raises(UserError, match=message) as refused:
        DataParallel(devices(0, 1, 2), 8, 2)
    assert "a multiple of 6" in refused.value.hint


SAME = {
    "rows in FP32": ("precision=fp32", "trainer.accumulate=1"),
    "rows in FP8": ("precision=fp8", "trainer.accumulate=1"),
    "micro-batches": ("precision=fp8", "trainer.accumulate=2"),
}


@pytest.mark.parametrize("words", SAME.values(), ids=SAME.keys())
def test_two_devices_give_the_losses_of_one(words):
    assert losses(2, *words) == pytest.approx(losses(1, *words), rel=1e-6)
