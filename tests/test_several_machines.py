"""launch.sh on several machines: network namespaces with two processes each, joined by real cables, sockets and signals.

Slurm is played by two small programs that do what its manuals say of srun and scontrol.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.namespaces import Machine, machines
from tests.processes import ENVIRONMENT, ROOT

DOOR = str(ROOT / "launch.sh")
HERE = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "N": "2"}


@pytest.fixture
def two():
    with machines(2) as found:
        yield found


def start(machine: Machine, rank: int, first: Machine, *words, **environment: str) -> subprocess.Popen:
    variables = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": first.address}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return machine.start(DOOR, *words, env=HERE | variables | environment, **how)


def launch(two: list[Machine], *words, code: int = 0, **environment: str) -> list[str]:
    """The same command on both; what each said."""
    return ended([start(machine, rank, two[0], *words, **environment) for rank, machine in enumerate(two)], code)


def ended(jobs: list[subprocess.Popen], code: int, limit: int = 240) -> list[str]:
    with ExitStack() as stack:
        for job in jobs:
            stack.callback(job.kill)
        said = [job.communicate(timeout=limit)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [code] * len(jobs), "\n-----\n".join(said)
    return said


def run_of(out: Path, steps: int = 6) -> list[str]:
    flags = {"--steps": steps, "--batch": 8, "--eval-every": 0, "--save-every": 2, "--out": out}
    return ["train", *(str(word) for flag in flags.items() for word in flag)]


def metrics(out: Path) -> list[dict]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.mark.slow
def test_check_meets_on_both_machines_and_numbers_processes_by_machine(two):
    first, second = launch(two, "check")
    lines = [line for line in first.splitlines() if line.startswith("process ")]
    assert [line.split(":")[0] for line in lines] == [
        f"process {rank} of 4 on {machine.name}" for rank, machine in enumerate([two[0], two[0], two[1], two[1]])
    ]
    assert "ok       4 processes" in first and "process 0" not in second  # said once


@pytest.mark.slow
def test_processes_are_numbered_by_machine_whatever_their_addresses(two):
    # machine 0 is the one whose address sorts last
    said = ended([start(two[1], 0, two[1], "check"), start(two[0], 1, two[1], "check")], 0)
    assert "process 0 of 4 on node-2" in said[0] and "process 3 of 4 on node-1" in said[0]


@pytest.mark.slow
def test_two_machines_train_as_one_process_does(two, tmp_path):
    alone = subprocess.run([DOOR, *run_of(tmp_path / "one")], env=HERE | {"N": "1"}, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    launch(two, *run_of(tmp_path / "four"))
    assert json.loads((tmp_path / "four/run.json").read_text())["processes"] == 4
    one, four = metrics(tmp_path / "one"), metrics(tmp_path / "four")
    assert len(one) == len(four) == 8
    for name in ("loss", "rewards/margins", "grad_norm", "logps/chosen"):
        expected = [line[name] for line in one if name in line]
        assert [line[name] for line in four if name in line] == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_a_machine_that_does_not_come_is_named(two):
    began = time.monotonic()
    (said,) = ended([start(two[0], 0, two[0], "check", WAIT="5")], 2)
    assert "node 1" in said.rstrip().splitlines()[-1] and "error: " in said.rstrip().splitlines()[-1], said
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_other_flags_on_a_machine_are_refused_before_torchrun(two, tmp_path):
    jobs = [
        start(two[0], 0, two[0], *run_of(tmp_path / "run")),
        start(two[1], 1, two[0], *run_of(tmp_path / "run", steps=7)),
    ]
    said = ended(jobs, 2)
    assert all("differs from node 0" in each and "flags" in each for each in said), said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_machine_stops_both(two, tmp_path, asked):
    jobs = [start(machine, rank, two[0], *run_of(tmp_path / "run", 500)) for rank, machine in enumerate(two)]
    until(lambda: len(metrics(tmp_path / "run")) >= 4, 120)
    jobs[asked].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    said = ended(jobs, 143, limit=40)
    assert time.monotonic() - sent < 30
    assert "; continue with the same command with --resume --out " in said[0], said


def killed(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def environment_of(pid: int) -> list[str]:
    with suppress(OSError):  # it is no more
        return Path(f"/proc/{pid}/environ").read_text().split("\0")
    return []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])  # of one each, torchrun counts the restart on machine 1 alone
def test_a_killed_worker_and_a_machine_that_was_away_change_no_bit(two, tmp_path, processes):
    how = {"N": str(processes), "TMPDIR": str(tmp_path)}
    launch(two, *run_of(tmp_path / "whole", 90), **how)
    again, last = run_of(tmp_path / "run", 90), f"RANK={2 * processes - 1}"
    jobs = [start(machine, rank, two[0], *again, **how) for rank, machine in enumerate(two)]
    until(lambda: len(metrics(tmp_path / "run")) >= 10, 120)

    def last_worker() -> list[int]:
        return [pid for pid in two[1].processes() if last in environment_of(pid)]

    before = last_worker()
    killed(before)
    until(lambda: set(last_worker()) - set(before), 120)
    until(lambda: len(metrics(tmp_path / "run")) >= 40, 120)
    killed(two[1].processes())  # as when it loses its power
    jobs[1].communicate()
    jobs[1] = start(two[1], 1, two[0], *again, "--resume", **how)
    ended(jobs, 0)
    whole, run = (tmp_path / name / "model/model.safetensors" for name in ("whole", "run"))
    assert run.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_machine_that_does_not_come_back_is_said(two, tmp_path):
    again = run_of(tmp_path / "run", 500)
    jobs = [start(machine, rank, two[0], *again, TMPDIR=str(tmp_path)) for rank, machine in enumerate(two)]
    until(lambda: len(metrics(tmp_path / "run")) >= 4, 120)
    killed(two[0].processes())  # machine 0, where all meet: at once; another one would be waited for
    jobs[0].communicate()
    (said,) = ended(jobs[1:], 1, limit=40)
    assert "lost machine 0, where all meet" in said and "continue with --resume" in said.rstrip().splitlines()[-1]


SRUN = """#!/usr/bin/env python3
# srun, as its manual has it: one task on each machine, the variables of a step, each signal to it passed on to the tasks,
# and the highest of their exit codes its own.
import json, os, signal, subprocess, sys
words, options = sys.argv[1:], {}
while words[0].startswith("--"):
    name, _, value = words.pop(0).partition("=")
    options[name] = value
