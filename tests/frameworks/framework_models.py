"""One model in each framework, as its documentation writes them: ``(parameters, loss)``.

Each tells four patterns apart in noisy images [batch, 8, 8]; ``loss(parameters, images, labels)``
returns the mean cross-entropy and what the model carries from step to step beside parameters.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import optax
from flax import nnx

CLASSES = 4


def images(seed: int, count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 8, 8] and their labels [count]."""
    means = np.random.default_rng(7).normal(size=(CLASSES, 8, 8))
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    return np.float32(means[labels] + 2 * draw.normal(size=(count, 8, 8))), np.int32(labels)


def cross_entropy(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Convolutions(nn.Module):
    """Convolutions, batch norm (its averages are mutable state) and dropout, in Linen."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(8, (3, 3), strides=2)(x[..., None])
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(CLASSES)(x)


def linen() -> tuple[Any, Callable]:
    model = Convolutions()
    variables = model.init(jax.random.key(0), images(0)[0], train=False)

    def loss(parameters, averages, x, labels):
        logits, changed = model.apply(
            {"params": parameters, "batch_stats": averages},
            x,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels), changed["batch_stats"]

    return (variables["params"], variables["batch_stats"]), loss


class Attention(nnx.Module):
    """A transformer block over the rows of an image, in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        x = x + self.attention(self.norm(x))
        return self.head(x.mean(axis=1))


def flax_nnx() -> tuple[Any, Callable]:
    graph, parameters, rest = nnx.split(Attention(nnx.Rngs(0)), nnx.Param, ...)

    def loss(parameters, rest, x, labels):
        model = nnx.merge(graph, parameters, rest)
        return cross_entropy(model(x), labels), rest

    return (parameters, rest), loss


def equinox() -> tuple[Any, Callable]:
    model = eqx.nn.MLP(64, CLASSES, 32, 2, activation=jax.nn.gelu, key=jax.random.key(0))
    parameters, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(parameters, carried, x, labels):
        model = eqx.combine(parameters, static)
        return cross_entropy(jax.vmap(model)(x.reshape(x.shape[0], -1)), labels), carried

    return (parameters, ()), loss


def recurrent(x):
    """A GRU over the rows of an image, in Haiku."""
    core = hk.GRU(16)
    states, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
    return hk.Linear(CLASSES)(hk.LayerNorm(-1, True, True)(states[:, -1]))


def haiku() -> tuple[Any, Callable]:
    model = hk.without_apply_rng(hk.transform(recurrent))
    parameters = model.init(jax.random.key(0), images(0)[0])

    def loss(parameters, carried, x, labels):
        return cross_entropy(model.apply(parameters, x), labels), carried

    return (parameters, ()), loss


MODELS = {"linen": linen, "nnx": flax_nnx, "equinox": equinox, "haiku": haiku}
