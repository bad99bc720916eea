"""The cheap random bits: uniform, uncorrelated with position, with each other and with the seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalify_cli.formats import hash_bits, saturating_cast, stochastic_round

COUNT = 1 << 19


def bits(seed, shape=(COUNT,)):
    return np.asarray(hash_bits(shape, jnp.uint32(seed)))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_every_bit_is_fair(seed):
    ones = [(bits(seed) >> np.uint32(bit) & 1).mean() for bit in range(32)]
    assert np.abs(np.array(ones) - 0.5).max() < 5 * 0.5 / np.sqrt(COUNT)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_bytes_are_uniform(seed):
    """χ² of the highest and lowest byte, 255 degrees of freedom: 5 σ is 113 above the mean."""
    for shift in (24, 0):
        counts = np.bincount(bits(seed) >> np.uint32(shift) & 255, minlength=256)
        chi_square = np.sum((counts - COUNT / 256) ** 2) / (COUNT / 256)
        assert abs(chi_square - 255) < 113


def correlation(a, b):
    return np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1]


@pytest.mark.parametrize("distance", [1, 2, 3, 64, 768, 1024, 4096])
def test_neighbours_are_uncorrelated(distance):
    stream = bits(3)
    assert abs(correlation(stream[:-distance], stream[distance:])) < 5 / np.sqrt(COUNT)


@pytest.mark.parametrize("other", [1, 2, 3, 256, 2**16, 2**31])
def test_seeds_give_unrelated_streams(other):
    here, there = bits(0), bits(other)
    assert abs(correlation(here, there)) < 5 / np.sqrt(COUNT)
    expected = COUNT * COUNT / 2**32  # values in common of two random draws
    assert np.intersect1d(here, there).size < 2 * expected


def test_a_function_of_position_and_seed_alone():
    flat = bits(9)
    np.testing.assert_array_equal(bits(9, (16, COUNT // 16)).ravel(), flat)
    jitted = jax.jit(lambda seed: hash_bits((COUNT,), seed))(jnp.uint32(9))
    np.testing.assert_array_equal(jitted, flat)
    np.testing.assert_array_equal(bits(9, (1000,)), flat[:1000])


def test_rounding_with_them_keeps_small_updates():
    """A weight of 1 and steps of 2^-14: nearest never moves, stochastic follows the sum."""
    step, steps = 2.0**-14, 256
    nearest = stochastic = jnp.ones(1 << 14, jnp.float32)
    for seed in range(steps):
        nearest = saturating_cast(nearest + step, "fp16")
        noise = hash_bits(stochastic.shape, jnp.uint32(seed))
        stochastic = stochastic_round(stochastic + step, "fp16", noise)
    assert np.all(nearest == 1)
    assert float(stochastic.mean()) == pytest.approx(1 + steps * step, rel=1e-4)
