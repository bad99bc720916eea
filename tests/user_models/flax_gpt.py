"""A model of one's own in Flax: ``scalify run model._target_=flax_gpt.FlaxGPT model.width=64``.

A dataclass, so that the command line knows its fields and their types.
"""

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import optax


class Network(nn.Module):
    """A decoder over tokens [batch, time]; returns logits [batch, time, vocabulary]."""

    layers: int
    width: int
    heads: int
    vocabulary: int

    @nn.compact
    def __call__(self, tokens):
        mask = nn.make_causal_mask(tokens)
        dense = partial(nn.Dense, use_bias=False)
        attention = partial(nn.MultiHeadDotProductAttention, self.heads, use_bias=False)
        x = nn.Embed(self.vocabulary, self.width, name="embedding")(tokens)
        for layer in range(self.layers):
            x = x + attention(name=f"attention_{layer}")(nn.RMSNorm()(x), mask=mask)
            hidden = nn.gelu(dense(4 * self.width, name=f"up_{layer}")(nn.RMSNorm()(x)))
            x = x + dense(self.width, name=f"down_{layer}")(hidden)
        return dense(self.vocabulary, name="head")(nn.RMSNorm()(x))


@dataclass(frozen=True)
class FlaxGPT:
    """What ``scalify run`` asks of a model."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    vocabulary: int = 0

    def for_vocabulary(self, tokens: int) -> "FlaxGPT":
        """This model for a tokenizer with that many tokens."""
        return replace(self, vocabulary=tokens)

    def init(self, key):
        """The parameters."""
        return self._network.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def loss(self, parameters, batch):
        """Mean cross-entropy of each token of batch [batch, time + 1] after the first."""
        logits = self._network.apply({"params": parameters}, batch[:, :-1])
        logits = jnp.asarray(logits, jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    @property
    def _network(self) -> Network:
        return Network(self.layers, self.width, self.heads, self.vocabulary)
