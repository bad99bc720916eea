"""Optax's optimizers, and what is wrapped around them, under ``jit(scalify(update))``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from framework_models import CLASSES, cross_entropy
from recipes import check_losses, train

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.03, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.03, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "lion": lambda: optax.lion(3e-3),
    "rmsprop": lambda: optax.rmsprop(1e-2),
    "adafactor": lambda: optax.adafactor(3e-2, min_dim_size_to_factor=8),
    "lamb": lambda: optax.lamb(3e-2),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "scheduled": lambda: optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-2, 3, 12)),
    "accumulated": lambda: optax.MultiSteps(optax.adamw(2e-2), 2),
}
WIDE_STATE = {"adafactor", "clipped", "accumulated"}
"""Their squares of small numbers need float32's range, whatever the scale of a whole tensor."""


@functools.cache
def model():
    """A multi-layer perceptron as a pure function of a dict of parameters."""
    draw = np.random.default_rng(0)
    up = jnp.float32(draw.normal(size=(64, 24)) / 8)
    down = jnp.float32(draw.normal(size=(24, CLASSES)) / 5)
    parameters = {"up": up, "gain": jnp.ones(24), "down": down, "bias": jnp.zeros(CLASSES)}

    def loss(p, carried, x, labels):
        hidden = jax.nn.relu(x.reshape(x.shape[0], -1) @ p["up"]) * p["gain"]
        return cross_entropy(hidden @ p["down"] + p["bias"], labels), carried

    return (parameters, ()), loss


@functools.cache
def plain(name):
    return train(model(), OPTIMIZERS[name]())


def distance(parameters, wanted):
    """How far from its place a tensor ended at most, as a fraction of the way it went."""
    start, norm = model()[0][0], jnp.linalg.norm
    return max(float(norm(parameters[k] - w) / norm(start[k] - w)) for k, w in wanted.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_is_plain_jax(name):
    losses, parameters = train(model(), OPTIMIZERS[name](), "fp32")
    check_losses(losses, plain(name)[0], "fp32")
    assert distance(parameters, plain(name)[1]) < 2**-16


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fp8_with_a_float32_state(name):
    check_losses(train(model(), OPTIMIZERS[name](), "fp8")[0], plain(name)[0], "fp8")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - WIDE_STATE))
def test_fp16_with_a_float16_state(name):
    losses, parameters = train(model(), OPTIMIZERS[name](), "fp16", jnp.float16)
    check_losses(losses, plain(name)[0], "fp16")
    assert distance(parameters, plain(name)[1]) < 2**-3
