"""Primitives without a rule are computed on true values, and give the plain result bit for bit."""

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse
from jax.extend.core import primitives as p
from law_examples import primitives_of

from scalify_cli import trace
from scalify_cli.core import RULES, ScaledArray, scalify, unscale

SEEDED = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)


def positive(x):
    return lax.dot(x, x.T) * 0.25


def through_reference(x):
    reference = jax.new_ref(x)
    reference[0] = reference[1]
    reference[2] += x[3]
    return reference[...]


def tridiagonal(x):
    return lax.linalg.tridiagonal_solve(x[0], x[1] + 9, x[2], x)


FALLBACKS = {
    p.cholesky_p: lambda x: lax.linalg.cholesky(positive(x) + jnp.eye(4)),
    p.lu_p: lambda x: lax.linalg.lu(x)[0],
    p.qr_p: lambda x: lax.linalg.qr(x)[1],
    p.householder_product_p: lambda x: lax.linalg.householder_product(x, x[0]),
    p.svd_p: lambda x: lax.linalg.svd(x)[1],
    p.eig_p: lambda x: lax.linalg.eig(x)[0],
    p.eigh_p: lambda x: lax.linalg.eigh(positive(x))[1],
    p.schur_p: lambda x: lax.linalg.schur(x)[0],
    p.hessenberg_p: lambda x: lax.linalg.hessenberg(x)[0],
    p.tridiagonal_p: lambda x: lax.linalg.tridiagonal(positive(x))[1],
    p.tridiagonal_solve_p: tridiagonal,
    p.triangular_solve_p: lambda x: jsp.linalg.solve_triangular(x + 4 * jnp.eye(4), x),
    p.fft_p: lambda x: jnp.real(jnp.fft.ifft2(jnp.fft.rfft2(x))),
    p.complex_p: lambda x: jnp.abs(jnp.exp(lax.complex(x, x * 2))),
    p.conj_p: lambda x: jnp.imag(jnp.conj(lax.complex(x, x))),
    p.real_p: lambda x: jnp.real(lax.complex(x, x) * (1 + 2j)),
    p.random_gamma_p: lambda x: jax.random.gamma(jax.random.key(0), jnp.abs(x) + 1),
    p.rng_uniform_p: lambda x: lax.rng_uniform(x[0, 0], x[0, 0], (3,)),
    p.swap_p: through_reference,
    p.get_p: through_reference,
    p.scatter_p: lambda x: x.at[np.array([2, 0, 2])].apply(jnp.sin),
    p.random_bits_p: lambda x: x + jax.random.uniform(jax.random.key(0), x.shape),
}


@pytest.mark.parametrize("exponent", [-3, 0, 2])
@pytest.mark.parametrize("primitive", FALLBACKS, ids=str)
def test_a_fallback_is_the_plain_function(primitive, exponent):
    f = FALLBACKS[primitive]
    x = ScaledArray(SEEDED, 2.0**exponent)
    assert primitive in primitives_of(f, SEEDED)
    wanted = jax.jit(f)(unscale(x))
    got = unscale(jax.jit(scalify(f))(x))
    np.testing.assert_allclose(got, wanted, rtol=2.0**-20, atol=2.0**-20 * np.abs(wanted).max())


def test_a_callback_sees_true_values_and_its_own_dtype():
    seen = []

    def doubled(x):
        seen.append(x)
        return x * np.float16(2)

    def function(x):
        jax.debug.callback(lambda y: seen.append(y), x)
        return jax.pure_callback(doubled, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    x = ScaledArray(jnp.float16([1, -3]), 2.0**-4)
    got = jax.jit(scalify(function))(x)
    jax.effects_barrier()
    np.testing.assert_array_equal(unscale(got), np.float16([0.125, -0.375]))
    assert len(seen) == 2
    for value in seen:
        np.testing.assert_array_equal(value, [1 / 16, -3 / 16])


def test_the_table_names_what_it_does_not_know():
    """Every public primitive has a rule, an example here, or a good reason for neither."""
    named = {str(key) for key in (*RULES, *FALLBACKS)}
    public = {str(getattr(p, name)) for name in dir(p) if name.endswith("_p")}
    assert public - named <= {*WITHOUT_FLOATS.split(), *CONTROL.split(), *PARTS.split()}


WITHOUT_FLOATS = """
    after_all and axis_index clz create_token empty2 iota not or population_count random_fold_in
    random_seed random_split reduce_and reduce_or reduce_xor rng_bit_generator shift_left
    shift_right_arithmetic shift_right_logical threefry2x32 xor
"""
CONTROL = """
    call closed_call cond custom_jvp_call custom_lin custom_linear_solve custom_vjp_call eval_jaxpr
    jit remat2 scan while
"""
PARTS = "imag ragged_all_to_all select_and_scatter"  # of what has an example, or a GPU's alone


@pytest.mark.parametrize("exponent", [-40, 0, 40])
def test_a_fallback_adds_up_in_float32(exponent):
    """A sparse matmul asks for sums in its own dtype, which may not hold them."""
    x = np.float32([[1, 0, -3], [0, 2, 0.5]])

    def f(x, y):
        return sparse.BCOO.fromdense(x, nse=4) @ y

    scaled = [ScaledArray(jnp.float16(y), jnp.float32(2.0**exponent)) for y in (x, x.T)]
    got = scalify(f)(*scaled)
    assert "fallback" in str(trace(f, *scaled))
    np.testing.assert_allclose(unscale(got, jnp.float32), x @ x.T * 4.0**exponent, rtol=1e-3)
