"""Strict arithmetic, the CPU, and one cache of tokens and compiled programs for the session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
for name in ("WANDB_API_KEY", "WANDB_MODE", "SCALIFY_RUNS", "SCALIFY_CONF", "SCALIFY_DEBUG"):
    os.environ.pop(name, None)

import jax  # noqa: E402  (after its platform is chosen)
from fake_slurm import FakeSlurm  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id) -> Path:
    """One folder for all of the session's worker processes."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session", autouse=True)
def session_cache(shared_folder) -> Iterator[Path]:
    """``SCALIFY_CACHE``: a tokenizer is trained once, and a program compiled once."""
    folder = shared_folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALIFY_CACHE", str(folder))
        yield folder


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> FakeSlurm:
    """``squeue`` and the like, which say what the test tells them to."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return FakeSlurm(folder)
