"""``configs`` and ``doctor``: what there is, and whether this machine is ready."""

import json

import yaml

from scalify_cli.cli import doctor
from scalify_cli.config import catalogue


def test_groups_with_their_defaults(scalify):
    found = json.loads(scalify("configs", "--json").out)
    assert list(found) == list(catalogue.GROUPS)
    assert found["precision"] == {"default": "fp8", "options": ["bf16", "fp16", "fp32", "fp8"]}
    assert "bf16 fp16 fp32 fp8*" in scalify("configs").out


def test_options_of_a_group(scalify):
    out = scalify("configs", "scaling").out
    assert [line.split()[0] for line in out.splitlines()] == ["scaling=none", "scaling=scalify*"]


def test_one_option(scalify):
    found = json.loads(scalify("configs", "model=gpt_nano", "--json").out)
    assert found == yaml.safe_load(scalify("configs", "model=gpt_nano").out)
    assert found["layers"] == 4


def test_own_options_are_listed(scalify, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# my own\n_target_: my.Model\n")
    found = json.loads(scalify("configs", "model", "--json", "--config-dir", str(tmp_path)).out)
    assert found["mine"] == "my own"


def test_doctor_examines_everything(scalify):
    result = scalify("doctor", "--json")
    found = json.loads(result.out)
    assert list(found) == [
        "python",
        "packages",
        "devices",
        "fp8",
        "configuration",
        "runs",
        "disk",
        "wandb",
        "slurm",
    ]
    assert result.code == int(not all(row["ok"] for row in found.values()))
    assert found["fp8"]["ok"] and "jax" in found["packages"]["value"]


def test_doctor_fails_where_a_run_would(scalify, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKS", {"runs": doctor._CHECKS["runs"]})
    (tmp_path / "file").write_text("")
    result = scalify("doctor", "--runs-dir", str(tmp_path / "file"))
    assert result.code == 1
    assert result.out.startswith("BAD")


def test_a_check_that_cannot_run_is_a_finding(scalify, monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKS", {"x": lambda _: 1 / 0})
    assert scalify("doctor").out == "BAD  x  ZeroDivisionError: division by zero\n"


def test_doctor_says_whether_there_is_a_key_and_never_shows_it(scalify, monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKS", {"wandb": doctor._CHECKS["wandb"]})
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    out = scalify("doctor").out
    assert "credentials are configured" in out
    assert "0123456789" not in out
