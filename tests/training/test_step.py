"""One compiled training step: what it learns, what it keeps, and in which formats."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalify_cli.core import ScaledArray, as_scaled, is_scaled, scalify, unscale
from scalify_cli.models.gpt import GPT
from scalify_cli.numerics.observe import observe
from scalify_cli.precision import NoScaling, Policy, Precision, Scalify, load_precision
from scalify_cli.training.optimizer import AdamW
from scalify_cli.training.step import State, Step

MODEL = GPT(layers=2, width=32, heads=2, context=16, vocab_size=64)
STEPS = 40
BATCH = np.random.default_rng(0).integers(0, 64, (8, 17)).astype(np.int32)
SEQUENCES = np.random.default_rng(1).integers(0, 64, (STEPS, 8, 17)).astype(np.int32)


@cache
def step(precision, scaling, **options):
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=5)
    return Step(MODEL, load_precision(precision, scaling), optimizer, STEPS, **options)


@cache
def trained(precision, scaling):
    """The losses of 40 steps on one batch, and the last state and metrics."""
    state, losses = step(precision, scaling).init(jax.random.key(0)), []
    for _ in range(STEPS):
        state, metrics = step(precision, scaling).update(state, BATCH)
        losses.append(float(metrics["loss"]))
    return losses, state, metrics


def arrays(state):
    return jax.tree_util.tree_leaves_with_path(state, is_leaf=is_scaled)


@pytest.mark.parametrize(("precision", "scaling"), [("fp32", "none"), ("fp8", "scalify")])
def test_one_batch_is_learned_by_heart(precision, scaling):
    losses, state, metrics = trained(precision, scaling)
    assert losses[0] == pytest.approx(np.log(64), abs=0.05)
    assert losses[-1] < 0.5
    assert int(unscale(state).step) == STEPS
    assert bool(metrics["finite"])
    assert 0 < float(metrics["grad_norm"]) < 10
    assert metrics["learning_rate"].dtype == jnp.float32


def test_fp8_with_scales_tracks_fp32_and_without_them_does_not():
    reference = np.array(trained("fp32", "none")[0])
    scaled = np.array(trained("fp8", "scalify")[0])
    bare = np.array(trained("fp8", "none")[0])
    assert np.max(np.abs(scaled - reference)) < 0.05
    assert not bare[-1] < reference[0] / 2


def test_the_state_is_float16_with_scales_and_nothing_else():
    state = trained("fp8", "scalify")[1]
    floats = [(path, x) for path, x in arrays(state) if not jnp.issubdtype(x.dtype, jnp.integer)]
    parameters = jax.tree.leaves(state.parameters, is_leaf=is_scaled)
    assert len(floats) == 3 * len(parameters)  # weights and two moments
    for path, x in floats:
        assert isinstance(x, ScaledArray), path
        assert x.data.dtype == jnp.float16, path
        assert (x.scale.dtype, x.scale.shape) == (jnp.float32, ()), path
        assert np.frexp(float(x.scale))[0] == 0.5, path


def test_the_stored_data_stays_in_the_middle_of_float16():
    state = trained("fp8", "scalify")[1]
    for path, x in arrays(state.parameters):
        size = float(jnp.sqrt(jnp.mean(jnp.square(x.data.astype(jnp.float32)))))
        assert 2.0**-4 < size < 2.0**6, path
    for path, x in arrays(state.optimizer):
        if is_scaled(x):
            assert 2.0**12 < float(jnp.max(jnp.abs(x.data.astype(jnp.float32)))) < 65504, path


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", jnp.float32), ("fp16", jnp.float16)])
def test_without_scales_the_state_is_plain_arrays(precision, dtype):
    state = step(precision, "none").init(jax.random.key(0))
    dtypes = {x.dtype for x in jax.tree.leaves(state, is_leaf=is_scaled)}
    assert dtypes == {jnp.dtype(dtype), jnp.dtype(jnp.int32)}


@pytest.mark.parametrize(("precision", "scaling"), [("fp8", "scalify"), ("fp16", "none")])
def test_a_step_returns_the_types_it_was_given(precision, scaling):
    compiled = step(precision, scaling)
    before = compiled.init(jax.random.key(0))
    after, metrics = jax.eval_shape(compiled.update, before, BATCH)
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, given), returned in pairs:
        wanted = (given.shape, given.dtype, given.weak_type)
        assert (returned.shape, returned.dtype, returned.weak_type) == wanted, path
    assert {name: (x.shape, x.dtype.name) for name, x in metrics.items()} == {
        "loss": ((), "float32"),
        "grad_norm": ((), "float32"),
        "learning_rate": ((), "float32"),
        "finite": ((), "bool"),
    }


def test_the_same_seed_gives_the_same_losses_and_one_program_runs_them_all():
    losses = trained("fp8", "scalify")[0]
    again = step("fp8", "scalify")
    compilations = again._update._cache_size()
    state = again.init(jax.random.key(0))
    for wanted in losses[:5]:
        state, metrics = again.update(state, BATCH)
        assert float(metrics["loss"]) == wanted
    assert again._update._cache_size() == compilations == 1


def test_the_state_is_donated():
    compiled = step("fp8", "scalify")
    before = compiled.init(jax.random.key(0))
    compiled.update(before, BATCH)
    assert all(x.is_deleted() for x in jax.tree.leaves(before))


def test_the_program_calls_nobody_back():
    compiled = step("fp8", "scalify")
    state = jax.eval_shape(compiled.init, jax.random.key(0))
    text = compiled._update.lower(state, BATCH).as_text()
    assert "callback" not in text
    assert text.count("tf.aliasing_output") == len(jax.tree.leaves(state))


def check_unchanged(before, after):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)


@pytest.mark.parametrize(("precision", "scaling"), [("fp8", "scalify"), ("fp32", "none")])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(precision, scaling, broken):
    compiled = step(precision, scaling)
    state, _ = compiled.update(compiled.init(jax.random.key(0)), BATCH)
    parameters = dict(state.parameters)
    gain = parameters["norm"]
    data = gain.data if is_scaled(gain) else gain
    data = data.at[0].set(broken)
    parameters["norm"] = ScaledArray(data, gain.scale) if is_scaled(gain) else data
    state = State(state.step, parameters, state.optimizer)
    before = jax.device_get(state)
    after, metrics = compiled.update(state, BATCH)
    assert not bool(metrics["finite"])
    check_unchanged(before, after)


@pytest.mark.parametrize(("precision", "rounding"), [("fp8", 2.0**-14), ("fp32", 2.0**-22)])
def test_evaluation_is_the_loss_of_a_step_without_the_step(precision, rounding):
    compiled = step(precision, "scalify")
    state = compiled.init(jax.random.key(0))
    before = jax.device_get(state)
    loss = float(compiled.evaluate(state, BATCH))
    check_unchanged(before, state)
    wanted = float(compiled.update(state, BATCH)[1]["loss"])
    assert loss == pytest.approx(wanted, rel=rounding)  # FP16 fuses otherwise beside a gradient


def test_accumulation_is_the_larger_batch_and_scales_change_nothing_in_float32():
    whole = step("fp32", "none")
    parts = step("fp32", "scalify", accumulate=2)
    one, two = whole.init(jax.random.key(0)), parts.init(jax.random.key(0))
    for batch in SEQUENCES[:4]:
        one, wanted = whole.update(one, batch)
        two, got = parts.update(two, batch)
        for name in ("loss", "grad_norm", "learning_rate"):
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4)


def test_every_matmul_gradient_weight_and_moment_is_observed():
    compiled = step("fp8", "scalify")
    program = observe(scalify(partial(compiled._step, compiled._gradients)))
    names: list[str] = []

    def named(state, batch):
        names[:] = list(program(state, batch)[1])

    jax.eval_shape(named, compiled.init(jax.random.key(0)), BATCH)
    for matmul in ("attention/qkv", "attention/output", "mlp/up", "mlp/down"):
        for role in ("activation", "weight", "cotangent"):
            assert f"block/{matmul}.{role}" in names
    for role in ("left", "right", "cotangent"):
        assert f"block/attention/scores.{role}" in names
    assert "gradient/block/qkv" in names and "parameter/embedding" in names
    assert sum(name.startswith("moment/") for name in names) == 2 * 9
    assert names.index("block/attention/qkv.activation") < names.index("block/mlp/up.activation")
    assert names.index("block/mlp/up.activation") < names.index("gradient/block/qkv")


class Scalar:
    """A model of one number: the loss is its square's distance to the data."""

    def init(self, key):
        return {"w": jnp.full((2, 2), 0.5)}

    def loss(self, parameters, batch):
        return jnp.mean(jnp.square(parameters["w"] - batch.mean()))


