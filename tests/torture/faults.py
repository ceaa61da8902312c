"""What disks and people do to a run's folder: the checkpoint before is used, or one line says what is wrong, with code 2."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

from tests.torture.ground import ENDLESS, LONG, PLAIN, Ground, Kind, Way, checkpoints, last_line, last_step, same_bits
from tests.torture.jobs import need, until
from tests.torture.outcome import Found, Outcome, Try, outcomes

SAVE_AT_END = PLAIN._replace(name="saved at the end", flags=("--save-every", 0))


def faults(ground: Ground, places: int) -> Iterator[Outcome]:
    """Each file of a checkpoint damaged, with `places` truncations and flipped bits of each; then folders and disks."""
    halted = halfway(ground, ground.folder / "halfway")
    tries = []
    for file in sorted(path.name for path in checkpoints(halted)[-1].iterdir()):
        for number in range(places):
            random = ground.random("damage", file, number)
            for what, damage in (("truncated", truncate), ("flipped bit", flip)):
                how = partial(damage, file=file, random=random)
                tries.append(Try(f"newest checkpoint: {what}, resumed", damaged, (ground, halted, how)))
        how = partial(remove, file=file)
        tries.append(Try("newest checkpoint: a file missing, resumed", damaged, (ground, halted, how)))
    random = ground.random("all damaged")
    tries.append(Try("every checkpoint damaged: one line", all_damaged, (ground, halted, random)))
    yield from outcomes(tries, ground.folder / "damages", ground.at_once)
    yield from outcomes([Try("folder held by a living run: one line", held, (ground,))], ground.folder / "locks")
    if os.geteuid():
        print("left out, since only root can mount: a disk that fills up, and a disk that cannot be written")
        return
    disks = []
    for number in range(places):
        random = ground.random("disk", number)
        room = random.randrange(500_000)
        given = (ground, PLAIN, room, "checkpoints", random)
        disks.append(Try("disk full in a save: one line, then resumed", full_disk, given))
    for where, room, named in (("at a line of metrics", 0, "metrics.jsonl"), ("in the export", 680_000, "model")):
        given = (ground, SAVE_AT_END, room, named, ground.random("disk", named))
        disks.append(Try(f"disk full {where}: one line, then resumed", full_disk, given))
    disks.append(Try("disk read-only at the start: one line", read_only, (ground,)))
    yield from outcomes(disks, ground.folder / "disks")


# damage


def halfway(ground: Ground, out: Path) -> Path:
    """A run that a signal stopped about half way, with some checkpoints."""
    with ground.started(PLAIN, out) as job:
        until(lambda: job.poll() is not None or last_step(out) >= 9, LONG, "step 9 was not reached")
        job.signal(signal.SIGTERM)
        need(job.wait(30) == 143, f"the run to be damaged: {last_line(job.said())}")
    return out


def truncate(checkpoint: Path, file: str, random: Random) -> None:
    os.truncate(checkpoint / file, random.randrange((checkpoint / file).stat().st_size))


def flip(checkpoint: Path, file: str, random: Random) -> None:
    content = bytearray((checkpoint / file).read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    (checkpoint / file).write_bytes(content)


def remove(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()


def damaged(folder: Path, ground: Ground, halted: Path, damage: Callable[[Path], None]) -> Found:
    """The checkpoint before is used, and a line says so."""
    out = copy(halted, folder)
    newest = checkpoints(out)[-1]
    damage(newest)
    said = ground.finish(PLAIN, out)
    need(any(newest.name in line and "damaged" in line for line in said.splitlines()), "no line names what is damaged")
    same_bits(out, ground.undisturbed(PLAIN))
    return {}


def all_damaged(folder: Path, ground: Ground, halted: Path, random: Random) -> Found:
    """Not begun anew over what is left: a person decides."""
    out = copy(halted, folder)
    for checkpoint in checkpoints(out):
        flip(checkpoint, "model.safetensors", random)
    before = contents(out)
    with ground.started(PLAIN, out, "--resume") as job:
        job.refused(str(out))
    need(contents(out) == before, "the refused run changed the folder")
    return {}


def copy(halted: Path, folder: Path) -> Path:
    shutil.copytree(halted, folder / "run")
    return folder / "run"


def contents(out: Path) -> dict[str, bytes]:
    """All files but the lock, which says who had it last."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


# folders and disks


def held(folder: Path, ground: Ground) -> Found:
    """A second run in the folder is refused while the first lives, disturbs nothing, and may go on when it is dead."""
    out = folder / "run"
    with ground.started(ENDLESS, out) as first:
        until(lambda: first.poll() is not None or last_step(out) >= 2, LONG, "step 2 was not reached")
        with ground.started(ENDLESS, out, "--resume", way=Way(cold=True)) as second:
            second.refused(str(out))
        step = last_step(out)
        until(lambda: first.poll() is not None or last_step(out) > step, LONG, "the first run makes no more steps")
        need(first.poll() is None, f"the first run ended: {last_line(first.said())}")
    with ground.started(ENDLESS, out, "--resume") as third:
        until(lambda: third.poll() is not None or last_step(out) > step, LONG, "the run after it makes no steps")
        need(third.poll() is None, f"after the first was killed: {last_line(third.said())}")
    return {}


@contextmanager
def disk(at: Path, size: str, *options: str) -> Iterator[None]:
    """A small disk in memory, mounted as the folder `at`."""
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "torture", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


def full_disk(folder: Path, ground: Ground, kind: Kind, room: int, named: str, random: Random) -> Found:
    """Other files take all but `room` bytes of the disk after some steps; when they are gone, the run goes on."""
    whole, out, step = ground.undisturbed(kind), folder / "run", random.randint(2, 12)
    with disk(out, "4m"):  # six checkpoints
        with ground.started(kind, out) as job:
            until(lambda: job.poll() is not None or last_step(out) >= step, LONG, f"step {step} was not reached")
            need(job.poll() is None, f"it ended before the disk was full: {last_line(job.said())}")
            fill(out / "filler", room)
            job.refused(str(out / named))
        last = checkpoints(out)[-1] if checkpoints(out) else None
        (out / "filler").unlink()
        said = ground.finish(kind, out)
        need(not last or "damaged" not in said, "the checkpoint before the disk was full is damaged")
        same_bits(out, whole)
    return {}


def fill(file: Path, room: int) -> None:
    """Let the file take all of its disk but `room` bytes."""
    with open(file, "wb", buffering=0) as filler:
        while (free := os.statvfs(file).f_bavail * 4096) > room:
            try:
                filler.write(bytes(min(free - room, 65536)))
            except OSError:
                break


def read_only(folder: Path, ground: Ground) -> Found:
    with disk(folder / "run", "4m", "ro"), ground.started(PLAIN, folder / "run") as job:
        job.refused(str(folder / "run"))
    return {}
