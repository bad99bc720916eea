"""AdamW: its arithmetic, its schedule, what it refuses, and what its low-precision state keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scalify_cli.core import ScaledArray, as_scaled, is_scaled, scalify, unscale
from scalify_cli.errors import UserError
from scalify_cli.formats import saturating_cast
from scalify_cli.precision import NoScaling, Policy, Precision, Scalify, load_precision
from scalify_cli.training.optimizer import (
    AdamW,
    init_low_precision,
    named_map,
    update_low_precision,
)

RNG = np.random.default_rng(0)
PARAMETERS = {"block": {"up": RNG.normal(size=(4, 3)), "norm": np.ones((2, 3))}, "bias": np.ones(3)}
PARAMETERS = jax.tree.map(jnp.float32, PARAMETERS)
GRADIENTS = [jax.tree.map(lambda x: jnp.float32(RNG.normal(size=x.shape)), PARAMETERS)] * 2
GRADIENTS += [jax.tree.map(lambda x: jnp.float32(RNG.normal(size=x.shape)), PARAMETERS)]
FP32 = Policy(Precision("fp32"), NoScaling())
FP16 = Policy(Precision("fp16", parameters="fp16", moments="fp16"), Scalify())
SEED = jnp.uint32(0)


def reference(o, gradients, steps):
    """AdamW as in its paper, in float64, with clipping by the global norm."""
    rates = [float(o.schedule(steps)(t)) for t in range(len(gradients))]
    clipped = [clip(g, o.clip) for g in gradients]
    decay = {"block": {"up": o.weight_decay, "norm": 0.0}, "bias": 0.0}
    return jax.tree.map(lambda w, d, *g: descend(o, w, d, g, rates), PARAMETERS, decay, *clipped)


def clip(tree, largest):
    norm = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)))
    factor = min(1.0, largest / norm) if largest else 1.0
    return jax.tree.map(lambda x: np.float64(x) * factor, tree)


def descend(o, w, decay, gradients, rates):
    w, m, v = np.float64(w), 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = o.beta1 * m + (1 - o.beta1) * g
        v = o.beta2 * v + (1 - o.beta2) * g * g
        first, second = m / (1 - o.beta1**t), v / (1 - o.beta2**t)
        w = w - rate * (first / (np.sqrt(second) + o.epsilon) + decay * w)
    return w


def in_float16(x):
    return ScaledArray(x.data.astype(jnp.float16), x.scale)


def run(o, policy, gradients, steps=10):
    def update(g, state, parameters):
        return update_low_precision(o.build(steps), policy, g, state, parameters, SEED)

    parameters, state = PARAMETERS, init_low_precision(o.build(steps), policy, PARAMETERS)
    if policy.scaling.propagates:
        parameters, state, gradients = as_scaled((parameters, state, gradients))
        parameters = jax.tree.map(in_float16, parameters, is_leaf=is_scaled)
        update = scalify(update)
    update = jax.jit(update)
    for g in gradients:
        parameters, state = update(g, state, parameters)
    return parameters, state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": 0.0, "warmup_steps": 0},
        {"beta1": 0.0, "weight_decay": 0.0},
        {"learning_rate": 0.1, "epsilon": 1e-3, "beta2": 0.5},
    ],
)
def test_it_is_adamw(options):
    o = AdamW(**options)
    parameters, _ = run(o, FP32, GRADIENTS)
    wanted = reference(o, GRADIENTS, 10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), parameters, wanted
    )


@pytest.mark.parametrize("size", [1.0, 2.0**-14, 2.0**-30])
def test_float16_state_with_scales_takes_the_same_steps(size):
    o = AdamW(learning_rate=0.05, weight_decay=0.0, clip=0.0, warmup_steps=0, epsilon=1e-20)
    gradients = [jax.tree.map(lambda x: x * size, g) for g in GRADIENTS]
    parameters, state = run(o, FP16, gradients)
    wanted = reference(o, gradients, 10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2.0**-8, atol=2.0**-9),
        unscale(parameters, jnp.float32),
        wanted,
    )
    moments = state[0] if hasattr(state[0], "mu") else state[1]
    for x in jax.tree.leaves((moments.mu, moments.nu), is_leaf=is_scaled):
        assert x.dtype == jnp.float16
        assert float(jnp.max(jnp.abs(x.data))) >= 2.0**14


def test_small_second_moments_do_not_become_zero():
    o = AdamW(clip=0.0, weight_decay=0.0)
    gradients = jax.tree.map(jnp.ones_like, PARAMETERS)
    gradients["bias"] = jnp.float32([1.0, 2.0**-20, 0.0])  # squares 40 binades apart
    _, state = run(o, FP16, [gradients])
    moments = state[0] if hasattr(state[0], "nu") else state[1]
    data = np.float32(moments.nu["bias"].data)
    assert data[0] > data[1] == 2.0**-24
    assert data[2] == 0


def test_stored_values_are_rounded_once():
    o = AdamW(clip=0.0, weight_decay=0.0, warmup_steps=0)
    policy = Policy(Precision("x", parameters="bf16", moments="bf16"), NoScaling())
    wide, _ = run(o, FP32, GRADIENTS[:1])
    narrow, _ = run(o, policy, GRADIENTS[:1])
    for x, y in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            np.float32(x), np.float32(saturating_cast(y, "bf16").astype(jnp.bfloat16))
        )


def test_the_schedule_warms_up_and_decays_to_its_fraction():
    rates = [float(AdamW(learning_rate=1.0, warmup_steps=4).schedule(20)(t)) for t in range(21)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-5)
    assert all(np.diff(rates[4:]) < 0)
    np.testing.assert_allclose(rates[20], 0.1, rtol=1e-5)
    np.testing.assert_allclose(rates[12], 0.55, rtol=1e-5)  # half way down the cosine


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_runs_have_a_schedule_too(steps):
    schedule = AdamW(learning_rate=1.0, warmup_steps=100).schedule(steps)
    rates = [float(schedule(t)) for t in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("learning_rate", 0.0), ("learning_rate", -1.0), ("epsilon", 0.0), ("beta1", 1.0)],
        *[("beta1", -0.1), ("beta2", 1.5), ("weight_decay", -0.1), ("clip", -1.0)],
        *[("warmup_steps", -1), ("final_fraction", -0.5)],
        *[("learning_rate", float("nan")), ("beta2", float("nan")), ("clip", float("nan"))],
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError) as caught:
        AdamW(**{field: value})
    assert caught.value.message.startswith(f"optimizer.{field}={value} is not")
    assert f"optimizer.{field}" in caught.value.hint
    assert caught.value.exit_code == 2


def test_named_map_joins_paths():
    tree = {"block": [jnp.ones(1), {"up": jnp.ones(1)}], "w": jnp.ones(1)}
    state = optax.ScaleByAdamState(jnp.int32(0), {"a": jnp.ones(1)}, {"a": jnp.ones(1)})
    names: list[str] = []
    named_map(lambda name, x: names.append(name), (tree, state))
    assert names == ["0/block/0", "0/block/1/up", "0/w", "1/count", "1/mu/a", "1/nu/a"]


def test_recipes_store_what_they_say():
    for name, moments in (("fp32", jnp.float32), ("bf16", jnp.float32), ("fp8", jnp.float16)):
        state = init_low_precision(AdamW().build(10), load_precision(name), PARAMETERS)
        kept = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype for x in kept} == {jnp.dtype(moments)}
