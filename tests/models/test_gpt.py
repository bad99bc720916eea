"""The GPT: its size, its loss before training, that it cannot look ahead, what it refuses."""

from math import log, prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omegaconf import OmegaConf

from scalify_cli.errors import UserError
from scalify_cli.models.gpt import GPT, causal_softmax, cross_entropy, layer_norm
from scalify_cli.shipped import shipped

SMALL = GPT(layers=2, width=32, heads=4, context=16, vocab_size=256)
TOKENS = np.random.default_rng(0).integers(0, 256, (3, 17)).astype(np.int32)


@pytest.fixture(scope="module")
def parameters():
    return jax.jit(SMALL.init)(jax.random.key(0))


def option(name):
    fields = OmegaConf.to_container(OmegaConf.load(shipped("conf") / "model" / f"{name}.yaml"))
    assert fields.pop("_target_") == "scalify_cli.models.gpt.GPT"
    return GPT(**fields)


@pytest.mark.parametrize(
    ("name", "tokens", "millions"),
    [
        ("gpt_small", 50257, 124.37),  # GPT-2's own count
        ("gpt_paper", 32768, 168.8),  # Scalify, Table 3
        ("gpt_nano", 8192, 1.25),
        ("gpt_micro", 8192, 10.2),
    ],
)
def test_parameter_counts(name, tokens, millions):
    shapes = jax.eval_shape(option(name).for_vocabulary(tokens).init, jax.random.key(0))
    count = sum(prod(x.shape) for x in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(millions, abs=0.06)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_untied_embeddings_are_another_matrix(parameters):
    untied = GPT(layers=1, width=32, heads=4, vocab_size=256, tie_embeddings=False)
    shapes = jax.eval_shape(untied.init, jax.random.key(0))
    assert shapes["head"].shape == shapes["embedding"].shape
    assert "head" not in parameters


@pytest.mark.parametrize("vocabulary", [128, 1024, 8192])
def test_the_loss_before_training_is_that_of_a_guess(vocabulary):
    model = GPT(layers=2, width=32, heads=2, context=32, vocab_size=vocabulary)
    batch = np.random.default_rng(0).integers(0, vocabulary, (8, 33))
    loss = jax.jit(model.loss)(jax.jit(model.init)(jax.random.key(0)), batch)
    assert float(loss) == pytest.approx(log(vocabulary), abs=0.03)
    assert loss.dtype == jnp.float32


def test_initialisation_is_gpt2s_and_follows_the_key(parameters):
    block = parameters["block"]
    assert float(jnp.std(block["qkv"])) == pytest.approx(0.02, rel=0.05)
    assert float(jnp.std(block["down"])) == pytest.approx(0.02 / 2, rel=0.05)  # 4 residual sums
    assert bool(jnp.all(parameters["norm"] == 1))
    same = jax.jit(SMALL.init)(jax.random.key(0))
    other = jax.jit(SMALL.init)(jax.random.key(1))
    assert bool(jnp.all(same["embedding"] == parameters["embedding"]))
    assert not bool(jnp.any(other["embedding"] == parameters["embedding"]))
    assert not bool(jnp.any(block["qkv"][0] == block["qkv"][1]))


def test_no_position_sees_a_later_one(parameters):
    logits = jax.jit(SMALL.logits)
    tokens = TOKENS[:, :16]
    before = np.asarray(logits(parameters, tokens))
    for at in (0, 7, 15):
        changed = tokens.copy()
        changed[:, at] = (changed[:, at] + 1) % 256
        after = np.asarray(logits(parameters, changed))
        np.testing.assert_array_equal(after[:, :at], before[:, :at])
        assert np.all(np.any(after[:, at:] != before[:, at:], axis=-1))


def test_the_examples_of_a_batch_do_not_meet(parameters):
    logits = jax.jit(SMALL.logits)
    whole = np.asarray(logits(parameters, TOKENS[:, :16]))
    alone = np.asarray(logits(parameters, TOKENS[1:2, :16]))
    np.testing.assert_allclose(whole[1:2], alone, rtol=1e-4, atol=1e-6)


def test_shorter_sequences_are_prefixes(parameters):
    logits = jax.jit(SMALL.logits)
    whole = np.asarray(logits(parameters, TOKENS[:, :16]))
    part = np.asarray(logits(parameters, TOKENS[:, :5]))
    np.testing.assert_allclose(whole[:, :5], part, rtol=1e-4, atol=1e-6)


def test_remat_changes_nothing(parameters):
    again = GPT(layers=2, width=32, heads=4, context=16, vocab_size=256, remat=True)
    plain, other = (jax.jit(jax.value_and_grad(m.loss))(parameters, TOKENS) for m in (SMALL, again))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), plain, other)
    assert "remat" in str(jax.make_jaxpr(again.loss)(parameters, TOKENS))


