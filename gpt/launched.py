"""What torchrun tells a process, through the environment, before it has met the others."""

import os
from collections.abc import Callable
from pathlib import Path


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


def restarts() -> int:
    """How often torchrun has started the processes again, after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def is_restarted() -> bool:
    """Whether torchrun has started this process again, for whatever reason: a change of machines it does not count."""
    if restarts() or not (folder := attempt_folder()):
        return restarts() > 0
    mark, own = folder.parent / f"begun-{os.environ['LOCAL_RANK']}", str(os.getpid())
    if not mark.exists():
        mark.write_text(own)
    return mark.read_text() != own


def attempt_folder() -> Path | None:
    """torchrun's folder of this attempt, on this machine: new after each restart, in that of the launch, which stays."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(file).parents[1] if file else None


def kept_over_restarts(name: str, make: Callable[[], str]) -> str:
    """What `make` returned when torchrun first started this process; without torchrun, what it returns now."""
    if not (folder := attempt_folder()):
        return make()
    path = folder.parent / name
    if not path.exists():
        path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8")
