"""What torchrun tells a process, through the environment, before it has met the others."""

import os


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def process_rank() -> int:
    """This process's number, known before it has met the others."""
    return int(os.environ["RANK"]) if under_torchrun() else 0


def process_count() -> int:
    """How many processes torchrun started, or, as launch.sh says beforehand, is about to start."""
    return int(os.environ["WORLD_SIZE"] if under_torchrun() else os.environ.get("PLANNED_PROCESSES", 1))


def processes_here() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if under_torchrun() else 1
