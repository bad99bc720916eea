"""The pair itself: construction, conversion, pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalify_cli.core import ScaledArray, as_scaled, is_scaled, unscale


@pytest.mark.parametrize("scale", [1, 1.0, 2.0**-126, 2.0**127, np.float32(0.5), jnp.float32(4)])
def test_a_scale_is_a_power_of_two_in_float32(scale):
    x = ScaledArray(jnp.ones((2, 3), jnp.float16), scale)
    assert x.scale.dtype == jnp.float32
    assert float(x.scale) == scale
    assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 3), 2, 6, jnp.float16)


@pytest.mark.parametrize("scale", [0, -1.0, 3.0, 1.5, np.inf, np.nan, 1e-8, np.ones(2)])
def test_other_scales_are_refused(scale):
    with pytest.raises(ValueError, match="power of two"):
        ScaledArray(jnp.ones(2), scale)


def test_the_refusal_says_what_to_use():
    with pytest.raises(ValueError, match=r"3\.0 is not a positive scalar power of two.*as_scaled"):
        ScaledArray(jnp.ones(2), 3.0)


def test_round_trip_as_a_pytree():
    x = {"w": ScaledArray(jnp.ones(2, jnp.float16), 2.0**-40), "n": 3}
    leaves, structure = jax.tree.flatten(x)
    again = jax.tree.unflatten(structure, leaves)
    assert len(leaves) == 3
    assert again["w"].data is x["w"].data and again["w"].scale is x["w"].scale
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(x)]
    assert paths == ["['n']", "['w'].data", "['w'].scale"]
    through = jax.jit(lambda tree: tree)(x)
    assert is_scaled(through["w"]) and float(through["w"].scale) == 2.0**-40
    assert jax.eval_shape(lambda tree: tree, x)["w"].dtype == jnp.float16


def test_only_float_leaves_are_scaled():
    tree = {
        "float": np.float32([4, 4]),
        "python": 8.0,
        "integer": jnp.arange(2),
        "flag": True,
        "key": jax.random.key(0),
        "none": None,
        "text": "x",
    }
    scaled = as_scaled(tree)
    assert [name for name, x in scaled.items() if is_scaled(x)] == ["float", "python"]
    assert float(scaled["float"].scale) == 4 and float(scaled["python"].scale) == 8
    assert scaled["integer"] is tree["integer"] and scaled["text"] == "x"
    assert as_scaled(scaled)["float"] is scaled["float"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, -1, 1, -1], 1.0),
        ([3, 3], 2.0),
        ([0.7, 0.7], 0.5),
        ([6, 0, 0, 0], 2.0),  # root mean square 3
        ([np.inf, np.nan, 5], 4.0),
        ([0, 0], 2.0**-40),
        ([2e-38, 2e-38], 2.0**-126),
        ([1.5e38, 1.5e38], 2.0**126),
        ([3e38], 2.0**126),  # a division by 2**127 would be a product with a subnormal
        ([], 1.0),
    ],
)
def test_the_scale_is_the_power_of_two_below_the_root_mean_square(values, scale):
    x = as_scaled(jnp.float32(values))
    assert float(x.scale) == scale
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.float32(x.data) * np.float32(x.scale), np.float32(values))


@pytest.mark.parametrize("dtype, scale", [(jnp.float32, 2.0**-7), (jnp.float16, 2.0**-6)])
def test_no_narrow_value_is_far_above_the_scale(dtype, scale):
    x = as_scaled(jnp.zeros(1 << 14, dtype).at[3].set(1))
    assert float(x.scale) == scale
    assert float(unscale(x)[3]) == 1


def test_zeros_of_a_narrow_dtype_take_the_smallest_scale():
    assert float(as_scaled(jnp.zeros(2, jnp.float16)).scale) == 2.0**-126


def test_a_given_scale_is_rounded_down():
    x = as_scaled(jnp.float16([6, 12]), 5.0)
    assert float(x.scale) == 4
    np.testing.assert_array_equal(np.float32(x.data), [1.5, 3])
    traced = jax.jit(as_scaled)(jnp.float16([6, 12]), jnp.float32(5))
    assert float(traced.scale) == 4


@pytest.mark.parametrize("scale", [0.0, -3.0, np.inf, np.nan])
def test_a_scale_that_no_power_of_two_is_below_is_refused(scale):
    with pytest.raises(ValueError):
        as_scaled(jnp.ones(2), scale)


def test_traced_values_get_scale_one():
    assert float(jax.jit(as_scaled)(jnp.float32([100, 200])).scale) == 1


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(exponent=st.integers(-60, 60), seed=st.integers(0, 99))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_there_and_back_is_exact(dtype, exponent, seed):
    values = jnp.asarray(np.random.default_rng(seed).normal(size=8), dtype)
    x = ScaledArray(values, 2.0**exponent)
    wide = unscale(x, jnp.float32)
    np.testing.assert_array_equal(np.asarray(wide), np.float32(values) * 2.0**exponent)
    again = as_scaled(wide, 2.0**exponent)
    np.testing.assert_array_equal(np.asarray(again.data), np.float32(values))


def test_unscale_keeps_or_changes_dtypes():
    tree = {"s": ScaledArray(jnp.float16([2]), 4.0), "f": jnp.bfloat16(1), "i": jnp.int32(3)}
    own = unscale(tree)
    assert (own["s"].dtype, own["f"].dtype, own["i"].dtype) == (
        jnp.float16,
        jnp.bfloat16,
        jnp.int32,
    )
    wide = unscale(tree, jnp.float32)
    assert (wide["s"].dtype, wide["f"].dtype, wide["i"].dtype) == (
        *(jnp.float32, jnp.float32, jnp.int32),
    )
    assert float(own["s"][0]) == 8


def test_numpy_sees_the_true_values():
    np.testing.assert_array_equal(
        np.asarray(ScaledArray(jnp.float16([1, 2]), 2.0**20)), [2**20, 2**21]
    )


def test_a_captured_array_has_its_scale_inside_of_a_trace():
    captured = jnp.float16([3, -3])
    scale = jax.jit(lambda: as_scaled(captured).scale)()
    assert float(scale) == 2