def test_layers_are_one_loop(parameters):
    deeper = GPT(layers=9, width=32, heads=4, context=16, vocab_size=256)
    shapes = jax.eval_shape(deeper.init, jax.random.key(0))
    count = lambda model, p: len(str(jax.make_jaxpr(model.loss)(p, TOKENS)).splitlines())  # noqa: E731
    assert count(deeper, shapes) == count(SMALL, parameters)


def test_matmuls_have_the_names_that_statistics_are_reported_under(parameters):
    text = jax.jit(SMALL.loss).lower(parameters, TOKENS).as_text(debug_info=True)
    for name in ("qkv", "scores", "values", "output"):
        assert f"attention/{name}/" in text
    for name in ("mlp/up/", "mlp/down/", "head/", "loss/"):
        assert name in text


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_values_take_the_dtype_of_the_parameters(parameters, dtype):
    narrow = jax.tree.map(lambda x: x.astype(dtype), parameters)
    assert jax.eval_shape(SMALL.logits, narrow, TOKENS[:, :16]).dtype == dtype
    loss = jax.jit(SMALL.loss)
    assert float(loss(narrow, TOKENS)) == pytest.approx(float(loss(parameters, TOKENS)), abs=0.01)


def test_a_sequence_beyond_the_context_is_refused(parameters):
    with pytest.raises(UserError) as caught:
        SMALL.loss(parameters, np.zeros((1, 18), np.int32))
    assert caught.value.message == "a sequence of 17 tokens does not fit model.context=16"
    assert "trainer.sequence_length=16" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "model.layers=0"),
        ({"width": -32}, "model.width=-32"),
        ({"context": 0}, "model.context=0"),
        ({"heads": 5}, "model.heads=5 does not divide model.width=32"),
    ],
)
def test_impossible_shapes_are_refused(fields, message):
    with pytest.raises(UserError) as caught:
        GPT(**{"layers": 1, "width": 32, "heads": 4, **fields})
    assert message in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("tokens", "size"), [(1, 128), (128, 128), (129, 256), (50257, 50304)])
def test_the_vocabulary_is_padded(tokens, size):
    assert GPT(layers=1, width=32, heads=4).for_vocabulary(tokens).vocab_size == size


def test_a_fixed_vocabulary_must_hold_the_tokenizers():
    assert SMALL.for_vocabulary(256) is SMALL
    with pytest.raises(UserError, match=r"257 tokens but model\.vocab_size=256"):
        SMALL.for_vocabulary(257)


def test_the_parts_are_what_they_are_called():
    x = np.random.default_rng(0).normal(3, 5, (2, 4, 32)).astype(np.float32)
    normed = np.asarray(layer_norm(jnp.asarray(x), jnp.ones(32)))
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(normed.std(-1), 1, atol=1e-3)
    weights = np.asarray(causal_softmax(jnp.asarray(x[..., :4]), 1.0))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.triu(weights, 1), 0)
    logits, targets = jnp.asarray(x), np.int32([[0, 1, 2, 3], [4, 5, 6, 31]])
    wanted = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], -1)
    np.testing.assert_allclose(cross_entropy(logits, targets), wanted.mean(), rtol=1e-5)
