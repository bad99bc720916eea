"""The id follows what changes a run's numbers; the difference names exactly that."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scalify_cli.config import compose, difference, signature, to_yaml
from scalify_cli.config.identity import override

POINTS = [
    [],
    ["seed=3"],
    ["precision=fp16", "scaling=none", "model=gpt_nano", "trainer.steps=5"],
    ["trainer=paper"],
    ["trainer=paper", "optimizer=adamw"],
    ["trainer=gpu", "model.context=64"],
    ["model._target_=textwrap.shorten", "model.text=a", "model.width=768"],
    ["data=text", "data.path='/a=b \"c'"],
    ["name='null'", "tags=[a,'3','x y']"],
]
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=12)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@pytest.mark.parametrize("words", POINTS)
def test_the_difference_makes_the_same_configuration(words):
    config = compose(words)
    again = compose(difference(config))
    assert again == config
    assert signature(again) == signature(config)


def test_the_difference_of_a_saved_configuration():
    saved = OmegaConf.create(to_yaml(compose(["model=gpt_micro", "seed=2"])))
    assert isinstance(saved, type(compose()))
    assert difference(saved) == ["model=gpt_micro", "seed=2"]


def test_no_difference_from_the_defaults():
    assert difference(compose()) == []


@pytest.mark.parametrize(
    "word", ["name=x", "tags=[x]", "tracking.wandb=off", "tracking.project=x", "data.cache=/x"]
)
def test_what_changes_no_number_keeps_the_id(word):
    assert signature(compose([word])) == signature(compose())


@pytest.mark.parametrize(
    "word", ["seed=1", "precision=fp16", "trainer.steps=3", "optimizer.beta1=0.8", "scaling=none"]
)
def test_what_changes_a_number_changes_the_id(word):
    assert signature(compose([word])) != signature(compose())


def test_the_id_is_eight_hex_digits_whatever_the_order_of_words():
    words = ["seed=1", "model=gpt_nano", "precision=fp16"]
    found = signature(compose(words))
    assert len(found) == 8 and int(found, 16) >= 0
    assert signature(compose(words[::-1])) == found


@settings(deadline=None)
@given(st.one_of(SCALAR, st.lists(SCALAR, max_size=3)))
def test_an_override_reads_back_as_the_value_it_was_written_from(value):
    parsed = OverridesParser.create().parse_overrides([override("key", value)])[0]
    assert parsed.value() == value
    assert type(parsed.value()) is type(value)
