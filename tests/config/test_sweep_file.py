"""A sweep's file means what it looks like, or says what is wrong with it."""

import pytest

from scalify_cli.config.grid import expand
from scalify_cli.config.sweep_file import read_grid
from scalify_cli.errors import UserError


@pytest.fixture
def written(tmp_path):
    """``written(text)``: a sweep's file."""
    path = tmp_path / "mine.yaml"

    def write(text: str):
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("launcher.time: 1:30:00", "launcher.time=1:30:00"),
        ("tracking.wandb: [off]", "tracking.wandb=off"),
        ("name: 2026-01-02", "name=2026-01-02"),
        ("optimizer.learning_rate: 1e-3", "optimizer.learning_rate=1e-3"),
        ("model.remat: true", "model.remat=true"),
        ("seed: 3", "seed=3"),
        ("launcher.time: null", "launcher.time=null"),
    ],
)
def test_a_value_means_what_the_same_word_means_on_a_command_line(written, text, word):
    [point] = expand(read_grid(written(f"include: [{{{text}}}]")))
    assert point.words == (word,)


def test_entries_may_share_what_is_written_once(written):
    text = "base: []\ninclude:\n- &a {seed: 1, name: x}\n- {<<: *a, seed: 2}\n"
    words = [point.words for point in expand(read_grid(written(text)))]
    assert words == [("seed=1", "name=x"), ("seed=2", "name=x")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gird: {seed: [1]}", "a sweep has no 'gird'"),
        ("grid: [1]", "grid is not keys and their values"),
        ("zip: {seed: [1]}", "zip is not a list"),
        ("include: [1]", "include is not a list"),
        ("- a", "is not a sweep"),
        ("a: [", "is not YAML"),
        ("grid: &a\n  seed: *a", "has a value inside itself"),
        ("grid: {seed: [0], seed: [1]}", "'seed' is twice in the mapping at line 1"),
        ("base: [1, {model: gpt_nano}]", "base is not a list of words"),
        ("exclude: [{}]", "exclude has an entry without a key"),
        ("zip: [{}]", "zip has an entry without a key"),
    ],
)
def test_a_file_that_is_no_sweep_says_why(written, text, message):
    with pytest.raises(UserError) as caught:
        read_grid(written(text))
    assert message in caught.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml cannot be read"):
        read_grid(tmp_path / "absent.yaml")


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("description: größer".encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.yaml is not text in UTF-8"):
        read_grid(path)
