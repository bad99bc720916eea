"""What a model is: ``init(key)`` and ``loss(parameters, batch)``, whoever wrote it.

A user's own may be wrong in any way; what it does wrong is said in its own terms.
"""

import traceback
from collections.abc import Callable
from typing import Any, Protocol

import jax

from scalify_cli.core import is_float
from scalify_cli.errors import UserError


class Model(Protocol):
    """May also have ``for_vocabulary(tokens)``, which returns a model with room for that many."""

    def init(self, key: jax.Array) -> Any:
        """The parameters: any pytree of float arrays."""
        ...

    def loss(self, parameters: Any, batch: jax.Array) -> jax.Array:
        """The loss, a scalar, on token ids int32 [batch, time + 1]."""
        ...


class ModelError(UserError):
    """The model's own code is at fault, which only running it could tell."""

    def __init__(self, message: str, hint: str):
        super().__init__(message, hint, exit_code=1)


def require_model(model: Any) -> Model:
    """The model.

    Raises:
        UserError: it lacks a method.
    """
    for name in ("init", "loss"):
        if not callable(getattr(model, name, None)):
            raise UserError(
                f"model: {type(model).__name__} has no method {name}",
                "a model has init(key) -> parameters and loss(parameters, batch) -> scalar",
            )
    return model


def for_vocabulary(model: Any, tokens: int) -> Model:
    """The model with room for the tokenizer's tokens, if it can size itself."""
    if not hasattr(model, "for_vocabulary"):
        return model
    return require_model(_call(model.for_vocabulary, "for_vocabulary", tokens))


def init(model: Model, key: jax.Array) -> Any:
    """The model's parameters.

    Raises:
        ModelError: they could not be made, or are no float arrays.
    """
    parameters = _call(model.init, "init", key)
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    wrong = [(path, x) for path, x in leaves if not (hasattr(x, "dtype") and is_float(x))]
    if wrong:
        path, x = wrong[0]
        where = f"{_kind(x)} at {jax.tree_util.keystr(path) or 'its root'}"
        raise ModelError(
            f"model.init returned a {where}; parameters are float arrays",
            "keep others in the model, as with eqx.partition(model, eqx.is_inexact_array)",
        )
    if not leaves:
        raise ModelError("model.init returned no arrays", "return a pytree of parameters")
    return parameters


def loss(model: Model, parameters: Any, batch: Any) -> jax.Array:
    """The model's loss on a batch.

    Raises:
        ModelError: it could not be computed, or is no scalar.
    """
    value = _call(model.loss, "loss", parameters, batch)
    if not isinstance(value, jax.Array) or value.shape or not is_float(value):
        raise ModelError(
            f"model.loss returned {_kind(value)}, not a float scalar",
            "return the mean over the batch",
        )
    return value


def _kind(x: Any) -> str:
    return str(jax.typeof(x)) if isinstance(x, jax.Array) else type(x).__name__


def _call(function: Callable, name: str, *args: Any) -> Any:
    try:
        return function(*args)
    except UserError:
        raise
    except Exception as error:
        raise ModelError(
            f"model.{name} raised {type(error).__name__}: {error} ({_place(function, error)})",
            "-v prints the traceback",
        ) from error


def _place(function: Callable, error: Exception) -> str:
    """The innermost line of the file that the function is written in."""
    file = getattr(getattr(function, "__code__", None), "co_filename", "")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}"