assert options["--nodes"] == options["--ntasks"] == os.environ["SLURM_NNODES"] and options["--ntasks-per-node"] == "1"
step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"], "SLURM_LOCALID": "0"}
step |= {"SLURM_STEP_NUM_NODES": options["--nodes"], "SLURM_STEP_NUM_TASKS": options["--ntasks"]}
tasks = []
for number, enter in enumerate(json.loads(os.environ["FAKE_MACHINES"])):
    own = {"SLURM_NODEID": str(number), "SLURM_PROCID": str(number)}
    enter += ["env", "-C", os.getcwd()]
    tasks.append(subprocess.Popen(enter + words, env=os.environ | step | own, start_new_session=True))
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max(code if code >= 0 else 128 - code for code in [task.wait() for task in tasks]))
"""
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames $SLURM_JOB_NODELIST" ] && printf '%s\\n' $FAKE_NAMES
"""


def sbatch(found: list[Machine], folder: Path, *words, submitted_in: Path = ROOT) -> subprocess.Popen:
    """What Slurm makes of `sbatch --nodes=K --ntasks-per-node=1 launch.sh WORDS`: a copy of the script runs on machine 0."""
    programs = folder / "slurm"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    copy = shutil.copy(DOOR, programs / "slurm_script")
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": f"node-[1-{len(found)}]" if len(found) > 1 else "node-1",
        "SLURM_NNODES": str(len(found)),
        "SLURM_JOB_NUM_NODES": str(len(found)),
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_SUBMIT_DIR": str(submitted_in),
        "FAKE_MACHINES": json.dumps([machine.words() for machine in found]),
        "FAKE_NAMES": " ".join(machine.name for machine in found),
        "PATH": f"{programs}:{HERE['PATH']}",
    }
    return found[0].start(copy, *words, env=HERE | job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_sbatch_on_two_machines(two, tmp_path):
    (said,) = ended([sbatch(two, tmp_path, *run_of(tmp_path / "run"))], 0)
    assert json.loads((tmp_path / "run/run.json").read_text())["processes"] == 4, said
    assert [line["step"] for line in metrics(tmp_path / "run") if line["split"] == "train"] == list(range(1, 7))


@pytest.mark.slow
def test_sbatch_on_one_machine(tmp_path):
    with machines(1) as found:
        (said,) = ended([sbatch(found, tmp_path, "check")], 0)
    assert "process 1 of 2 on node-1" in said and "ok       2 processes" in said


@pytest.mark.slow
def test_slurms_sigterm_before_the_time_limit_stops_both_machines(two, tmp_path):
    # sbatch --signal=B:TERM@120: to the batch script's process, and to no other
    job = sbatch(two, tmp_path, *run_of(tmp_path / "run", 500))
    until(lambda: len(metrics(tmp_path / "run")) >= 4, 120)
    job.send_signal(signal.SIGTERM)
    (said,) = ended([job], 143, limit=40)
    assert "; continue with the same command with --resume --out " in said, said


def test_sbatch_from_another_folder_is_one_line(tmp_path):
    with machines(1) as found:
        (said,) = ended([sbatch(found, tmp_path, "check", submitted_in=tmp_path)], 2)
    assert said.count("\n") == 1 and "call sbatch in the folder where launch.sh is" in said
