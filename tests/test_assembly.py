"""From configuration to objects: a user's own model, and what is refused before it costs time."""

import json

import jax
import jax.numpy as jnp
import pytest

from scalify_cli.config import compose
from scalify_cli.errors import UserError
from scalify_cli.experiment import assemble, run
from scalify_cli.tracking import RunDirectory

SMALL = [
    *("precision=fp32", "scaling=none", "tracking.wandb=off"),
    *("trainer.steps=4", "trainer.batch_size=2", "trainer.sequence_length=8"),
    *("trainer.validate_every=2", "trainer.validation_batches=1", "trainer.checkpoint_every=2"),
]


class Bigram:
    """A user's own model: knows nothing of this package."""

    def init(self, key):
        return {"table": 0.02 * jax.random.normal(key, (384, 384))}

    def loss(self, parameters, batch):
        scores = jax.nn.log_softmax(parameters["table"][batch[:, :-1]])
        return -jnp.take_along_axis(scores, batch[:, 1:, None], axis=-1).mean()


class Broken(Bigram):
    """Raises where a model of the user's might: while it is traced."""

    def loss(self, parameters, batch):
        raise ZeroDivisionError("in the user's own code")


class Speechless:
    """Has no loss."""

    def init(self, key):
        return {}


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax needs it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return ["data=text", f"data.path={file}", "data.tokenizer=bytes"]


@pytest.fixture
def configured(tmp_path, text):
    """``configured(Bigram, "seed=1")``: a configuration with one of the models above."""
    (tmp_path / "conf" / "model").mkdir(parents=True)

    def make(model: type, *words: str):
        option = tmp_path / "conf" / "model" / "own.yaml"
        option.write_text(f"# a model of the user's own\n_target_: {__name__}.{model.__name__}\n")
        return compose(["model=own", *text, *SMALL, *words], tmp_path / "conf")

    return make


def assembled(*words: str):
    return assemble(compose(list(words)), None, lambda message: None)


def state(path):
    return json.loads((path / "state.json").read_text())


def test_the_model_gets_the_tokenizer_s_vocabulary(text):
    job = assembled("model=gpt_nano", *text)
    assert job.dataset.vocab_size <= 384 == job.step.model.vocab_size


def test_a_vocabulary_that_is_too_small_is_refused(text):
    with pytest.raises(UserError, match=r"model\.vocab_size=100"):
        assembled("model=gpt_nano", "model.vocab_size=100", *text)


def test_a_text_shorter_than_a_batch_is_refused(text):
    with pytest.raises(UserError, match="train split of text has"):
        assembled("model=gpt_nano", "trainer.batch_size=1000", *text)


def test_a_model_without_a_loss_is_refused(configured):
    with pytest.raises(UserError, match="Speechless has no method loss"):
        assemble(configured(Speechless), None, lambda message: None)


def test_the_command_line_s_wandb_mode_wins(configured):
    config = configured(Bigram)
    assert assemble(config, None, lambda message: None).tracking.wandb == "off"
    assert assemble(config, "offline", lambda message: None).tracking.wandb == "offline"


def test_what_is_refused_leaves_no_run_behind(configured, tmp_path):
    with pytest.raises(UserError):
        run(configured(Speechless), [], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_user_s_own_model_trains(configured, tmp_path):
    seen = []
    outcome = run(configured(Bigram), ["model=own"], tmp_path / "runs", on_record=seen.append)
    assert (outcome.state, outcome.exit_code, outcome.already_done) == ("done", 0, False)
    assert [record["step"] for record in seen if "event" not in record] == [0, 1, 2, 3, 4]
    assert [record["step"] for record in seen if record.get("event") == "checkpoint"] == [2, 4]
    assert outcome.summary["train/loss"] == seen[-2]["train/loss"]
    assert outcome.summary["peak_memory_bytes"] > 0
    assert "done after step 4" in (outcome.path / "log.txt").read_text()


def test_the_same_point_again_reads_what_there_is(configured, tmp_path):
    config = configured(Bigram)
    first = run(config, [], tmp_path / "runs")
    again = run(config, [], tmp_path / "runs", on_record=pytest.fail)
    assert again.already_done
    assert (again.id, again.state, again.summary) == (first.id, first.state, first.summary)


def test_force_starts_over(configured, tmp_path):
    config = configured(Bigram)
    first = run(config, [], tmp_path / "runs")
    (first.path / "leftover").write_text("")
    again = run(config, [], tmp_path / "runs", force=True)
    assert (again.already_done, state(again.path)["attempt"]) == (False, 1)
    assert not (again.path / "leftover").exists()
    assert again.summary["train/loss"] == first.summary["train/loss"]


def test_an_exception_fails_the_run_and_its_traceback_is_logged(configured, tmp_path):
    message = "model.loss raised ZeroDivisionError: in the user's own code"
    with pytest.raises(UserError, match=message) as caught:
        run(configured(Broken), [], tmp_path / "runs")
    assert f"({__file__}, line " in caught.value.message
    assert caught.value.exit_code == 1
    [path] = (tmp_path / "runs").iterdir()
    assert state(path)["state"] == "failed"
    assert message in state(path)["error"]
    assert "Traceback" in (path / "log.txt").read_text()


def test_two_processes_never_write_the_same_run(configured, tmp_path):
    config = configured(Bigram)
    done = run(config, [], tmp_path / "runs")
    held = RunDirectory(done.path)
    with held, pytest.raises(UserError, match="already being written by process"):
        run(config, [], tmp_path / "runs", force=True)
    assert state(done.path)["state"] == "done"
