"""The script that SLURM runs is a function of the launcher's values; golden files hold it.

``python tests/launch/test_sbatch.py`` writes them anew.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from scalify_cli.errors import UserError
from scalify_cli.launch import Slurm
from scalify_cli.launch.sbatch import Submission, render, render_tasks

GOLDEN = Path(__file__).parent / "golden"
COMMAND = ("/venv/bin/python", "-m", "scalify_cli", "run", "precision=fp8", 'name="two words"')
HERE = Submission("scalify-smoke", Path("/data/runs/sweeps/smoke/slurm-1"), Path("/home/me"), [])
CASES = {
    "plain": Slurm(),
    "everything": Slurm(
        partition="gpu",
        account="physics",
        qos="high",
        time="1-12:00:00",
        memory="64G",
        gpus="a100:4",
        cpus=8,
        nodes=2,
        tasks_per_node=4,
        constraint="a100|h100",
        modules=["gcc/13", "cuda/12.8"],
        container="apptainer exec --nv image.sif",
        sbatch=["--mail-type=FAIL"],
        srun=["--cpu-bind=cores"],
        setup=["export NCCL_DEBUG=WARN", 'echo "on $(hostname)"'],
        python="/opt/python",
        signal_seconds=300,
        max_requeues=5,
    ),
}


def submission(count=3, parallel=None) -> Submission:
    commands = [(*COMMAND, f"seed={seed}") for seed in range(count)]
    return Submission(HERE.name, HERE.folder, HERE.directory, commands, parallel)


def texts(name: str) -> dict[str, str]:
    slurm = CASES[name]
    chosen = submission(parallel=2 if name == "everything" else None)
    return {
        f"{name}.sbatch": render(slurm, chosen),
        f"{name}.tasks": render_tasks(slurm, chosen),
    }


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_golden_one(name):
    for file, text in texts(name).items():
        assert text == (GOLDEN / file).read_text("utf-8")


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_bash(name):
    bash = shutil.which("bash")
    assert bash is not None
    script = texts(name)[f"{name}.sbatch"]
    assert subprocess.run([bash, "-n"], input=script, text=True, check=False).returncode == 0


def test_a_folder_with_a_blank_in_its_name_is_quoted():
    folder = Path("/data/my runs/slurm-1")
    script = render(Slurm(), Submission("n", folder, folder, [COMMAND]))
    assert "#SBATCH --output='/data/my runs/slurm-1/%a.log'\n" in script
    assert "export SCALIFY_SUBMISSION='/data/my runs/slurm-1'\n" in script


def test_a_line_break_in_a_word_is_refused():
    with pytest.raises(UserError, match="line break"):
        render_tasks(Slurm(), Submission("n", HERE.folder, HERE.directory, [("a\nb",)]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodes": 0}, "launcher.nodes=0"),
        ({"cpus": 0}, "launcher.cpus=0"),
        ({"time": "2:00"}, "launcher.time=2:00"),
        ({"time": "28800"}, "launcher.time=28800"),
        ({"time": "1:30"}, "launcher.time=1:30"),
        ({"time": "0-00:01"}, "launcher.time=0-00:01"),
    ],
)
def test_values_that_cannot_work_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Slurm(**values)


@pytest.mark.parametrize("limit", ["3:00", "2:01", "0:02:01", "1-0", "0-1:00:00", "UNLIMITED"])
def test_a_limit_leaves_time_before_the_signal(limit):
    assert Slurm(time=limit).time == limit


if __name__ == "__main__":
    for case in CASES:
        for file, text in texts(case).items():
            (GOLDEN / file).write_text(text, "utf-8")
