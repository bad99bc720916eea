"""Programs from all over JAX, by the domain of their arguments; each takes two [4, 6] arrays."""

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jax import lax, nn

IDS = np.array([2, 0, 2])
MASK = np.arange(24).reshape(4, 6) % 3 > 0


def square(x):
    """A well-conditioned symmetric positive definite [4, 4] matrix."""
    return x @ x.T + jnp.trace(x @ x.T) * jnp.eye(4, dtype=x.dtype)


def gradient(f):
    """The gradient of a weighted sum of f, with respect to both arguments."""

    def weighted(x, y):
        z = f(x, y)
        return jnp.sum(z * (jnp.arange(z.size, dtype=z.dtype).reshape(z.shape) / z.size))

    return jax.grad(weighted, (0, 1))


def convolved(x, y, **options):
    image, kernel = x.reshape(1, 2, 2, 6), y.reshape(4, 2, 1, 3)
    return lax.conv_general_dilated(
        image, kernel, options.pop("strides", (1, 1)), "SAME", **options
    )


def grouped(x, y, groups):
    return lax.conv_general_dilated(
        x.reshape(2, 4, 3), y.reshape(4, 2, 3), (1,), "SAME", feature_group_count=groups
    )


def pooled(x, f, start):
    return lax.reduce_window(x, np.asarray(start, x.dtype), f, (2, 3), (1, 2), "SAME")


def normalised(x, y):
    mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * y


def attention(x, y):
    wide = (z.astype(jnp.float32).reshape(1, 4, 2, 3) for z in (x, y, x))
    return nn.dot_product_attention(*wide, is_causal=True)


def cross_entropy(x, y):
    return y[:, 0] - jnp.take_along_axis(nn.log_softmax(x), np.array([[2], [0], [2], [5]]), 1)


