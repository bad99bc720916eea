"""A process's place among others, from the environments that give it one."""

import pytest

from scalify_cli.launch.distributed import VARIABLE, Place, place

STEP = {
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[07-08]",
}


def port(place: Place | None) -> int:
    assert place is not None
    return int(place.address.rpartition(":")[2])


@pytest.mark.parametrize("environ", [{}, STEP | {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_process_alone_has_no_place(environ):
    assert place(environ) is None


def test_a_batch_script_that_asks_for_tasks_is_none_of_them():
    assert place({"SLURM_JOB_ID": "1000", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None


def test_a_parent_on_this_machine_says_it_in_one_variable():
    environ = STEP | {VARIABLE: "1/4@127.0.0.1:40000"}
    assert place(environ) == Place(1, 4, "127.0.0.1:40000", local=True)


def test_slurm_says_which_of_how_many():
    found = place(STEP)
    assert found is not None
    assert (found.rank, found.count, found.local) == (5, 8, False)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node07", "node07"),
        ("node07,other", "node07"),
        ("node[07-08]", "node07"),
        ("node[007,009-015],other", "node007"),
        ("rack[1-2]node[3-4]", "rack1node3"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_processes_meet_on_the_first_node(nodes, first):
    found = place(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert found is not None
    assert found.address.rpartition(":")[0] == first


def test_steps_and_jobs_meet_at_ports_of_their_own():
    jobs = [{"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "1001"}, {"SLURM_JOB_ID": "1002"}]
    others = [*jobs, {"SLURM_CLUSTER_NAME": "another"}]
    ports = {port(place(STEP | other)) for other in [{}, *others]}
    assert len(ports) == 5
    assert all(61440 <= number <= 65535 for number in ports)


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "2"}, (0,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "4"}, (0, 1, 2, 3)),
    ],
)
def test_the_tasks_of_a_node_divide_its_gpus(environ, devices):
    found = place(STEP | environ)
    assert found is not None
    assert found.devices == devices
