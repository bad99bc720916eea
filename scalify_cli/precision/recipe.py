"""The two halves of a recipe: *where* values are rounded, and *how* a cast gets its scale."""

from dataclasses import dataclass, field

import jax.numpy as jnp

from scalify_cli.errors import UserError
from scalify_cli.formats import Format, find_format

_COMPUTE = ("fp32", "bf16", "fp16")
_ROUNDINGS = ("nearest", "stochastic")
_NORMS = ("none", "l2", "l1", "max")


@dataclass(frozen=True)
class Precision:
    """The number format of every role (Scalify, Table 2), by name in ``FORMATS``.

    Args:
        name: what to call it.
        compute: dtype of activations and cotangents between matmuls.
        forward, backward: formats that matmul operands and cotangents are rounded to.
        parameters, moments: dtypes of the master weights and of the optimizer's moments.
        weight_rounding: how an updated weight is rounded, ``nearest`` or ``stochastic``.
        exclude: named scopes whose matmuls stay in the compute dtype.

    Raises:
        UserError: a format is unknown, or a dtype cannot be computed in.
    """

    name: str = "custom"
    compute: str = "fp32"
    forward: str = "fp32"
    backward: str = "fp32"
    parameters: str = "fp32"
    moments: str = "fp32"
    weight_rounding: str = "nearest"
    exclude: list[str] = field(default_factory=lambda: ["head"])

    def __post_init__(self):
        for role in ("compute", "parameters", "moments"):
            _choice(f"precision.{role}", getattr(self, role), _COMPUTE)
        _choice("precision.weight_rounding", self.weight_rounding, _ROUNDINGS)
        for role in ("forward", "backward"):
            find_format(getattr(self, role))

    @property
    def compute_dtype(self):
        return dtype_of(self.compute)

    @property
    def rounds_matmuls(self) -> bool:
        """Whether matmul operands are rounded to something narrower than the compute dtype."""
        return self.forward != self.compute or self.backward != self.compute


def dtype_of(name: str):
    """The JAX dtype that holds a compute, parameter or moment format."""
    return jnp.dtype(find_format(name).dtype)


@dataclass(frozen=True)
class Scalify:
    """Scales propagated through every operation; a few points measure their data anew.

    Args:
        rescale_norm_backward: norm that rescales the cotangent at each norm's input.
        rescale_gradients: norm that rescales the gradients before the optimizer.
        rescale_moments: norm that rescales the optimizer's moments where they are stored.

    Raises:
        UserError: an unknown norm.
    """

    rescale_norm_backward: str = "l2"
    rescale_gradients: str = "l2"
    rescale_moments: str = "max"
    propagates = True

    def __post_init__(self):
        for name in ("rescale_norm_backward", "rescale_gradients", "rescale_moments"):
            _choice(f"scaling.{name}", getattr(self, name), _NORMS)


@dataclass(frozen=True)
class NoScaling:
    """The same casts with no scales: what breaks without them."""

    propagates = False


@dataclass(frozen=True)
class Policy:
    """A recipe: a precision and a scaling rule."""

    precision: Precision
    scaling: Scalify | NoScaling

    @property
    def forward(self) -> Format:
        return find_format(self.precision.forward)

    @property
    def backward(self) -> Format:
        return find_format(self.precision.backward)

    def norm(self, where: str) -> str | None:
        """The norm to rescale with: ``norm_backward``, ``gradients`` or ``moments``; or None."""
        norm = getattr(self.scaling, f"rescale_{where}", "none")
        return None if norm == "none" else norm


def _choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value} is not possible.", f"choose from: {', '.join(choices)}.")
