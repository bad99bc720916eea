"""A program for every primitive that has a scale rule: the table that the law is tested over."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import io_callback
from jax.extend.core import primitives as p
from jax.sharding import AxisType, NamedSharding, PartitionSpec

FINE, COARSE, POSITIVE = "fine", "coarse", "positive"
M = (4, 6)
ROWS = np.array([[3], [0], [7]])  # the last one is out of bounds


@dataclass(frozen=True)
class Example:
    """A function of float arrays that uses one primitive.

    Args:
        shapes: of its arguments.
        data: ``fine`` uses every mantissa bit, ``coarse`` keeps sums exact in any order and any
            dtype, ``positive`` is fine without signs and zeros.
        degree: f(s*x) = s**degree * f(x) for homogeneous functions, else None. Opaque functions
            are right within a unit in the last place and not bit for bit.
        reach: the largest |log2 scale| for which results stay within float32 (and bfloat16).
        narrow_reach: the same for float16.
        units: in the last place by which compiling an opaque function may change it.
    """

    f: Callable
    shapes: tuple = (M,)
    data: str = FINE
    degree: float | None = 1
    reach: int = 60
    narrow_reach: int = 3
    opaque: bool = False
    units: int = 1


def resharded(x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Explicit,))
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def opaque(f, shapes=(M,), data=FINE, reach=3, narrow_reach=1):
    return Example(f, shapes, data, None, reach, narrow_reach, opaque=True)


def scatter(f):
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    return Example(lambda x, u: f(x, ROWS, u, numbers), (M, (3, 6)), COARSE)


def gather(x):
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))
    return lax.gather(x, ROWS, numbers, slice_sizes=(1, 6), mode="fill")


def window(f, start, data=FINE):
    def pooled(x):
        return lax.reduce_window(x, np.asarray(start, x.dtype), f, (2, 2), (1, 2), "VALID")

    return Example(pooled, data=data)


def windows(x):
    computed = lambda a, b: a + b + 2 * a * b  # noqa: E731
    return lax.reduce_window(x, np.asarray(0, x.dtype), computed, (2, 2), (1, 1), "VALID")


def dot(x, y):  # [2, 4, 3, 2] · [2, 2, 3, 5] over the 3 and the last 2, batched over the first
    return lax.dot_general(x, y, (((2, 3), (2, 1)), ((0,), (0,))))


def convolve(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1,), "SAME", rhs_dilation=(2,))


def cast(x):
    return lax.convert_element_type(x, jnp.float32 if x.dtype == jnp.bfloat16 else jnp.bfloat16)


def bitcast(x):
    return lax.bitcast_convert_type(x, jnp.int32 if x.dtype == jnp.float32 else jnp.int16)


def compare(f):
    return Example(f, (M, M), COARSE, degree=0)


def pooling(f, argument):
    """The derivative of max pooling, forwards or backwards, of x in the direction y."""

    def program(x, y):
        def pool(z):
            return lax.reduce_window(
                z, np.asarray(-np.inf, z.dtype), lax.max, (2, 2), (2, 2), "VALID"
            )

        return f(pool, x, argument(y))

    return program


def ragged(x, y):
    return lax.ragged_dot(x, y, np.array([2, 0, 3], np.int32))


def called_back(f):
    return opaque(lambda x: f(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x))


def choose(x, y):
    return lax.select(np.arange(24).reshape(M) % 3 == 0, x, y)


EXAMPLES = {
    # multiplies
    p.mul_p: Example(jnp.multiply, (M, M), degree=2),
    p.div_p: Example(jnp.divide, (M, M), data=POSITIVE, degree=0),
    p.integer_pow_p: Example(
        lambda x: lax.integer_pow(x, -3), data=POSITIVE, degree=-3, reach=30, narrow_reach=2
    ),
    p.square_p: Example(lax.square, degree=2),
    p.sqrt_p: Example(lax.sqrt, data=POSITIVE, degree=0.5),
    p.rsqrt_p: Example(lax.rsqrt, data=POSITIVE, degree=-0.5),
    p.cbrt_p: Example(lax.cbrt, degree=1 / 3, opaque=True),
    p.reduce_prod_p: Example(
        lambda x: lax.reduce_prod(x, (0,)), data=POSITIVE, degree=4, reach=24, narrow_reach=0
    ),
    p.dot_general_p: Example(dot, ((2, 4, 3, 2), (2, 2, 3, 5)), COARSE, degree=2),
    p.conv_general_dilated_p: Example(convolve, ((2, 3, 8), (4, 3, 3)), COARSE, degree=2),
    "ragged_dot_general": Example(ragged, ((5, 4), (3, 4, 2)), COARSE, degree=2),
    # agrees
    p.add_p: Example(jnp.add, (M, M)),
    p.sub_p: Example(jnp.subtract, (M, M)),
    p.add_jaxvals_p: Example(p.add_jaxvals_p.bind, (M, M)),
    p.max_p: Example(lax.max, (M, M)),
    p.min_p: Example(lax.min, (M, M)),
    p.concatenate_p: Example(lambda *xs: lax.concatenate(xs, 0), (M, M)),
    p.pad_p: Example(lambda x, y: lax.pad(x, y, ((1, -1, 0), (0, 2, 1))), (M, ())),
    p.clamp_p: Example(lambda low, x, high: lax.clamp(low, x, high), (M, M, M)),
    p.select_n_p: Example(choose, (M, M)),
    p.dynamic_update_slice_p: Example(
        lambda x, u: lax.dynamic_update_slice(x, u, (np.int32(3), np.int32(1))), (M, (2, 2))
    ),
    p.scatter_p: scatter(lax.scatter),
    p.scatter_add_p: scatter(lax.scatter_add),
    lax.scatter_sub_p: scatter(lax.scatter_sub),
    p.scatter_max_p: scatter(lax.scatter_max),
    p.scatter_min_p: scatter(lax.scatter_min),
    lax.stack_p: Example(lambda *xs: jnp.stack(xs, 1), (M, M)),
    p.rem_p: Example(lambda x, y: lax.rem(x * 8, y), (M, M), POSITIVE, narrow_reach=1),
    # compares
    p.eq_p: compare(lax.eq),
    p.ne_p: compare(lax.ne),
    p.lt_p: compare(lax.lt),
    p.le_p: compare(lax.le),
    p.gt_p: compare(lax.gt),
    p.ge_p: compare(lax.ge),
    p.eq_to_p: compare(p.eq_to_p.bind),
    p.lt_to_p: compare(p.lt_to_p.bind),
    p.le_to_p: compare(p.le_to_p.bind),
    # a function of the data alone
    p.sign_p: Example(lax.sign, degree=0),
    p.is_finite_p: Example(lax.is_finite, degree=0),
    p.argmax_p: Example(lambda x: lax.argmax(x, 1, np.int32), degree=0),
    p.argmin_p: Example(lambda x: lax.argmin(x, 0, np.int32), degree=0),
    # passes through
    p.neg_p: Example(lax.neg),
    p.nextafter_p: Example(lax.nextafter, (M, M), POSITIVE),
    p.abs_p: Example(lax.abs),
    p.copy_p: Example(lambda x: jnp.array(x, copy=True)),
    p.stop_gradient_p: Example(p.stop_gradient_p.bind),
    p.reduce_precision_p: Example(lambda x: lax.reduce_precision(x, 8, 5)),
    p.convert_element_type_p: Example(cast),
    p.reshape_p: Example(lambda x: lax.reshape(x, (3, 8))),
    p.broadcast_in_dim_p: Example(lambda x: lax.broadcast_in_dim(x, (4, 2, 6), (0, 2))),
    p.transpose_p: Example(lambda x: lax.transpose(x, (1, 0))),
    p.squeeze_p: Example(lambda x: lax.squeeze(x, (0,)), ((1, 6),)),
    p.rev_p: Example(lambda x: lax.rev(x, (1,))),
    p.slice_p: Example(lambda x: lax.slice(x, (1, 0), (4, 6), (1, 2))),
    p.dynamic_slice_p: Example(lambda x: lax.dynamic_slice(x, (np.int32(9), np.int32(1)), (2, 3))),
    p.gather_p: Example(gather),
    lax.split_p: Example(lambda x: tuple(lax.split(x, (2, 4), 1))),
    p.top_k_p: Example(lambda x: tuple(lax.top_k(x, 3))),
    p.sort_p: Example(lambda x: lax.sort(x, dimension=1)),
    p.cummax_p: Example(lax.cummax),
    p.cummin_p: Example(lambda x: lax.cummin(x, 1, reverse=True)),
    p.reduce_max_p: Example(lambda x: jnp.max(x, 0)),
    p.reduce_min_p: Example(lambda x: jnp.min(x, (0, 1))),
    p.reduce_sum_p: Example(lambda x: jnp.sum(x, 0), data=COARSE),
    p.cumsum_p: Example(lambda x: lax.cumsum(x, 1), data=COARSE),
    p.reduce_window_sum_p: window(lax.add, 0.0, COARSE),
    p.reduce_window_max_p: window(lax.max, -np.inf),
    p.reduce_window_min_p: window(lax.min, np.inf),
    lax.optimization_barrier_p: Example(lambda x, y: lax.optimization_barrier((x, y)), (M, M)),
    lax.unstack_p: Example(lambda x: tuple(jnp.unstack(x))),
    lax.tile_p: Example(lambda x: jnp.tile(x, (2, 1))),
    p.name_p: Example(lambda x: checkpoint_name(x, "x")),
    p.device_put_p: Example(lambda x: jax.device_put(x, jax.devices()[0])),
    p.sharding_constraint_p: Example(
        lambda x: lax.with_sharding_constraint(
            x, jax.sharding.SingleDeviceSharding(jax.devices()[0])
        )
    ),
    "reshard": Example(resharded),
    p.approx_top_k_p: Example(lambda x: tuple(lax.approx_max_k(x, 3))),
    p.select_and_scatter_add_p: Example(
        pooling(lambda pool, x, y: jax.vjp(pool, x)[1](y)[0], lambda y: y[::2, ::2]),
        (M, M),
        degree=1,
    ),
    p.select_and_gather_add_p: Example(
        pooling(lambda pool, x, y: jax.jvp(pool, (x,), (y,))[1], lambda y: y), (M, M)
    ),
    p.scatter_mul_p: replace(scatter(lax.scatter_mul), degree=None),
    # in its own dtype, at scale 1
    "pure_callback": called_back(jax.pure_callback),
    "io_callback": called_back(io_callback),
    p.bitcast_convert_type_p: Example(bitcast, degree=None),
    # opaque
    p.exp_p: opaque(lax.exp),
    p.exp2_p: opaque(lax.exp2),
    p.expm1_p: opaque(lax.expm1),
    p.log_p: opaque(lax.log, data=POSITIVE, reach=60),
    "log2": replace(opaque(jnp.log2, data=POSITIVE, reach=60), units=2),
    p.log1p_p: opaque(lax.log1p, data=POSITIVE, reach=60),
    p.logistic_p: opaque(lax.logistic, reach=60),
    p.tanh_p: replace(opaque(lax.tanh, reach=60), units=2),
    p.erf_p: opaque(lax.erf, reach=60),
    p.erfc_p: opaque(lax.erfc),
    p.erf_inv_p: opaque(lax.erf_inv),
    p.sin_p: opaque(lax.sin),
    p.cos_p: opaque(lax.cos),
    p.pow_p: opaque(lax.pow, (M, M), POSITIVE, narrow_reach=0),
    p.round_p: opaque(lax.round, reach=60),
    p.floor_p: opaque(lax.floor, reach=60),
    p.ceil_p: opaque(lax.ceil, reach=60),
    p.tan_p: opaque(lax.tan, reach=0, narrow_reach=0),
    p.asin_p: opaque(lambda x: lax.asin(x / 8), reach=0, narrow_reach=0),
    p.acos_p: opaque(lambda x: lax.acos(x / 8), reach=0, narrow_reach=0),
    p.atan_p: opaque(lax.atan, reach=60),
    p.sinh_p: opaque(lax.sinh),
    p.cosh_p: opaque(lax.cosh),
    p.asinh_p: opaque(lax.asinh, reach=30),
    p.acosh_p: opaque(lambda x: lax.acosh(x + 4), data=POSITIVE, reach=30),
    p.atanh_p: opaque(lambda x: lax.atanh(x / 8), reach=0, narrow_reach=0),
    p.atan2_p: opaque(lax.atan2, (M, M), reach=30),
    p.bessel_i0e_p: opaque(lax.bessel_i0e),
    p.bessel_i1e_p: opaque(lax.bessel_i1e),
    p.lgamma_p: opaque(lax.lgamma, data=POSITIVE),
    p.digamma_p: opaque(lax.digamma, data=POSITIVE),
    p.polygamma_p: replace(
        opaque(lambda x: lax.polygamma(jnp.ones_like(x), x), data=POSITIVE), units=16
    ),
    p.zeta_p: opaque(lax.zeta, (M, M), POSITIVE),
    p.igamma_p: opaque(lax.igamma, (M, M), POSITIVE),
    p.igammac_p: opaque(lax.igammac, (M, M), POSITIVE),
    p.igamma_grad_a_p: opaque(lax.igamma_grad_a, (M, M), POSITIVE),
    p.regularized_incomplete_beta_p: opaque(
        lambda a, b, x: lax.betainc(a, b, x / 8), (M, M, M), POSITIVE, reach=0, narrow_reach=0
    ),
    p.cumprod_p: opaque(lax.cumprod, reach=0, narrow_reach=0),
    p.cumlogsumexp_p: opaque(lax.cumlogsumexp),
    p.reduce_p: opaque(
        lambda x: lax.reduce(x, np.zeros((), x.dtype), lambda a, b: a + b * 2, (0,)), data=COARSE
    ),
    p.reduce_window_p: opaque(windows, data=COARSE),
    "one_minus_square": replace(
        opaque(lambda x: jax.jvp(lax.atanh, (x / 8,), (x,))[1], reach=0), units=4
    ),
    "polynomial": opaque(lambda x: jnp.polyval(jnp.asarray([1, 0.5, 2], x.dtype), x)),
}
NOT_YET = {"log2", "one_minus_square", "polynomial"}
NOT_YET -= {name.removesuffix("_p") for module in (lax, p) for name in dir(module)}
"""Names of primitives that only newer JAX has."""


def primitives_of(f, *arguments):
    """Every primitive in the jaxpr of f, those of inner jaxprs included."""

    def inside(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inner):
                    yield from inside(getattr(inner, "jaxpr", inner))

    return set(inside(jax.make_jaxpr(f)(*arguments).jaxpr))


def _is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")
