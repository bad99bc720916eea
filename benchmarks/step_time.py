"""Step time against plain JAX, all variants interleaved in one process: ``make bench``.

The machine's speed drifts, so only ratios of steps taken side by side are reported: the median of
the paired ratios, for wall and for CPU time. The plain variants are what one writes by hand: the
same model, parameters cast to the compute dtype, float32 weights and optax AdamW.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scalify_cli.models.gpt import GPT
from scalify_cli.precision import load_precision
from scalify_cli.training.optimizer import AdamW
from scalify_cli.training.step import Step

PAIRS = (
    ("fp8+scalify", "plain bf16"),
    ("fp32+scalify", "plain fp32"),
    ("fp8+none", "plain bf16"),
    ("plain bf16", "plain fp32"),
)
SIZES = {
    "gpt_nano": (GPT(4, 96, 3, 256), 8192, 8, 128),
    "4x256": (GPT(4, 256, 4, 256), 8192, 8, 256),
}


@dataclass
class Variant:
    """A compiled step with its state, and the seconds that each call took."""

    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self, batch: np.ndarray) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.state, output = self.step(self.state, batch)
        jax.block_until_ready(output)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def plain(model: GPT, dtype: Any) -> Variant:
    """The step one writes by hand: float32 weights, compute in ``dtype``."""
    optimizer = AdamW().build(1000)

    def step(state, batch):
        parameters, moments = state
        loss, gradients = jax.value_and_grad(
            lambda p: model.loss(jax.tree.map(lambda x: x.astype(dtype), p), batch)
        )(parameters)
        updates, moments = optimizer.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, updates), moments), loss

    parameters = model.init(jax.random.key(0))
    return Variant(jax.jit(step, donate_argnums=0), (parameters, optimizer.init(parameters)))


def recipe(model: GPT, name: str) -> Variant:
    """The step of ``precision=… scaling=…``, as ``scalify run`` takes it."""
    precision, scaling = name.split("+")
    step = Step(model, load_precision(precision, scaling), AdamW(), 1000)
    return Variant(step.update, step.init(jax.random.key(0)))


def measure(size: str, rounds: int) -> dict[str, Variant]:
    """All variants of one model, ``rounds`` steps each, in alternating order."""
    shape, vocabulary, batch, time_steps = SIZES[size]
    model = shape.for_vocabulary(vocabulary)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (batch, time_steps + 1), np.int32)
    variants = {
        "plain fp32": plain(model, jnp.float32),
        "plain bf16": plain(model, jnp.bfloat16),
        **{name: recipe(model, name) for name in ("fp32+scalify", "fp8+scalify", "fp8+none")},
    }
    for count in range(rounds + 2):
        for variant in list(variants.values())[:: 1 if count % 2 else -1]:
            variant.run(tokens)
    for variant in variants.values():
        del variant.wall[:2], variant.cpu[:2]  # compilation and first touch
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", choices=SIZES, action="append")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, {options.rounds} interleaved rounds")
    print(f"{'model':10s} {'step / step':28s} {'wall':>6s} {'cpu':>6s} {'ms':>8s}")
    for size in options.size or SIZES:
        variants = measure(size, options.rounds)
        for ours, base in PAIRS:
            a, b = variants[ours], variants[base]
            wall = np.median(np.divide(a.wall, b.wall))
            cpu = np.median(np.divide(a.cpu, b.cpu))
            pair, milliseconds = f"{ours} / {base}", 1e3 * np.median(a.wall)
            print(f"{size:10s} {pair:28s} {wall:6.2f} {cpu:6.2f} {milliseconds:8.1f}")


if __name__ == "__main__":
    main()
