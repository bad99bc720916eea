"""A model of one's own in Equinox: ``scalify run model._target_=equinox_mlp.mlp model.width=64``.

A function will do: its parameters are the fields of ``model``, its result is the model.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax


def mlp(width: int = 64, depth: int = 2, window: int = 4):
    """The next of 257 bytes, from the ``window`` last ones."""
    return MLP(width, depth, window)


class Network(eqx.Module):
    """Bytes [window] to logits [257]."""

    embedding: eqx.nn.Embedding
    layers: eqx.nn.MLP

    def __init__(self, width, depth, window, key):
        first, second = jax.random.split(key)
        self.embedding = eqx.nn.Embedding(257, width, key=first)
        self.layers = eqx.nn.MLP(window * width, 257, width, depth, jax.nn.gelu, key=second)

    def __call__(self, tokens):
        return self.layers(jax.vmap(self.embedding)(tokens).reshape(-1))


class MLP:
    """What ``scalify run`` asks of a model."""

    def __init__(self, *sizes: int):
        self.sizes, self.window = sizes, sizes[-1]

    def init(self, key):
        """The network's arrays: what is trained."""
        return eqx.filter(Network(*self.sizes, key), eqx.is_array)

    def loss(self, parameters, batch):
        """Mean cross-entropy of the tokens of batch [batch, time + 1] that follow a window."""
        network = eqx.combine(parameters, self._without_arrays())
        starts = jnp.arange(batch.shape[1] - self.window)
        windows = batch[:, starts[:, None] + jnp.arange(self.window)]  # [batch, starts, window]
        logits = jnp.asarray(jax.vmap(jax.vmap(network))(windows), jnp.float32)
        labels = batch[:, self.window :]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def _without_arrays(self):
        network = eqx.filter_eval_shape(Network, *self.sizes, jax.random.key(0))
        return eqx.filter(network, lambda x: isinstance(x, jax.ShapeDtypeStruct), inverse=True)
