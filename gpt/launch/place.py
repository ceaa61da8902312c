"""Which machine of how many this is: from four variables, or from Slurm.

    NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 ./launch.sh train         on the second of two machines
    sbatch --nodes=2 --ntasks-per-node=1 launch.sh train                Slurm knows them all

A job of Slurm runs its script on the first machine alone; launch.sh therefore starts itself again by srun, once on each
machine. What srun started is a step, and a step's variables say what is asked here. The variables of the job alone say
nothing about this process: a batch script, or the shell of salloc, has them too.
"""

import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from gpt.command import UserError

RESERVED_STEPS = 0xFFFFFFF0  # from here on Slurm numbers what is no step of srun: batch scripts and salloc's shells


class Place(NamedTuple):
    """Machine `rank` of `count`. They meet at machine 0: its address, and a port that is free there."""

    rank: int = 0
    count: int = 1  # type: ignore[assignment]  # hides tuple.count, which nobody asks a place for
    address: str = ""
    port: int = 0


def this_place(environment: Mapping[str, str]) -> Place:
    """What NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT say, else what Slurm says, else a machine of its own.

    Raises UserError for a variable that is missing or makes no sense.
    """
    if environment.get("NNODES"):
        return _from_variables(environment)
    if environment.get("NODE_RANK"):
        raise UserError("NODE_RANK is set, but NNODES, the number of machines, is not; set both or none")
    if 0 <= int(environment.get("SLURM_STEP_ID") or -1) < RESERVED_STEPS:
        return _from_slurm(environment)
    return Place()


def number(environment: Mapping[str, str], name: str, default: int, least: int, most: int = 10**6) -> int:
    """The whole number that the variable `name` holds. Raises UserError where it holds something else."""
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise UserError(f"{name} is {text!r}, it must be a whole number from {least} to {most}")
    return int(text)


def _from_variables(environment: Mapping[str, str]) -> Place:
    count = number(environment, "NNODES", 1, 1)
    if count == 1:
        return Place()
    if not environment.get("NODE_RANK"):
        raise UserError(f"NNODES is {count}, but NODE_RANK, this machine's number from 0 to {count - 1}, is not set")
    if not environment.get("MASTER_ADDR"):
        raise UserError(f"NNODES is {count}, but MASTER_ADDR, the address of machine 0, is not set")
    return Place(
        number(environment, "NODE_RANK", 0, 0, count - 1),
        count,
        environment["MASTER_ADDR"],
        number(environment, "MASTER_PORT", 29500, 1, 65535),
    )


def _from_slurm(environment: Mapping[str, str]) -> Place:
    count, tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
    first_here = environment.get("SLURM_LOCALID") == "0"  # alone it may be a shell, of srun --ntasks=4 --pty bash
    if tasks != count and not (count == 1 and first_here):
        raise UserError(
            f"Slurm started {tasks} tasks on {count} machines, there must be one on each (--ntasks-per-node=1): "
            "launch.sh starts the processes itself, N on each machine"
        )
    if count == 1:
        return Place()
    command = ["scontrol", "show", "hostnames", environment["SLURM_STEP_NODELIST"]]
    try:
        shown = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:  # as in a container without Slurm's own commands
        raise UserError(
            f"scontrol, which names the machines of the job, cannot be run ({error.strerror}); set NNODES, NODE_RANK and "
            "MASTER_ADDR on each of them"
        ) from None
    if not shown.stdout.split():
        raise UserError(f"scontrol does not name the machines of the job: {shown.stderr.strip()}")
    port = 10_000 + int(environment["SLURM_JOB_ID"]) % 20_000  # so that two jobs on a machine do not meet
    return Place(int(environment["SLURM_NODEID"]), count, shown.stdout.split()[0], port)
