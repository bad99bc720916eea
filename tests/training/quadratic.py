"""A model small enough to train in a test: half a square error, Adam-like state, a random key."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scalify_cli.core import tap
from scalify_cli.numerics.observe import observe
from scalify_cli.training.checkpoint import Checkpoints
from scalify_cli.training.loop import begin, train
from scalify_cli.training.trainer import Trainer

TRAINER = Trainer(
    steps=20,
    batch_size=4,
    sequence_length=3,
    validate_every=5,
    validation_batches=2,
    observe_every=10,
    checkpoint_every=4,
)


class Data:
    """Numbers drawn from (seed, step) alone."""

    fingerprint = "of the quadratic"

    def batch(self, seed, step, batch_size, sequence_length, split="train"):
        shape = (batch_size, sequence_length + 1)
        return np.random.default_rng([seed, step]).integers(0, 9, shape, np.int32)

    def evaluation_batches(self, split, batch_size, sequence_length, count):
        assert split == "validation"
        return iter([self.batch(10**6, i, batch_size, sequence_length) for i in range(count)])


def loss(weights, batch):
    return 0.5 * jnp.mean(jnp.square(batch.astype(jnp.float32) - weights[None]))


@partial(jax.jit, donate_argnums=0)
def update(state, batch):
    value, gradient = jax.value_and_grad(loss)(state["weights"], batch)
    noise = jax.random.normal(jax.random.fold_in(state["key"], state["step"]), gradient.shape)
    moment = 0.9 * state["moment"] + gradient + 0.01 * noise
    new = {
        "weights": state["weights"] - 0.1 * moment,
        "moment": moment,
        "key": state["key"],
        "step": state["step"] + 1,
    }
    finite = jnp.isfinite(value)
    kept = jax.tree.map(lambda old, new: jnp.where(finite, new, old), state, new)
    norm = jnp.linalg.norm(gradient)
    return kept, {"loss": value, "grad_norm": norm, "learning_rate": 0.1, "finite": finite}


@jax.jit
@observe
def observed(batch, weights):
    return [tap(x, name) for name, x in {"input": batch, "weights": weights}.items()]


class Quadratic:
    """The step; on a batch whose first number is ``bad`` the loss is infinite."""

    def init(self, key):
        zeros = jnp.zeros(4, jnp.float32)
        return {"weights": zeros, "moment": zeros + 0.0, "key": key, "step": jnp.int32(0)}

    def update(self, state, batch):
        return update(state, batch)

    def evaluate(self, state, batch):
        return jax.jit(loss)(state["weights"], batch)

    def observe(self, state, batch):
        return dict(observed(jnp.asarray(batch, jnp.float32), state["weights"])[1])


def records(folder: Path, trainer=TRAINER, step=None, data=None, **options):
    """What the loop yields, with checkpoints in a folder."""
    step, data = step or Quadratic(), data or Data()
    checkpoints = Checkpoints(folder, trainer.keep_checkpoints)
    start = begin(step, data, seed=1, checkpoints=checkpoints)
    yield from train(step, data, trainer, seed=1, start=start, checkpoints=checkpoints, **options)


def main() -> None:
    """Train in a run directory, as the whole program does; print each step."""
    from scalify_cli.tracking import RunDirectory, Tracking

    path = Path(sys.argv[1])
    step, data = Quadratic(), Data()
    with RunDirectory(path) as run:
        checkpoints = Checkpoints(path / "checkpoints", notify=run.log)
        start = begin(step, data, seed=1, checkpoints=checkpoints)
        sink = Tracking(wandb="off").open(path, run_id=run.id, resumed_step=start.step or None)
        run.start(config="", overrides=[], steps=TRAINER.steps, step=start.step)
        for record in train(step, data, TRAINER, seed=1, start=start, checkpoints=checkpoints):
            if "event" not in record:
                sink.record(record)
                run.record(record)
                print(record["step"], flush=True)
            elif record["event"] == "histograms":
                sink.histograms(record["step"], record["statistics"])
            elif record["event"] == "end":
                run.finish(record["state"])


if __name__ == "__main__":
    main()