REAL = {
    "abs": lambda x, y: jnp.abs(x),
    "add": lambda x, y: x + y * 0.3 - 1.5,
    "angle": lambda x, y: jnp.angle(x + 0j),
    "append": lambda x, y: jnp.append(x, y),
    "apply": lambda x, y: x.at[IDS[:2]].apply(jnp.sin),
    "arctan": lambda x, y: jnp.arctan(x),
    "arctan2": lambda x, y: jnp.arctan2(x, y),
    "arcsinh": lambda x, y: jnp.arcsinh(x),
    "argmax": lambda x, y: (jnp.argmax(x, 1), jnp.argmin(y, 0), jnp.nanargmax(x)),
    "argsort": lambda x, y: jnp.argsort(x, axis=0),
    "around": lambda x, y: jnp.around(x, 1),
    "astype": lambda x, y: (x.astype(jnp.int32), x.astype(bool), x.astype(jnp.bfloat16)),
    "average": lambda x, y: jnp.average(x, weights=jnp.abs(y) + 1),
    "block": lambda x, y: jnp.block([[x, y], [y, x]]),
    "ceil": lambda x, y: jnp.ceil(x * 3),
    "choose": lambda x, y: jnp.choose(np.array([0, 1, 0, 1, 0, 1]), [x, y], mode="clip"),
    "clip": lambda x, y: jnp.clip(x, -0.5, y),
    "complex": lambda x, y: jnp.abs(lax.complex(*(z.astype(jnp.float32) for z in (x, y)))),
    "convolve": lambda x, y: jnp.convolve(x[0], y[1]),
    "conv": convolved,
    "conv dilated": lambda x, y: lax.conv_general_dilated(
        x.reshape(2, 2, 6), y.reshape(4, 2, 3), (1,), [(2, 1)], lhs_dilation=(2,), rhs_dilation=(2,)
    ),
    "conv groups": lambda x, y: grouped(x, y, 2),
    "conv batch groups": lambda x, y: lax.conv_general_dilated(
        x.reshape(4, 2, 3), y.reshape(2, 2, 6)[:, :, :3], (1,), "SAME", batch_group_count=2
    ),
    "conv transposed": lambda x, y: lax.conv_transpose(
        x.reshape(1, 4, 6), y.reshape(2, 6, 2), (2,), "SAME"
    ),
    "conv preferred": lambda x, y: convolved(x, y, preferred_element_type=jnp.float32),
    "copysign": lambda x, y: jnp.copysign(x, y),
    "corrcoef": lambda x, y: jnp.corrcoef(x),
    "cos": lambda x, y: jnp.cos(x),
    "cosh": lambda x, y: jnp.cosh(x / 4),
    "cov": lambda x, y: jnp.cov(x),
    "cross": lambda x, y: jnp.cross(x[:, :3], y[:, :3]),
    "cumlogsumexp": lambda x, y: lax.cumlogsumexp(x, 1),
    "cummax": lambda x, y: (lax.cummax(x, 1), lax.cummin(y, 0, reverse=True)),
    "cumprod": lambda x, y: jnp.cumprod(x, 0),
    "cumsum": lambda x, y: jnp.cumsum(x, 1),
    "cumulative trapezoid": lambda x, y: jnp.trapezoid(x, axis=1),
    "deg2rad": lambda x, y: jnp.deg2rad(x),
    "det": lambda x, y: jnp.linalg.det(square(x.astype(jnp.float32))),
    "diag": lambda x, y: (jnp.diag(x[0]), jnp.diagonal(y), jnp.trace(x)),
    "diff": lambda x, y: jnp.diff(x, axis=1),
    "divmod": lambda x, y: jnp.divmod(x, jnp.abs(y) + 1),
    "dot": lambda x, y: jnp.dot(x, y.T),
    "dot batched": lambda x, y: jnp.einsum("bij,bkj->bik", *(z.reshape(2, 4, 3) for z in (x, y))),
    "dot of two dimensions": lambda x, y: jnp.tensordot(x, y, 2),
    "dot preferred wider": lambda x, y: jnp.dot(x, y.T, preferred_element_type=jnp.float32),
    "dot preferred narrower": lambda x, y: lax.dot(x, y.T, preferred_element_type=jnp.bfloat16),
    "dot precise": lambda x, y: jnp.matmul(x, y.T, precision="highest"),
    "dot of outer": lambda x, y: jnp.outer(x[0], y[1]),
    "dynamic slice": lambda x, y: lax.dynamic_slice(x, (np.int32(9), np.int32(1)), (2, 3)),
    "dynamic update": lambda x, y: lax.dynamic_update_slice(x, y[:2, :2], (1, 2)),
    "einsum": lambda x, y: jnp.einsum("ij,kj,kl->il", x, y, x),
    "eigh": lambda x, y: jnp.linalg.eigvalsh(square(x.astype(jnp.float32))),
    "erf": lambda x, y: (lax.erf(x), lax.erfc(y)),
    "exp": lambda x, y: (jnp.exp(x / 4), jnp.exp2(y / 4), jnp.expm1(x / 4)),
    "fft": lambda x, y: jnp.real(jnp.fft.ifft(jnp.fft.fft(x.astype(jnp.float32)))),
    "flip": lambda x, y: (jnp.flip(x), jnp.roll(y, 2, 1), jnp.rot90(x)),
    "float_power": lambda x, y: jnp.abs(x) ** 1.5,
    "floor": lambda x, y: (jnp.floor(x * 3), jnp.trunc(y * 3), jnp.trunc(x * 2)),
    "fmax": lambda x, y: (jnp.fmax(x, y), jnp.fmin(x, 0.25)),
    "fmod": lambda x, y: (jnp.fmod(x, y), jnp.remainder(y, x), x % 1.0),
    "gather clip": lambda x, y: x.at[np.array([7, 1])].get(mode="clip"),
    "gather fill": lambda x, y: x.at[np.array([7, 1])].get(mode="fill", fill_value=3.0),
    "gradient": lambda x, y: jnp.gradient(x, axis=1),
    "heaviside": lambda x, y: jnp.heaviside(x, y),
    "histogram": lambda x, y: jnp.histogram(x, bins=4, range=(-2, 2))[0],
    "hypot": lambda x, y: jnp.hypot(x, y),
    "i0": lambda x, y: (jsp.special.i0e(x), jsp.special.i1e(y), jnp.i0(x / 4)),
    "indexing": lambda x, y: (x[1], x[::2, -1], y[..., None], x[IDS], y[IDS, IDS + 1]),
    "inner": lambda x, y: jnp.inner(x, y),
    "interp": lambda x, y: jnp.interp(*(z.astype(jnp.float32) for z in (x, jnp.sort(y[0]), y[1]))),
    "inv": lambda x, y: jnp.linalg.inv(square(x.astype(jnp.float32))),
    "isclose": lambda x, y: (jnp.isclose(x, y), jnp.array_equal(x, x), jnp.allclose(x, x)),
    "isnan": lambda x, y: (jnp.isnan(x), jnp.isinf(y), jnp.isfinite(x), jnp.signbit(y)),
    "kron": lambda x, y: jnp.kron(x[:2], y[:2]),
    "ldexp": lambda x, y: jnp.ldexp(x, jnp.full((4, 6), 2)),
    "log1p": lambda x, y: jnp.log1p(jnp.abs(x)),
    "logaddexp": lambda x, y: (jnp.logaddexp(x, y), jnp.logaddexp2(x, y)),
    "logsumexp": lambda x, y: (nn.logsumexp(x, 1), jsp.special.logsumexp(x, b=jnp.abs(y))),
    "lu": lambda x, y: jsp.linalg.lu_factor(square(x.astype(jnp.float32)))[0],
    "map": lambda x, y: lax.map(lambda row: row[0] @ row[1], (x, y)),
    "matrix_power": lambda x, y: jnp.linalg.matrix_power(x[:, :4], 3),
    "matvec": lambda x, y: x @ y[0],
    "max": lambda x, y: (jnp.max(x, 0), jnp.min(y), jnp.max(x, initial=0.5, where=MASK)),
    "mean": lambda x, y: (jnp.mean(x), jnp.mean(y, 1), jnp.mean(x, where=MASK)),
    "median": lambda x, y: (jnp.median(x), jnp.quantile(y, 0.3), jnp.percentile(x, 70)),
    "meshgrid": lambda x, y: jnp.meshgrid(x[0], y[0]),
    "modf": lambda x, y: jnp.modf(x * 2),
    "multiply": lambda x, y: x * y * 1.7,
    "nan_to_num": lambda x, y: jnp.nan_to_num(jnp.where(MASK, x, jnp.nan), nan=2.0),
    "nansum": lambda x, y: jnp.nansum(jnp.where(MASK, x, jnp.nan)),
    "negative": lambda x, y: -x,
    "norm": lambda x, y: (jnp.linalg.norm(x), jnp.linalg.norm(y, 1, 0), jnp.linalg.norm(x[0], 3)),
    "one_hot": lambda x, y: nn.one_hot(IDS, 4, dtype=x.dtype) @ x,
    "pad": lambda x, y: (jnp.pad(x, 1, constant_values=2.0), jnp.pad(y, 1, "reflect")),
    "pad negative": lambda x, y: lax.pad(x, y[0, 0], ((-1, 2, 1), (0, -2, 0))),
    "partition": lambda x, y: jnp.sort(jnp.partition(x, 2)[:, :2]),
    "piecewise": lambda x, y: jnp.piecewise(
        x, [x < 0, x > 1], [lambda z: -z, lambda z: z * z, 0.5]
    ),
    "polyval": lambda x, y: jnp.polyval(jnp.array([1.0, -2.0, 0.5], x.dtype), x),
    "power": lambda x, y: (x**2, x**3, x**0, x**2.0, jnp.abs(x) ** 0.5),
    "product": lambda x, y: jnp.prod(x, 0),
    "ptp": lambda x, y: jnp.ptp(x, 1),
    "qr": lambda x, y: jnp.abs(jnp.linalg.qr(x.astype(jnp.float32).T)[1]),
    "ragged_dot": lambda x, y: lax.ragged_dot(x, y.reshape(2, 6, 2), jnp.array([1, 3])),
    "ravel": lambda x, y: (jnp.ravel(x), jnp.reshape(y, (2, 12)), x.T, jnp.swapaxes(y, 0, 1)),
    "reduce": lambda x, y: lax.reduce(x, np.zeros((), x.dtype), lambda a, b: a + b * 2, (0,)),
    "reduce_precision": lambda x, y: lax.reduce_precision(x, 5, 3),
    "reduce_window sum": lambda x, y: pooled(x, lax.add, 0),
    "reduce_window max": lambda x, y: pooled(x, lax.max, -np.inf),
    "reduce_window any": lambda x, y: pooled(x, lambda a, b: a + b + a * b, 0),
    "repeat": lambda x, y: (jnp.repeat(x, 2, 1), jnp.tile(y, (2, 1)), jnp.stack([x, y], 1)),
    "rint": lambda x, y: (jnp.rint(x * 3), jnp.round(y * 2)),
    "scan": lambda x, y: lax.scan(lambda c, row: (c * 0.5 + row, c * row), x[0], y),
    "scatter": lambda x, y: x.at[IDS].set(y[:3] * 2).at[0, 1].set(7.0),
    "scatter add": lambda x, y: x.at[IDS].add(y[:3]).at[0].subtract(y[1]),
    "scatter multiply": lambda x, y: x.at[IDS].multiply(y[:3]).at[1].divide(2.5),
    "scatter max": lambda x, y: x.at[IDS].max(y[:3]).at[1].min(0.25),
    "scatter power": lambda x, y: x.at[1].power(2),
    "searchsorted": lambda x, y: jnp.searchsorted(jnp.sort(x[0]), y),
    "segment_sum": lambda x, y: jax.ops.segment_sum(x, np.array([0, 2, 0, 1]), 3),
    "segment_max": lambda x, y: jax.ops.segment_max(x, np.array([0, 2, 0, 1]), 3),
    "select": lambda x, y: jnp.select([x > 1, x > 0], [x, y], 0.5),
    "sign": lambda x, y: jnp.sign(x),
    "sin": lambda x, y: (jnp.sin(x), jnp.tan(x / 8), jnp.sinh(y / 4), jnp.tanh(y)),
    "sinc": lambda x, y: jnp.sinc(x),
    "solve": lambda x, y: jnp.linalg.solve(square(x.astype(jnp.float32)), y.astype(jnp.float32)),
    "sort": lambda x, y: (jnp.sort(x, 0), lax.sort((x, y, jnp.array(MASK)), num_keys=2)),
    "split": lambda x, y: (jnp.split(x, 3, 1), jnp.array_split(y, 4, 1), jnp.unstack(x)),
    "std": lambda x, y: (jnp.std(x, 1), jnp.var(y), jnp.var(x, 0, ddof=1)),
    "subtract": lambda x, y: (x - y, 1 - x, y - 0.125),
    "sum": lambda x, y: (jnp.sum(x), jnp.sum(y, 0), jnp.sum(x, 1, where=MASK), jnp.sum(x, ())),
    "svd": lambda x, y: jnp.linalg.svd(x.astype(jnp.float32), compute_uv=False),
    "take": lambda x, y: (jnp.take(x, IDS, 1), jnp.take_along_axis(y, IDS[:, None], 0)),
    "tri": lambda x, y: (jnp.tril(x), jnp.triu(y, 1), jnp.vander(x[0] / 4, 3)),
    "top_k": lambda x, y: (lax.top_k(x, 2), lax.approx_max_k(y, 3)[0], lax.approx_min_k(x, 2)),
    "unique counts": lambda x, y: jnp.count_nonzero(x > 0),
    "vdot": lambda x, y: jnp.vdot(x, y),
    "vmap": lambda x, y: jax.vmap(lambda a, b: jnp.outer(a, b).sum(0) / (1 + b * b))(x, y),
    "where": lambda x, y: jnp.where(x > 0, x, y) + jnp.where(MASK, x, 0) - jnp.where(MASK, 1, y),
    "where lowest": lambda x, y: jnp.max(jnp.where(MASK, x, jnp.finfo(x.dtype).min), 1),
    "where zero": lambda x, y: y / jnp.where(x == 0, 1, x),
}

