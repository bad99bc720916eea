"""What can be chosen is read from file names, and every file says what it is."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import yaml

from scalify_cli.config import catalogue, compose
from scalify_cli.errors import UserError

OPTIONS = [(group, option) for group in catalogue.GROUPS for option in catalogue.options(group)]
SIZED = [("trainer/sized", option) for option in catalogue.options("trainer/sized")]


@pytest.mark.parametrize(("group", "option"), OPTIONS + SIZED)
def test_every_option_says_what_it_is(group, option):
    assert len(catalogue.describe(group, option)) > 10


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_fields_are_the_keys_of_the_file(group, option):
    path = catalogue.option_path(group, option)
    assert path is not None
    keys = set(yaml.safe_load(path.read_text())) - {"_target_", "defaults"}
    assert set(catalogue.fields(group, option)) == keys


def test_defaults_are_options():
    usual = catalogue.defaults()
    assert set(usual) == set(catalogue.GROUPS)
    assert all(usual[group] in catalogue.options(group) for group in usual)


def test_sized_trainers_name_a_trainer_and_a_model():
    for option in catalogue.options("trainer/sized"):
        trainer, _, model = option.partition("_")
        assert trainer in catalogue.options("trainer")
        assert model in catalogue.options("model")


def test_no_option_of_a_group_that_is_not():
    assert catalogue.options("nothing") == []
    assert catalogue.option_path("model", "nothing") is None


def test_the_catalogue_imports_nothing_heavy():
    code = "import sys, scalify_cli.config.catalogue; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert not {"hydra", "omegaconf", "jax", "numpy", "yaml"} & set(loaded.split())


@pytest.mark.parametrize(("text", "refused"), [("8:00:00  # a night", True), ('"8:00:00"', False)])
def test_a_time_that_yaml_takes_for_a_number_is_refused(tmp_path, text, refused):
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "cluster.yaml").write_text(f"defaults: [slurm]\ntime: {text}\n")
    with pytest.raises(UserError, match="8:00:00 is a number") if refused else nullcontext():
        config = compose(["launcher=cluster"], tmp_path)
        assert config.launcher.time == "8:00:00"


def test_minutes_are_minutes():
    assert compose(["launcher=slurm", "launcher.time=90"]).launcher.time == "90"
