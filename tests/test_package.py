"""The package's own names: all there, each brought by what defines it, none before it is asked."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import scalify_cli
from scalify_cli.shipped import shipped

FROZEN = {
    *("scalify", "with_precision", "observe", "ScaledArray", "as_scaled", "unscale"),
    *("custom_scale", "rescale"),
}


def test_the_frozen_names_are_exported():
    assert set(scalify_cli.__all__) >= FROZEN
    assert set(dir(scalify_cli)) >= FROZEN | {"__version__"}
    for name in scalify_cli.__all__:
        assert getattr(scalify_cli, name).__name__ == name


def test_a_star_import_brings_them_all():
    names: dict = {}
    exec("from scalify_cli import *", names)
    assert set(names) >= FROZEN


def test_names_are_those_of_their_homes():
    from scalify_cli.core import ScaledArray, scalify

    assert scalify_cli.scalify is scalify
    assert scalify_cli.ScaledArray is ScaledArray


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'scalifi'"):
        scalify_cli.scalifi  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_the_installed_one():
    assert scalify_cli.__version__ == version("scalify-cli")


def test_importing_the_package_imports_no_jax():
    code = "import sys, scalify_cli; dir(scalify_cli); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "wandb", "hydra"} & set(done.stdout.split())


@pytest.mark.parametrize("folder", ["conf", "sweeps"])
def test_the_shipped_folders_are_there(folder):
    assert list(shipped(folder).rglob("*.yaml"))
