"""What ``scalify`` costs on top of plain JAX: ``python -m benchmarks.transform``.

For each program, plain and scalified, in one process: CPU seconds of trace and lowering and of the
step, both interleaved and the median of several, of compilation, and instructions of the optimized
HLO. Only ratios are printed; where the scanned GPT has both depths, that of compiling them too.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from scalify_cli.core import as_scaled, scalify
from scalify_cli.models.gpt import GPT
from scalify_cli.training.optimizer import AdamW

DTYPES = ("float32", "bfloat16", "float16")
VOCABULARY, BATCH = 8192, 8


class Program(NamedTuple):
    """A training step over (parameters, moments), and a batch for it."""

    update: Callable[[Any, Any], Any]
    state: Any
    batch: Any


def trained(loss: Callable, parameters: Any, batch: Any) -> Program:
    """value_and_grad and AdamW, as one writes them by hand."""
    optimizer = AdamW().build(1000)

    def update(state, batch):
        parameters, moments = state
        value, gradients = jax.value_and_grad(loss)(parameters, batch)
        updates, moments = optimizer.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, updates), moments), value

    return Program(update, (parameters, optimizer.init(parameters)), batch)


class Unrolled(GPT):
    """The same model with its layers written one after the other."""

    def _blocks(self, x: Any, weights: Any) -> Any:
        for i in range(self.layers):
            x = self._block(x, jax.tree.map(lambda stacked, i=i: stacked[i], weights))
        return x


def gpt(dtype: Any, layers: int = 4, kind: type[GPT] = GPT) -> Program:
    model = kind(layers, 256, 4, 256).for_vocabulary(VOCABULARY)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, 257), np.int32)
    return trained(model.loss, _cast(model.init(jax.random.key(0)), dtype), tokens)


def mlp(dtype: Any) -> Program:
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = ((784, 1024), (1024, 1024), (1024, 10))
    weights = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, sizes, strict=True)]

    def loss(weights, batch):
        x, labels = batch
        for weight in weights[:-1]:
            x = jax.nn.relu(x @ weight)
        return -jnp.mean(jax.nn.log_softmax(x @ weights[-1])[jnp.arange(labels.size), labels])

    batch = jax.random.normal(keys[0], (256, 784)), np.arange(256, dtype=np.int32) % 10
    return trained(loss, _cast(weights, dtype), _cast(batch, dtype))


def cnn(dtype: Any) -> Program:
    keys = jax.random.split(jax.random.key(0), 3)
    weights = [
        jax.random.normal(keys[0], (3, 3, 3, 32)) / 5,
        jax.random.normal(keys[1], (3, 3, 32, 32)) / 17,
        jax.random.normal(keys[2], (32, 10)) / 6,
    ]

    def loss(weights, batch):
        x, labels = batch
        for kernel in weights[:-1]:
            form = ("NHWC", "HWIO", "NHWC")
            x = jax.nn.relu(lax.conv_general_dilated(x, kernel, (2, 2), "SAME", None, None, form))
        logits = jnp.mean(x, (1, 2)) @ weights[-1]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(labels.size), labels])

    batch = jax.random.normal(keys[0], (32, 32, 32, 3)), np.arange(32, dtype=np.int32) % 10
    return trained(loss, _cast(weights, dtype), _cast(batch, dtype))


def _cast(tree: Any, dtype: Any) -> Any:
    floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: x.astype(dtype) if floats(x) else x, tree)


SHALLOW, DEEP = "gpt, 4 layers", "gpt, 24 layers"
PROGRAMS = {
    SHALLOW: gpt,
    "gpt, unrolled": lambda dtype: gpt(dtype, kind=Unrolled),
    DEEP: lambda dtype: gpt(dtype, 24),
    "mlp": mlp,
    "cnn": cnn,
}


class Measured(NamedTuple):
    """CPU seconds, HLO instructions, and the compiled step with its state."""

    compile: float
    instructions: int
    step: Any
    state: Any


def prepare(update: Callable, state: Any, batch: Any) -> Measured:
    lowered = jax.jit(update).trace(state, batch).lower()
    start = time.process_time()
    step = lowered.compile()
    taken = time.process_time() - start
    instructions = len(re.findall(r"^\s+(?:ROOT )?%\S+ = ", step.as_text(), re.MULTILINE))
    return Measured(taken, instructions, step, state)


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start


def median_ratio(ours: Callable[[], Any], plain: Callable[[], Any], rounds: int) -> float:
    """Of calls in turn, the first two pairs left out."""
    both = [(seconds(ours), seconds(plain)) for _ in range(rounds + 2)]
    return float(np.median([a / b for a, b in both[2:]]))


def ratios(program: Program, rounds: int) -> tuple[list[float], float]:
    """Ours over plain: step, compile, trace and lowering, instructions; and seconds of ours to
    compile."""
    update, batch, states = program.update, program.batch, (as_scaled(program.state), program.state)

    def lower(wrap: Callable, state: Any) -> None:
        new = wrap(lambda *args: update(*args))  # which JAX has not seen
        jax.jit(new).trace(state, batch).lower()

    forms = zip((scalify, lambda f: f), states, strict=True)
    traced = median_ratio(*(partial(lower, *form) for form in forms), rounds)
    plain, ours = prepare(update, states[1], batch), prepare(scalify(update), states[0], batch)
    calls = (partial(x.step, x.state, batch) for x in (ours, plain))
    sizes = ours.instructions / plain.instructions
    found = [median_ratio(*calls, rounds), ours.compile / plain.compile, traced, sizes]
    return found, ours.compile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--program", choices=PROGRAMS, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    options = parser.parse_args()
    print(f"{'program':16s} {'dtype':10s} {'step':>6s} {'compile':>8s} {'lower':>6s} {'HLO':>6s}")
    compiled: dict[tuple[str, str], float] = {}
    for name in options.program or PROGRAMS:
        for dtype in options.dtype or DTYPES:
            row, compiled[name, dtype] = ratios(PROGRAMS[name](jnp.dtype(dtype)), options.rounds)
            print(f"{name:16s} {dtype:10s} " + " ".join(f"{x:7.2f}" for x in row), flush=True)
    for dtype in DTYPES:
        if {(DEEP, dtype), (SHALLOW, dtype)} <= compiled.keys():
            ratio = compiled[DEEP, dtype] / compiled[SHALLOW, dtype]
            print(f"{DEEP} / {SHALLOW}, {dtype}: compile {ratio:.2f}")


if __name__ == "__main__":
    main()