ACTIVATIONS = {
    "relu": lambda x, y: (nn.relu(x), nn.relu6(y), nn.leaky_relu(x), nn.squareplus(y)),
    "elu": lambda x, y: (nn.elu(x), nn.selu(x), nn.celu(y)),
    "gelu": lambda x, y: (nn.gelu(x), nn.gelu(y, approximate=False)),
    "silu": lambda x, y: (nn.silu(x), nn.hard_silu(y), nn.mish(x), nn.sigmoid(y)),
    "glu": lambda x, y: nn.glu(x),
    "hard": lambda x, y: (nn.hard_tanh(x), nn.hard_sigmoid(y), nn.soft_sign(x)),
    "softplus": lambda x, y: (nn.softplus(x), nn.log_sigmoid(y), nn.sparse_plus(x)),
    "softmax": lambda x, y: (nn.softmax(x), nn.softmax(y, 0, where=MASK), nn.log_softmax(x)),
    "standardize": lambda x, y: nn.standardize(x),
    "normalised": normalised,
    "attention": attention,
    "cross entropy": cross_entropy,
    "sigmoid cross entropy": lambda x, y: -y * nn.log_sigmoid(x) - (1 - y) * nn.log_sigmoid(-x),
    "masked": lambda x, y: (
        nn.softmax(jnp.where(MASK, x, -1e30)) + nn.softmax(jnp.where(MASK, y, -jnp.inf))
    ),
}

