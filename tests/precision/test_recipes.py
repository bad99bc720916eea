"""Options of ``precision`` and ``scaling``, and what is refused."""

import jax.numpy as jnp
import pytest

from scalify_cli.errors import UserError
from scalify_cli.precision import NoScaling, Policy, Precision, Scalify, dtype_of, load_precision


def test_fp8_is_the_papers_run_four():
    policy = load_precision("fp8")
    p = policy.precision
    assert (p.forward, p.backward) == ("e4m3", "e5m2")
    assert (p.compute, p.parameters, p.moments) == ("fp16", "fp16", "fp16")
    assert policy.scaling == Scalify()
    assert policy.norm("norm_backward") == policy.norm("gradients") == "l2"
    assert p.rounds_matmuls
    assert p.compute_dtype == jnp.float16


def test_none_propagates_nothing():
    policy = load_precision("fp8", scaling="none")
    assert policy.scaling == NoScaling()
    assert not policy.scaling.propagates
    assert policy.norm("gradients") is policy.norm("moments") is None


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_the_other_options_round_no_matmul(name):
    p = load_precision(name).precision
    assert p.name == name
    assert not p.rounds_matmuls
    assert p.compute_dtype == dtype_of(name)


@pytest.mark.parametrize(
    ("precision", "scaling", "message"),
    [("fp9", "scalify", "precision=fp9"), ("fp8", "scalifi", "scaling=scalifi"), ("", "none", "=")],
)
def test_an_unknown_option_lists_those_there_are(precision, scaling, message):
    with pytest.raises(UserError) as caught:
        load_precision(precision, scaling)
    assert message in caught.value.message
    assert caught.value.exit_code == 2
    assert "fp8" in caught.value.hint or "scalify" in caught.value.hint


@pytest.mark.parametrize("name", ["fp8.yaml", "FP8", "fp8 "])
def test_an_option_is_its_exact_name(name):
    with pytest.raises(UserError):
        load_precision(name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compute", "e4m3"),
        ("compute", "float16"),
        ("parameters", "e4m3"),
        ("moments", "fp8"),
        ("weight_rounding", "up"),
        ("forward", "fp9"),
        ("backward", "e4m4"),
    ],
)
def test_a_precision_checks_its_fields(field, value):
    with pytest.raises(UserError) as caught:
        Precision("test", **{field: value})
    assert value in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("forward", ["e4m3", "e5m2", "e3m2", "e2m1", "int8", "bf16", "fp16"])
def test_any_format_can_be_a_forward_format(forward):
    assert Policy(Precision("test", forward=forward), NoScaling()).forward.name == forward


@pytest.mark.parametrize("field", ["rescale_norm_backward", "rescale_gradients", "rescale_moments"])
def test_scalify_checks_its_norms(field):
    with pytest.raises(UserError, match="l3"):
        Scalify(**{field: "l3"})
    assert (
        Policy(Precision(), Scalify(**{field: "none"})).norm(field.removeprefix("rescale_")) is None
    )
