"""A GPT-2-shaped decoder in plain JAX: pre-norm blocks, GELU, no biases, all layers in one scan.

Nothing here mentions a number format: values take the dtype of the parameters, and statistics
(norms, softmax, the loss) are taken in float32, as usual in mixed precision.
"""

from dataclasses import dataclass, replace
from typing import Any, Optional

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from scalify_cli.errors import UserError

Parameters = dict[str, Any]
_VOCABULARY_MULTIPLE = 128


@dataclass(frozen=True)
class GPT:
    """The shape of the network. ``vocab_size=None`` takes the tokenizer's, padded to 128.

    Raises:
        UserError: a size is not positive, or ``heads`` does not divide ``width``.
    """

    layers: int
    width: int
    heads: int
    context: int = 1024
    vocab_size: Optional[int] = None  # noqa: UP045 (read by OmegaConf)
    tie_embeddings: bool = True
    remat: bool = False

    def __post_init__(self):
        for field in ("layers", "width", "heads", "context"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"model.{field}={getattr(self, field)} is not positive.",
                    f"give model.{field} a value of at least 1.",
                )
        if self.width % self.heads:
            raise UserError(
                f"model.heads={self.heads} does not divide model.width={self.width}.",
                "choose model.width as a multiple of model.heads.",
            )

    def for_vocabulary(self, tokens: int) -> "GPT":
        """This model with room for ``tokens`` different tokens.

        Raises:
            UserError: a fixed ``vocab_size`` is smaller than the tokenizer's.
        """
        if self.vocab_size is None:
            multiple = _VOCABULARY_MULTIPLE
            return replace(self, vocab_size=-(-tokens // multiple) * multiple)
        if self.vocab_size < tokens:
            raise UserError(
                f"the tokenizer has {tokens} tokens but model.vocab_size={self.vocab_size}.",
                f"use model.vocab_size=null, or at least {tokens}.",
            )
        return self

    def init(self, key: Array) -> Parameters:
        """Float32 parameters as GPT-2 draws them; block weights are stacked [layer, in, out]."""
        assert self.vocab_size is not None, "call for_vocabulary first"
        layers, width, vocabulary = self.layers, self.width, self.vocab_size
        keys = iter(jax.random.split(key, 7))

        def normal(*shape: int, std: float = 0.02) -> Array:
            return std * jax.random.normal(next(keys), shape, jnp.float32)

        residual = 0.02 / (2 * layers) ** 0.5
        block = {
            "attention_norm": jnp.ones((layers, width)),
            "qkv": normal(layers, width, 3 * width),
            "output": normal(layers, width, width, std=residual),
            "mlp_norm": jnp.ones((layers, width)),
            "up": normal(layers, width, 4 * width),
            "down": normal(layers, 4 * width, width, std=residual),
        }
        parameters = {
            "embedding": normal(vocabulary, width),
            "position": normal(self.context, width),
            "block": block,
            "norm": jnp.ones(width),
        }
        if not self.tie_embeddings:
            parameters["head"] = normal(vocabulary, width)
        return parameters

    def loss(self, parameters: Parameters, batch: Int[Array, "batch time+1"]) -> Float[Array, ""]:
        """Mean cross-entropy of the next token, in nats."""
        logits = self.logits(parameters, batch[:, :-1])
        with jax.named_scope("loss"):
            return cross_entropy(logits, batch[:, 1:])

    def logits(
        self, parameters: Parameters, tokens: Int[Array, "batch time"]
    ) -> Float[Array, "batch time vocabulary"]:
        """The scores of every next token.

        Raises:
            UserError: the sequence is longer than the model's context.
        """
        time = tokens.shape[1]
        if time > self.context:
            raise UserError(
                f"a sequence of {time} tokens does not fit model.context={self.context}.",
                f"use trainer.sequence_length={self.context}, or raise model.context.",
            )
        with jax.named_scope("embedding"):
            x = parameters["embedding"][tokens] + parameters["position"][None, :time]

        with jax.named_scope("block"):
            x = self._blocks(x, parameters["block"])
        with jax.named_scope("norm"):
            x = layer_norm(x, parameters["norm"])
        with jax.named_scope("head"):
            head = parameters.get("head", parameters["embedding"])
            return jnp.einsum("btd,vd->btv", x, head)

    def _blocks(self, x: Array, weights: Parameters) -> Array:
        """All layers, one after the other; their weights are stacked."""

        def layer(x, weights):
            return self._block(x, weights), None

        x, _ = lax.scan(jax.checkpoint(layer) if self.remat else layer, x, weights)
        return x

    def _block(self, x: Array, weights: Parameters) -> Array:
        with jax.named_scope("attention"):
            x = x + self._attention(layer_norm(x, weights["attention_norm"]), weights)
        with jax.named_scope("mlp"):
            return x + mlp(layer_norm(x, weights["mlp_norm"]), weights)

    def _attention(self, x: Float[Array, "batch time width"], weights: Parameters) -> Array:
        batch, time, width = x.shape
        with jax.named_scope("qkv"):
            qkv = (x @ weights["qkv"]).reshape(batch, time, 3, self.heads, -1)
        q, k, v = jnp.moveaxis(qkv, 2, 0)  # [batch, time, head, head_dim] each
        with jax.named_scope("scores"):
            scores = jnp.einsum("bthd,bshd->bhts", q, k)
        with jax.named_scope("softmax"):
            weight = causal_softmax(scores, (width // self.heads) ** -0.5)
        with jax.named_scope("values"):
            mixed = jnp.einsum("bhts,bshd->bthd", weight, v).reshape(batch, time, width)
        with jax.named_scope("output"):
            return mixed @ weights["output"]


def layer_norm(x: Float[Array, "... width"], gain: Float[Array, " width"]) -> Array:
    """Zero mean and unit variance over the last axis, times a learned gain."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normed = centred * lax.rsqrt(variance + 1e-5)
    return normed.astype(x.dtype) * gain[(None,) * (x.ndim - 1)]


def causal_softmax(scores: Float[Array, "... query key"], factor: float) -> Array:
    """Attention weights over the past; the exponentials are taken in float32."""
    query, key = scores.shape[-2:]
    past = jnp.arange(query)[:, None] >= jnp.arange(key)[None, :]
    masked = jnp.where(past, scores.astype(jnp.float32) * factor, -jnp.inf)
    return jax.nn.softmax(masked).astype(scores.dtype)


def mlp(x: Float[Array, "batch time width"], weights: Parameters) -> Array:
    """Two matmuls with a GELU between them."""
    with jax.named_scope("up"):
        hidden = x @ weights["up"]
    with jax.named_scope("gelu"):
        hidden = jax.nn.gelu(hidden)
    with jax.named_scope("down"):
        return hidden @ weights["down"]


def cross_entropy(
    logits: Float[Array, "batch time vocabulary"], targets: Int[Array, "batch time"]
) -> Float[Array, ""]:
    """Mean negative log-likelihood of ``targets`` in nats, in float32."""
    wide = logits.astype(jnp.float32)
    index = lax.broadcasted_iota(targets.dtype, wide.shape, wide.ndim - 1)
    picked = jnp.where(index == targets[..., None], wide, 0).sum(-1)
    return (jax.nn.logsumexp(wide, axis=-1) - picked).mean()
