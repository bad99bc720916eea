"""Programs from all over JAX: scalified, they give the plain result within their dtype's rounding.

The reference is the plain program in float32. The bound is a few units of the dtype relative to the
largest result, and where a program itself amplifies rounding, what the plain program errs in the
dtype.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement_programs import DOMAINS

from scalify_cli.core import ScaledArray, scalify, unscale

EXPONENTS = ((0, 0), (-3, 2), (-6, -5))
UNITS = 8
PROGRAMS = [(domain, name) for domain, programs in DOMAINS.items() for name in programs]
NARROW_AND = {number: (jnp.float16, (jnp.float32, jnp.bfloat16)[number % 2]) for number in (0, 1)}


@pytest.fixture(autouse=True)
def standard_promotion():
    """Programs of jnp and jax.scipy mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def compiled(f):
    """Barely optimised: there are hundreds of programs, each run a few times."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def arguments(domain, dtype, exponents):
    rng = np.random.default_rng(0)

    def argument(exponent):
        values = 2.0 ** rng.uniform(-2, 2, (4, 6))
        if domain in ("real", "gradients"):
            values *= rng.choice([-1, 1], (4, 6))
        if domain == "unit":
            values, exponent = rng.uniform(0.1, 0.9, (4, 6)), min(exponent, 0)
        return ScaledArray(jnp.asarray(values, dtype), 2.0**exponent)

    return [argument(exponent) for exponent in exponents]


def results(outputs):
    """Float results in float32, the others as they are."""
    return [np.asarray(x) for x in jax.tree.leaves(unscale(outputs, jnp.float32))]


def largest(values):
    finite = np.abs(values[np.isfinite(values)])
    return np.max(finite, initial=0)


def agrees(got, wanted, plain, dtype):
    """Whether one result is as right as its dtype, or the plain program in it, can be."""
    if not np.issubdtype(wanted.dtype, np.floating):
        return np.array_equal(got, plain())
    finite = np.isfinite(wanted)
    if not np.array_equal(np.isnan(got), np.isnan(wanted)):
        return False
    error = np.max(np.abs(got[finite] - wanted[finite]), initial=0)
    bound = UNITS * float(jnp.finfo(dtype).eps) * largest(wanted)
    return error <= bound or error <= bound + 2 * largest((plain() - wanted)[finite])


@pytest.mark.parametrize("domain,name", PROGRAMS)
def test_scalified_agrees_with_plain(domain, name):
    f = DOMAINS[domain][name]
    plain, scaled = compiled(f), compiled(scalify(f))
    for dtype in NARROW_AND[PROGRAMS.index((domain, name)) % 2]:
        for exponents in EXPONENTS:
            xs = arguments(domain, dtype, exponents)
            wanted, outputs = results(plain(*unscale(xs, jnp.float32))), scaled(*xs)
            for i, (got, reference) in enumerate(zip(results(outputs), wanted, strict=True)):
                narrow = lambda i=i, xs=xs: results(plain(*unscale(xs)))[i]  # noqa: E731
                assert got.shape == reference.shape
                assert agrees(got, reference, narrow, dtype), (dtype, exponents, i, got, reference)


def test_the_table_is_large():
    assert len(PROGRAMS) >= 150