def test_stochastic_rounding_moves_weights_that_nearest_rounding_cannot():
    ends = {}
    for rounding in ("nearest", "stochastic"):
        recipe = Precision("test", parameters="fp16", moments="fp32", weight_rounding=rounding)
        optimizer = AdamW(learning_rate=1e-5, weight_decay=0.0, warmup_steps=0, final_fraction=1.0)
        small = Step(Scalar(), Policy(recipe, Scalify()), optimizer, 200)
        state = small.init(jax.random.key(0))
        for _ in range(100):
            state, _ = small.update(state, np.ones((1, 2), np.int32))
        ends[rounding] = float(np.mean(unscale(state.parameters["w"], jnp.float32)))
    assert ends["nearest"] == 0.5  # steps of 1e-5 are a fortieth of float16's at 1/2
    assert ends["stochastic"] == pytest.approx(0.501, abs=5e-4)


def test_a_float16_state_without_scales_loses_small_moments():
    recipe = Precision("test", parameters="fp32", moments="fp16")
    small = Step(Scalar(), Policy(recipe, NoScaling()), AdamW(clip=0.0), 10)
    state = small.init(jax.random.key(0))
    weights = {"w": np.full((2, 2), 1.0 + 2.0**-10, np.float32)}
    state, _ = small.update(State(state.step, weights, state.optimizer), np.ones((1, 2), np.int32))
    moments = [x for path, x in arrays(state.optimizer) if "nu" in jax.tree_util.keystr(path)]
    assert float(jnp.max(moments[0])) == 0
    scaled = Step(Scalar(), Policy(recipe, Scalify()), AdamW(clip=0.0), 10)
    state = scaled.init(jax.random.key(0))
    state, _ = scaled.update(
        State(state.step, as_scaled(weights), state.optimizer), np.ones((1, 2), np.int32)
    )
    moments = [x for path, x in arrays(state.optimizer) if "nu" in jax.tree_util.keystr(path)]
    assert float(jnp.min(moments[0].data)) > 0


def test_a_small_learning_rate_does_not_lift_the_scales_of_weights():
    slow = Step(MODEL, load_precision("fp8", "scalify"), AdamW(learning_rate=1e-5), STEPS)
    state = slow.init(jax.random.key(0))
    first = [float(x.scale) for _, x in arrays(state.parameters)]
    for _ in range(3):
        state, _ = slow.update(state, BATCH)
    last = [float(x.scale) for _, x in arrays(state.parameters)]
    assert all(
        0.25 <= now / then <= 4 for now, then in zip(last, first, strict=True) if then > 1e-9
    )