POSITIVE = {
    "cbrt": lambda x, y: jnp.cbrt(x),
    "divide": lambda x, y: (x / y, 3 / x, y / 7, jnp.reciprocal(x)),
    "entr": lambda x, y: (jsp.special.entr(x), jsp.special.xlogy(x, y), jsp.special.xlog1py(x, y)),
    "floor_divide": lambda x, y: x // (y + 0.3),
    "log": lambda x, y: (jnp.log(x), jnp.log2(x), jnp.log10(y)),
    "pow": lambda x, y: (x ** (y / 8), x**-1, x**-2, x**0.3, x**-0.5, 2.0**-y),
    "rel_entr": lambda x, y: (jsp.special.rel_entr(x, y), jsp.special.kl_div(x, y)),
    "rsqrt": lambda x, y: (lax.rsqrt(x), jnp.sqrt(y)),
    "geometric": lambda x, y: jnp.exp(jnp.mean(jnp.log(x), 1)),
    "nextafter": lambda x, y: jnp.nextafter(x, y),
    "logit": lambda x, y: jsp.special.expit(x),
    "norm pdf": lambda x, y: jsp.stats.norm.logpdf(x.astype(jnp.float32)),
    "gamma pdf": lambda x, y: jsp.stats.gamma.logpdf(x.astype(jnp.float32), 2.0),
    "lgamma": lambda x, y: (lax.lgamma(x), lax.digamma(x + 1)),
    "igamma": lambda x, y: (lax.igamma(x, y), lax.igammac(x, y)),
    "acosh": lambda x, y: jnp.arccosh(2 + x),
    "zeta": lambda x, y: lax.zeta(1.5 + x, 1 + y),
    "polygamma": lambda x, y: lax.polygamma(jnp.ones_like(x), 1 + x),
    "clamp": lambda x, y: lax.clamp(jnp.asarray(0.5, x.dtype), x, jnp.asarray(2.0, x.dtype)),
}

