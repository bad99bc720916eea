"""Models of four frameworks train unaltered through ``jit(scalify(update))``."""

import functools

import optax
import pytest
from framework_models import MODELS
from recipes import ROUNDING, check_losses, train


@functools.cache
def model(framework):
    return MODELS[framework]()


@functools.cache
def plain(framework):
    return train(model(framework), optax.adam(1e-2))[0]


@pytest.mark.parametrize("recipe", ROUNDING)
@pytest.mark.parametrize("framework", MODELS)
def test_the_losses_are_those_of_plain_jax_in_float32(framework, recipe):
    losses, _ = train(model(framework), optax.adam(1e-2), recipe)
    check_losses(losses, plain(framework), recipe)
