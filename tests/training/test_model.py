"""What is wrong with a model of the user's own is said in the model's terms."""

import jax
import jax.numpy as jnp
import pytest

from scalify_cli.errors import UserError
from scalify_cli.training.model import for_vocabulary, init, loss, require_model

KEY, BATCH = jax.random.key(0), jnp.zeros((2, 3), jnp.int32)
FLOAT32 = jnp.zeros((2, 2))


class Model:
    """Returns what it is told to, or calls it."""

    def __init__(self, result):
        self.result = result

    def init(self, key):
        return self.result() if callable(self.result) else self.result

    def loss(self, parameters, batch):
        return self.init(batch)


class Sized(Model):
    def for_vocabulary(self, tokens):
        return Model(tokens)


def refuse():
    raise UserError("a message", "a hint")


def divide():
    return 1 / 0


def message(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    return caught.value.message


def test_a_model_has_both_methods():
    assert message(require_model, None) == "model: NoneType has no method init"
    assert message(require_model, type("Half", (), {"init": divide})()).endswith("method loss")
    assert require_model(model := Model(0)) is model


def test_a_model_may_size_itself():
    assert for_vocabulary(Sized(0), 257).result == 257
    assert for_vocabulary(model := Model(0), 257) is model


def test_good_results_are_passed_on():
    assert init(Model({"w": FLOAT32}), KEY)["w"] is FLOAT32
    assert loss(Model(FLOAT32[0, 0]), {}, BATCH) == 0


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        ({}, "returned no arrays"),
        ({"w": [FLOAT32, 1.0]}, "returned a float at ['w'][1]; parameters are float arrays"),
        ({"i": jnp.arange(3)}, "returned a int32[3] at ['i']; parameters are float arrays"),
        (jax.nn.relu, "raised TypeError: "),
        (divide, "raised ZeroDivisionError: division by zero ("),
        ("text", "returned a str at its root; parameters are float arrays"),
    ],
)
def test_parameters_are_float_arrays(result, fault):
    assert message(init, Model(result), KEY).startswith(f"model.init {fault}")


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        (FLOAT32, "returned float32[2,2], not a float scalar"),
        (jnp.int32(0), "returned int32[], not a float scalar"),
        (None, "returned NoneType, not a float scalar"),
        (divide, "raised ZeroDivisionError: division by zero ("),
    ],
)
def test_the_loss_is_a_float_scalar(result, fault):
    assert message(loss, Model(result), {}, BATCH).startswith(f"model.loss {fault}")


def test_the_place_is_in_the_model_s_own_file():
    model = Model(lambda: jnp.zeros(2) + jnp.zeros(3))
    assert f"({__file__}, line " in message(loss, model, {}, BATCH)


def test_a_model_s_own_message_is_left_as_it_is():
    assert message(loss, Model(refuse), {}, BATCH) == "a message"
