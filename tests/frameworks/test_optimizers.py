"""Optax's optimizers, and what is wrapped around them, under ``jit(scalify(update))``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from framework_models import CLASSES, cross_entropy
from recipes import check_losses, train

from scalify_cli.core import as_scaled, is_float, scalify, unscale

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.03, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.03, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "adabelief": lambda: optax.adabelief(1e-2),
    "lion": lambda: optax.lion(3e-3),
    "rmsprop": lambda: optax.rmsprop(1e-2),
    "adafactor": lambda: optax.adafactor(3e-2, min_dim_size_to_factor=8),
    "lamb": lambda: optax.lamb(3e-2),
    "muon": lambda: optax.contrib.muon(1e-2),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "scheduled": lambda: optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-2, 3, 12)),
    "accumulated": lambda: optax.MultiSteps(optax.adamw(2e-2), 2),
}


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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fp16_with_a_float16_state(name):
    losses, parameters = train(model(), OPTIMIZERS[name](), "fp16", jnp.float16)
    check_losses(losses, plain(name)[0], "fp16")
    assert distance(parameters, plain(name)[1]) < 2**-3


@pytest.mark.parametrize("name", ["adam", "rmsprop", "momentum"])
def test_averages_of_falling_gradients_stay_in_range(name):
    optimizer = OPTIMIZERS[name]()

    def update(state, gradient):
        parameters, moments = state
        updates, moments = optimizer.update(gradient, moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    start = jnp.float16([1, -1, 0.5])
    wide = jax.tree.map(
        lambda x: jnp.float32(x) if is_float(x) else x, (start, optimizer.init(start))
    )
    state, steps = (
        as_scaled((start, optimizer.init(start))),
        map(jax.jit, (scalify(update), update)),
    )
    scaled_step, step = steps
    for i in range(60):
        gradient = jnp.float16([1, -1.3, 0.7]) * (1 if i < 5 else 2.0**-13)
        state = scaled_step(state, as_scaled(gradient))
        wide = step(wide, jnp.float32(gradient))
    pairs = zip(*map(jax.tree.leaves, (unscale(state, jnp.float32), wide)), strict=True)
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=2.0**-4)


def looped(step, state, gradients):
    return unscale(jax.jit(scalify(functools.partial(jax.lax.scan, step)))(state, gradients)[1])


def one_by_one(step, state, gradients):
    found = []
    for row in unscale(gradients):
        state, new = jax.jit(scalify(step))(state, as_scaled(row))
        found.append(unscale(new))
    return jnp.stack(found)


@pytest.mark.parametrize("steps", [one_by_one, looped])
@pytest.mark.parametrize(
    "name", ["adam", "adabelief", "rmsprop", "adafactor", "lamb", "accumulated"]
)
def test_rarely_seen_rows_do_not_leap(name, steps):
    """Their second moment is far below the largest: it must not be zero when it divides next."""
    optimizer = OPTIMIZERS[name]()
    seen = jnp.float16([300, 1, 1e-3, 3e-4, 1e-5, 0]) * jnp.float16(
        [[1] * 6, *[[1, 0.5, 0, 0, 0, 0]] * 4]
    )

    def step(state, gradient):
        return optimizer.update(gradient, state, jnp.ones_like(gradient))[::-1]

    start = jnp.ones(6)
    _, wanted = jax.lax.scan(step, optimizer.init(start), jnp.float32(seen))
    got = steps(step, as_scaled(optimizer.init(jnp.float16(start))), as_scaled(seen))
    assert np.all(np.abs(got) <= 2 * np.abs(wanted) + 1e-4)
    np.testing.assert_allclose(got[:, 0], wanted[:, 0], rtol=0.3)