UNIT = {
    "arcsin": lambda x, y: (jnp.arcsin(x), jnp.arccos(y), jnp.arctanh(x)),
    "betainc": lambda x, y: jsp.special.betainc(y + 1, y + 2, x),
    "erf_inv": lambda x, y: (lax.erf_inv(x), jsp.special.ndtri(y.astype(jnp.float32))),
    "bernoulli": lambda x, y: jax.random.bernoulli(jax.random.key(1), x),
    "logit": lambda x, y: jsp.special.logit(x),
    "dropout": lambda x, y: jnp.where(
        jax.random.bernoulli(jax.random.key(0), 0.7, (4, 6)), x / 0.7, 0
    ),
}

_DIFFERENTIATED = """
    add arctan2 average clip cos cumprod cumsum dot einsum erf exp logaddexp max mean median
    multiply norm pad product scan select sin sort std subtract sum take tri where
    vmap interp polyval cov scatter indexing gelu
"""


def _first(f):
    return lambda x, y: jax.tree.leaves(f(x, y))[0]


GRADIENTS = {
    name: gradient(_first(f))
    for name, f in {**REAL, **ACTIVATIONS}.items()
    if name in _DIFFERENTIATED.split()
    or name in ACTIVATIONS
    or name.startswith(("conv", "scatter", "reduce_w"))
}
for _name in (
    "scatter power",
    "scatter multiply",
    "scatter max",
    "reduce_window any",
    "conv preferred",
):
    GRADIENTS.pop(_name, None)
POSITIVE_GRADIENTS = {
    name: gradient(_first(POSITIVE[name])) for name in ("cbrt", "divide", "log", "pow", "rsqrt")
}
DOMAINS = {
    "real": {**REAL, **ACTIVATIONS},
    "positive": POSITIVE,
    "unit": UNIT,
    "gradients": GRADIENTS,
    "positive gradients": POSITIVE_GRADIENTS,
}
