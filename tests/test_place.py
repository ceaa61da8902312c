"""gpt/launch/place.py: which machine this is, by the variables that people set and those that Slurm documents."""

import pytest

from gpt.command import UserError
from gpt.launch.place import Place, number, this_place

TWO = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
JOB = {"SLURM_JOB_ID": "123457", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "vm[1-2]", "SLURM_NODEID": "1"}
STEP = JOB | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "vm[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_LOCALID": "0",
}
ALONE = STEP | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "vm1", "SLURM_NODEID": "0"}


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames vm[1-2]" ] && printf "vm1\\nvm2\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_a_machine_of_its_own():
    assert this_place({}) == this_place({"NNODES": "1"}) == Place(0, 1, "", 0)
    assert this_place({"MASTER_ADDR": "left.over", "MASTER_PORT": "1"}) == Place()


def test_the_four_variables():
    assert this_place(TWO) == Place(1, 2, "10.0.0.1", 29500)
    assert this_place(TWO | {"MASTER_PORT": "1234"}).port == 1234


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"NNODES": "two"}, "NNODES is 'two'"),
        ({"NNODES": "0"}, "NNODES is '0'"),
        ({"NODE_RANK": "2"}, "NODE_RANK is '2', it must be a whole number from 0 to 1"),
        ({"NODE_RANK": ""}, "NODE_RANK, this machine's number from 0 to 1, is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR, the address of machine 0, is not set"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT is '65536'"),
        ({"NNODES": None}, "NODE_RANK is set, but NNODES"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(changed, said):
    environment = {name: value for name, value in (TWO | changed).items() if value is not None}
    with pytest.raises(UserError, match=said):
        this_place(environment)


@pytest.mark.parametrize("text", ["-1", "1.5", "²", "1e3", " 2"])
def test_a_number_has_digits_alone(text):
    with pytest.raises(UserError, match="RESTARTS is "):
        number({"RESTARTS": text}, "RESTARTS", 3, 0)


def test_a_step_of_slurm_on_two_machines(scontrol):
    assert this_place(STEP) == Place(1, 2, "vm1", 10_000 + 123457 % 20_000)
    assert this_place(STEP | {"SLURM_JOB_ID": "123458"}).port == this_place(STEP).port + 1


def test_an_empty_variable_is_one_that_is_not_set(scontrol):
    empty = dict.fromkeys(("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"), "")
    assert this_place(STEP | empty) == this_place(STEP) and this_place(STEP).count == 2
    assert this_place(empty | {"SLURM_STEP_ID": ""}) == this_place({})


def test_variables_win_over_slurm():
    assert this_place(STEP | TWO) == this_place(TWO)


@pytest.mark.parametrize(
    "environment",
    [
        JOB,  # a batch script
        JOB | {"SLURM_STEP_ID": str(0xFFFFFFFA)},  # salloc's shell, where that is a step of its own kind
        ALONE | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --nodes=1, srun --pty bash
        ALONE | {"SLURM_STEP_NUM_TASKS": "4"},  # srun --ntasks=4 --pty bash
    ],
)
def test_within_slurm_a_machine_may_be_alone(environment):
    assert this_place(environment) == Place()


@pytest.mark.parametrize(
    "environment", [STEP | {"SLURM_STEP_NUM_TASKS": "8"}, ALONE | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "3"}]
)
def test_several_tasks_on_a_machine_are_refused(environment):
    with pytest.raises(UserError, match="--ntasks-per-node=1"):
        this_place(environment)


def test_without_scontrol_the_four_variables_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="scontrol.*cannot be run.*NNODES, NODE_RANK and MASTER_ADDR"):
        this_place(STEP)


def test_a_scontrol_that_says_nothing_is_named(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'slurm_load: unreachable' >&2\nexit 1\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="unreachable"):
        this_place(STEP)
