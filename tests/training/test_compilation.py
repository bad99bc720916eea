"""The compilation cache: whose folder it is, and what a killed process left in it."""

import jax
import pytest

from scalify_cli.training.compilation import persist_compilation

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def unset():
    """No cache folder is chosen, and none stays chosen."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_chosen_and_bounded(tmp_path):
    persist_compilation(tmp_path / "new" / "compiled")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "compiled")
    assert 0 < jax.config.jax_compilation_cache_max_size < 2**31


def test_the_user_s_own_folder_is_left_to_jax(tmp_path):
    jax.config.update("jax_compilation_cache_dir", "/the/user/s/own")
    persist_compilation(tmp_path / "compiled")
    assert jax.config.jax_compilation_cache_dir == "/the/user/s/own"
    assert not (tmp_path / "compiled").exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    persist_compilation(tmp_path / "file" / "compiled")
    assert jax.config.jax_compilation_cache_dir is None


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in ("whole-cache", "whole-atime", "torn-cache"):
        (tmp_path / name).write_text("")
    persist_compilation(tmp_path)
    assert {file.name for file in tmp_path.glob("*-*")} == {"whole-cache", "whole-atime"}
