"""Batches shared out over devices: which, how many, and that the numbers stay."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from scalify_cli.errors import UserError
from scalify_cli.training.parallel import usable
from scalify_cli.training.trainer import Trainer

SETUP = """
import sys, jax
from scalify_cli.config import build, compose
from scalify_cli.experiment import assemble
words = "model=gpt_nano model.layers=1 model.width=24 data.tokenizer=bytes"
words += " trainer.batch_size=4 trainer.sequence_length=32"
job = assemble(compose([*words.split(), *sys.argv[1:]]), "off", lambda text: None)
state = job.step.init(jax.random.key(0))
"""
LOSSES = """
for step in range(3):
    batch = job.dataset.batch(0, step, 4, 32)
    state, metrics = job.step.update(state, batch)
    print(float(metrics["loss"]))
print(float(job.step.evaluate(state, batch)))
"""

STATE = """
import hashlib
leaves = [jax.device_get(x).tobytes() for x in jax.tree.leaves(state)]
print(hashlib.md5(b"".join(leaves)).hexdigest())
"""
PROGRAM = """
import hashlib
batch = job.step._placed(job.dataset.batch(0, 0, 4, 32))
print(hashlib.md5(job.step._update.lower(state, batch).as_text().encode()).hexdigest())
"""


def printed(code: str, devices: int, *words: str, **variables: str) -> list[str]:
    """By a process that has so many devices."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment = {**os.environ, **flags, **variables}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout.split()


def losses(devices: int, *words: str) -> list[float]:
    """Of three updates and an evaluation."""
    return [float(line) for line in printed(SETUP + LOSSES, devices, *words)]


def devices(*processes: int) -> Any:
    return [SimpleNamespace(process_index=index) for index in processes]


def trainer(batch_size: int, accumulate: int | None) -> Trainer:
    return Trainer(steps=1, batch_size=batch_size, sequence_length=8, accumulate=accumulate)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "count"),
    [(8, 1, 8), (8, 2, 4), (4, 1, 4), (6, 1, 6), (7, 1, 7), (5, 5, 5), (5, 1, 5), (3, 1, 3)],
)
def test_one_process_uses_as_many_devices_as_the_batch_splits_over(batch_size, accumulate, count):
    found = usable(devices(*[0] * 8), trainer(batch_size, accumulate))
    assert len(found) == count


def test_processes_use_all_or_none():
    assert len(usable(devices(0, 1), trainer(3, 1))) == 2


def test_a_batch_that_does_not_split_is_refused():
    message = r"trainer\.batch_size=8 in 2 micro-batches does not split over 3 devices"
    with pytest.raises(UserError, match=message) as refused:
        trainer(8, 2).require_split(3)
    assert "a multiple of 6" in refused.value.hint


SAME = {
    "rows in FP32": ("precision=fp32", "trainer.accumulate=1"),
    "rows in FP8": ("precision=fp8", "trainer.accumulate=1"),
    "micro-batches in FP32": ("precision=fp32", "trainer.accumulate=null"),
}


@pytest.mark.parametrize("words", SAME.values(), ids=SAME.keys())
def test_two_devices_give_the_losses_of_one(words):
    assert losses(2, *words) == pytest.approx(losses(1, *words), rel=1e-6)


@pytest.mark.parametrize("precision", ["fp8", "fp16", "bf16"])
def test_whole_micro_batches_give_the_losses_of_one_device_bit_for_bit(precision):
    words = f"precision={precision}", "trainer.accumulate=null"
    bits = [printed(SETUP + LOSSES + STATE, devices, *words) for devices in (1, 2, 4)]
    assert bits == bits[:1] * 3


@pytest.mark.parametrize(
    ("batch_size", "count", "parts"),
    [(8, 1, 4), (8, 4, 4), (8, 8, 8), (6, 1, 2), (6, 3, 2), (9, 3, 1), (5, 5, 1), (10, 5, 2)],
)
def test_parts_depend_on_the_devices_only_where_they_must(batch_size, count, parts):
    assert trainer(batch_size, None).micro_batches(count) == parts
    assert len(usable(devices(*[0] * count), trainer(batch_size, None))) == count


def test_all_processes_compile_the_same_program():
    """Whatever their hashes: collectives in another order would wait for each other for ever."""
    words = "precision=fp8", "trainer.accumulate=4"
    programs = [printed(SETUP + PROGRAM, 4, *words, PYTHONHASHSEED=seed) for seed in "056"]
    assert programs == programs[:1] * 3
