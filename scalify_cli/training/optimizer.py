"""AdamW through optax, and its state in a low-precision format.

The arithmetic of an update happens in float32 registers of one fused loop; what is kept between
steps (weights, moments) is only ever stored in its own format. Under ``scalify`` each stored tensor
has its scale; without it the same casts meet the bare numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scalify_cli.core import ScaledArray, custom_scale, is_float, rescale, tap
from scalify_cli.errors import UserError
from scalify_cli.formats import FORMATS, hash_bits, saturating_cast, stochastic_round
from scalify_cli.precision import Policy, dtype_of

_MOMENT_HEADROOM = 14  # binades: the largest moment lies just below FP16's largest value


@dataclass(frozen=True)
class AdamW:
    """AdamW with warm-up, cosine decay and clipping by the global norm.

    Args:
        learning_rate: the peak, reached after ``warmup_steps``.
        final_fraction: the last learning rate, as a fraction of the peak.
        weight_decay: decoupled, for tensors of two dimensions and more (a layer's own).
        clip: largest global norm of the gradients; 0 turns clipping off.

    Raises:
        UserError: a value is out of range.
    """

    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup_steps: int = 20
    final_fraction: float = 0.1

    def __post_init__(self):
        for name in ("learning_rate", "epsilon"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "positive")
        for name in ("beta1", "beta2"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("weight_decay", "clip", "warmup_steps", "final_fraction"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "zero or more")

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate of each of ``steps`` steps."""
        warmup = min(self.warmup_steps, max(steps - 1, 0))
        return optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / (warmup + 1),
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(steps, warmup + 1),
            end_value=self.learning_rate * self.final_fraction,
        )

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of ``steps`` steps."""
        clip = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        decay = optax.add_decayed_weights(self.weight_decay, mask=_decays)
        return optax.chain(
            *clip,
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            decay,
            optax.scale_by_learning_rate(self.schedule(steps)),
        )


def _decays(parameters: Any) -> Any:
    """Matrices decay; gains and other vectors (also stacked over layers) do not."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.ndim > 1 and "norm" not in jax.tree_util.keystr(path), parameters
    )


def _require(name: str, value: float, holds: bool, what: str) -> None:
    if not holds:
        raise UserError(
            f"optimizer.{name}={value} is not {what}.", f"give optimizer.{name} another value."
        )


def init_low_precision(optimizer: optax.GradientTransformation, policy: Policy, parameters: Any):
    """The optimizer's first state, its moments in the policy's format."""
    dtype = dtype_of(policy.precision.moments)
    return jax.tree.map(lambda x: _as_dtype(x, dtype), optimizer.init(parameters))


def update_low_precision(
    optimizer: optax.GradientTransformation,
    policy: Policy,
    gradients: Any,
    state: Any,
    parameters: Any,
    seed: jax.Array,
) -> tuple[Any, Any]:
    """One update of parameters and state that are stored in the policy's formats.

    Args:
        seed: a uint32 scalar, another one in each step: the bits of stochastic rounding.

    Returns:
        The new parameters and the new optimizer state, in the formats they came in.
    """
    gradients = named_map(lambda name, g: tap(g, f"gradient/{name}"), gradients)
    wide = _widened(parameters)
    updates, state = optimizer.update(_widened(gradients), _widened(state), wide)
    parameters = optax.apply_updates(wide, updates)
    store_moment = _moment_store(policy)
    return (
        named_map(_weight_store(policy, seed), parameters),
        named_map(lambda name, x: store_moment(f"moment/{name}", x), state),
    )


def named_map(f: Callable[[str, Any], Any], tree: Any) -> Any:
    """``f(name, x)`` on every array, named by its path such as ``block/qkv``."""

    def visit(path: Any, x: Any) -> Any:
        return f("/".join(_part(key) for key in path), x)

    return jax.tree_util.tree_map_with_path(visit, tree)


def _part(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _widened(tree: Any) -> Any:
    return jax.tree.map(lambda x: _as_dtype(x, jnp.float32), tree)


def _as_dtype(x: Any, dtype: Any) -> Any:
    return x.astype(dtype) if is_float(x) else x


def _weight_store(policy: Policy, seed: jax.Array) -> Callable[[str, Any], Any]:
    format = policy.precision.parameters
    dtype = dtype_of(format)
    streams = iter(range(1 << 16))

    def store(name: str, x: Any) -> Any:
        if policy.precision.weight_rounding == "stochastic":
            stream = seed * jnp.uint32(0x9E3779B1) + jnp.uint32(next(streams))
            rounded = stochastic_round(x, format, hash_bits(x.shape, stream))
        else:
            rounded = saturating_cast(x, format)
        return tap(x, f"parameter/{name}", rounded, format).astype(dtype)

    return store


def _moment_store(policy: Policy) -> Callable[[str, Any], Any]:
    format = policy.precision.moments
    dtype, norm = dtype_of(format), policy.norm("moments")
    narrow = FORMATS[format].mantissa_bits < FORMATS["fp32"].mantissa_bits

    def store(name: str, x: Any) -> Any:
        if not is_float(x) or not narrow:
            return x
        if norm:
            x = rescale(x, norm, _MOMENT_HEADROOM if norm == "max" else 0)
        rounded = saturating_cast(_not_to_zero(x, format=format), format)
        return tap(x, name, rounded, format).astype(dtype)

    return store


@custom_scale
def _not_to_zero(x: Any, format: str) -> Any:
    """x; scaled data too small for the format becomes its smallest number instead of zero.

    A second moment that underflows to zero would turn the quotient of the moments into a
    leap: in a scaled format the smallest number is tiny beside the largest moment.
    """
    return x


@_not_to_zero.def_rule
def _(x: Any, format: str) -> Any:
    smallest = jnp.asarray(FORMATS[format].min_subnormal, x.data.dtype)
    tiny = jnp.where(x.data < 0, -smallest, smallest)
    lost = (jnp.abs(x.data) < smallest) & (x.data != 0)
    return ScaledArray.tree_unflatten(None, (jnp.where(lost, tiny, x.data), x.scale))
