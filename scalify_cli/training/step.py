"""One training step: ``optimizer ∘ rescale ∘ value_and_grad ∘ with_precision``, under ``scalify``.

Everything is one compiled function with its state donated. Where the loss or the gradients are not
finite the state is returned unchanged, so that the tensor that broke can still be found.
"""

from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from scalify_cli.core import (
    SMALLEST_SCALE,
    ScaledArray,
    as_scaled,
    is_float,
    is_scaled,
    rescale,
    scalify,
    unscale,
)
from scalify_cli.numerics.observe import observe
from scalify_cli.precision import Policy, dtype_of, with_precision
from scalify_cli.training.model import Model, init, loss
from scalify_cli.training.optimizer import (
    AdamW,
    init_low_precision,
    update_low_precision,
)
from scalify_cli.training.parallel import PAIRED_LEVELS, DataParallel
from scalify_cli.training.processes import compiled_by_all


class State(NamedTuple):
    """All that changes from one step to the next."""

    step: Any
    parameters: Any
    optimizer: Any


def _stored(x: Any, dtype: Any) -> Any:
    if is_scaled(x):
        return ScaledArray(x.data.astype(dtype), x.scale)
    return x.astype(dtype) if is_float(x) else x


class Step:
    """The functions of a run.

    Args:
        model: what to train.
        policy: the recipe.
        optimizer: its hyper-parameters.
        steps: length of the run (the schedule depends on it).
        accumulate: micro-batches a batch is split into; their gradients are averaged in float32.
        seed: of the stochastic rounding of weights.
        parallel: the devices, where there are several.
    """

    def __init__(
        self,
        model: Model,
        policy: Policy,
        optimizer: AdamW,
        steps: int,
        accumulate: int = 1,
        seed: int = 0,
        parallel: DataParallel | None = None,
    ):
        self.model = model
        self.policy = policy
        self.optimizer = optimizer.build(steps)
        self.schedule = optimizer.schedule(steps)
        self.accumulate = accumulate
        self.seed = seed
        self.parallel = parallel
        self.loss = with_precision(partial(loss, model), policy)

    def init(self, key: jax.Array) -> State:
        """The first state: parameters and moments in their formats, with scales if there are."""
        return self._compiled(self._first)(key)

    def update(self, state: State, batch: np.ndarray) -> tuple[State, dict[str, jax.Array]]:
        """The next state, and ``loss grad_norm learning_rate finite`` of this step.

        ``state`` is donated. If ``finite`` is false the state comes back unchanged.
        """
        return self._update(state, self._placed(batch))

    def evaluate(self, state: State, batch: np.ndarray) -> jax.Array:
        """The loss on a batch, in the recipe's precision."""
        return self._evaluate(state.parameters, self._placed(batch))

    def observe(self, state: State, batch: np.ndarray) -> dict[str, dict[str, Any]]:
        """Statistics of every named tensor of a step, on the host, in order of computation."""
        return dict(jax.device_get(self._observe(state, self._placed(batch))))

    @property
    def _scales(self) -> bool:
        return self.policy.scaling.propagates

    def _transformed(self, function: Any) -> Any:
        return scalify(function) if self._scales else function

    @property
    def _whole(self) -> bool:
        """Whether each device has whole micro-batches."""
        return self.parallel is not None and self.parallel.takes_whole_parts

    @cached_property
    def _update(self) -> Any:
        step = partial(self._step, partial(self._gradients, whole=self._whole))

        def update(state, batch):
            state, metrics = self._transformed(step)(state, batch)
            return state, unscale(metrics)

        return self._compiled(update, donate_argnums=0)

    @cached_property
    def _evaluate(self) -> Any:
        mean = self._transformed(partial(self._mean, self.loss, self._whole))
        return self._compiled(lambda *args: unscale(mean(*args)))

    @cached_property
    def _observe(self) -> Any:
        observed = observe(self._transformed(partial(self._step, self._gradients)))
        return self._compiled(lambda *args: observed(*args)[1])

    def _compiled(self, function: Any, **options: Any) -> Any:
        """Jitted, with the same results on every device."""
        if self.parallel:
            options["out_shardings"] = self.parallel.replicated
        return compiled_by_all(jax.jit(function, **options))

    def _placed(self, batch: np.ndarray) -> Any:
        return self.parallel.place(batch) if self.parallel else batch

    def _first(self, key: jax.Array) -> State:
        parameters = init(self.model, key)
        moments = init_low_precision(self.optimizer, self.policy, parameters)
        if self._scales:
            parameters = scalify(rescale)(as_scaled(parameters, 1.0))
            moments = as_scaled(moments, SMALLEST_SCALE)
        dtype = dtype_of(self.policy.precision.parameters)
        stored = jax.tree.map(lambda x: _stored(x, dtype), parameters, is_leaf=is_scaled)
        return State(jnp.int32(0), stored, moments)

    def _step(self, differentiate: Any, state: State, batch: Any) -> tuple[State, dict[str, Any]]:
        loss, gradients = differentiate(state.parameters, batch)
        if norm := self.policy.norm("gradients"):
            gradients = rescale(gradients, norm)
        norm = optax.tree.norm(jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), gradients))
        parameters, optimizer = update_low_precision(
            self.optimizer,
            self.policy,
            gradients,
            state.optimizer,
            state.parameters,
            state.step.astype(jnp.uint32) + jnp.uint32(self.seed * 0x85EBCA6B % 2**32),
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = State(state.step + 1, parameters, optimizer)
        kept = jax.tree.map(partial(lax.select_n, finite), state, new)
        rate = jnp.float32(self.schedule(state.step))
        return kept, {"loss": loss, "grad_norm": norm, "learning_rate": rate, "finite": finite}

    def _gradients(self, parameters: Any, batch: Any, whole: bool = False) -> tuple[Any, Any]:
        return self._mean(jax.value_and_grad(self.loss), whole, parameters, batch)

    def _mean(self, f: Any, whole: bool, parameters: Any, batch: Any) -> Any:
        """The mean of f over a batch's micro-batches, in its own dtypes.

        Args:
            whole: whether each device has micro-batches of its own.
        """
        if self.accumulate == 1:
            return f(parameters, batch)
        parts = batch.reshape(self.accumulate, -1, batch.shape[-1])
        total = partial(self._sum, f)
        if self.parallel and whole:
            total = partial(self.parallel.total, total)
        elif self.parallel:
            parts = self.parallel.share_rows(parts)
        sums = lax.optimization_barrier(total(parameters, parts))
        like = jax.eval_shape(f, parameters, parts[0])
        means = jax.tree.map(lambda x, y: (x / self.accumulate).astype(y.dtype), sums, like)
        return lax.optimization_barrier(means)

    def _sum(self, f: Any, parameters: Any, parts: Any, levels: int = PAIRED_LEVELS) -> Any:
        """f added up over parts [part, row, time] in float32, halves first."""
        count = len(parts)
        if count == 1:
            parameters, part = lax.optimization_barrier((parameters, parts[0]))
            result = lax.optimization_barrier(f(parameters, part))
            return jax.tree.map(lambda x: x.astype(jnp.float32), result)
        halves = 2 if levels and count % 2 == 0 else count

        def add(total, group):
            return jax.tree.map(jnp.add, total, self._sum(f, parameters, group, levels - 1)), None

        like = jax.eval_shape(f, parameters, parts[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
        groups = parts.reshape(halves, count // halves, *parts.shape[1:])
        return lax.scan(add, zeros, groups)[0]
