"""How the frameworks' models are trained: the README's step, and plain JAX beside it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from framework_models import images

from scalify_cli import as_scaled, rescale, scalify, unscale, with_precision
from scalify_cli.precision import load_precision

STEPS = 12
ROUNDING = {"fp32": 2**-20, "fp16": 2**-8, "fp8": 2**-4}
"""Mean error of the losses: eight roundings of float32 or float16, one of E4M3."""
COMPILES_SOONER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def train(
    model: Any, optimizer: Any, recipe: str | None = None, dtype: Any = jnp.float32
) -> tuple[np.ndarray, Any]:
    """The losses of ``STEPS`` updates, each on a batch of its own, and the last parameters.

    Args:
        model: ``((parameters, carried), loss)``.
        recipe: an option of ``precision``, under ``scalify``; None is plain JAX.
        dtype: of the parameters and of the optimizer's state.
    """
    (parameters, carried), loss = model
    parameters = jax.tree.map(lambda x: x.astype(dtype), parameters)
    state = parameters, optimizer.init(parameters), carried
    update = step(loss, optimizer, recipe)
    if recipe is not None:
        state, update = as_scaled(state), scalify(update)
    compiled, losses = jax.jit(update, compiler_options=COMPILES_SOONER), []
    for seed in range(STEPS):
        state, loss = compiled(state, *images(seed))
        losses.append(loss)
    return np.float32(unscale(losses, jnp.float32)), unscale(state[0], jnp.float32)


def step(loss: Callable, optimizer: Any, recipe: str | None) -> Callable:
    """``update(state, x, labels)``, as the README writes it."""
    if recipe is not None:
        loss = with_precision(loss, load_precision(recipe))
    gradient = jax.value_and_grad(loss, has_aux=True)

    def update(state, x, labels):
        parameters, moments, carried = state
        (value, carried), gradients = gradient(parameters, carried, x, labels)
        updates, moments = optimizer.update(rescale(gradients), moments, parameters)
        return (optax.apply_updates(parameters, updates), moments, carried), value

    return update


def check_losses(losses: np.ndarray, wanted: np.ndarray, recipe: str) -> None:
    """They fall, and are those of plain JAX in float32 but for the recipe's rounding."""
    assert losses[-3:].mean() < losses[:3].mean() - 0.1
    assert np.abs(losses - wanted).mean() < ROUNDING[recipe] * wanted.mean()
