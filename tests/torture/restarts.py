"""A worker of torchrun that is killed twice: torchrun starts all of them again, and they go on from the checkpoint."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.torture.ground import DROPOUT, EVAL_EVERY, LONG, PLAIN, Ground, Kind, Way, last_line, metrics, same_bits
from tests.torture.jobs import Job, need, until, workers
from tests.torture.outcome import Found, Outcome, Try, outcomes

# What is waited for before a worker is killed, of the run's folder and the step that must have been reached
MOMENTS: dict[str, Callable[[Path, int], bool]] = {
    "at a start": lambda out, step: True,
    "in the reference pass": lambda out, step: True,
    "in a step": lambda out, step: logged(out, step, lambda line: True),
    "in an evaluation": lambda out, step: logged(out, step, lambda line: line["step"] % EVAL_EVERY == 0),
    "in a save": lambda out, step: any(
        int(part.stem.removeprefix("step-")) >= step for part in (out / "checkpoints").glob("step-*.part")
    ),
}


def logged(out: Path, step: int, such: Callable[[dict], bool]) -> bool:
    """Whether the last line of metrics.jsonl is of a train step that has come so far, and such a one."""
    lines = metrics(out)[-1:]
    return any(line["split"] == "train" and line["step"] >= step and such(line) for line in lines)


def restarts(ground: Ground, count: int, door: bool = True) -> Iterator[Outcome]:
    """So many runs of two processes, a worker killed twice in each; every second one started by launch.sh."""
    tries = []
    for number in range(count):
        way = Way(door=door and number % 2 == 1, restarts=3)
        what = f"a worker killed twice under {'launch.sh' if way.door else 'torchrun'}, restarted"
        given = (ground, (PLAIN, DROPOUT)[number // 2 % 2].of(2), way, ground.random("restarts", number))
        tries.append(Try(what, killed_twice, given))
    yield from outcomes(tries, ground.folder / "restarts")


def killed_twice(folder: Path, ground: Ground, kind: Kind, way: Way, random: Random) -> Found:
    """The moments and ranks of both kills are chosen at random. Nobody passes --resume."""
    whole, out, found, gone = ground.undisturbed(kind), folder / "run", Counter(), set()
    with ground.started(kind, out, way=way) as job:
        for turn in range(2):
            when, rank = random.choice(list(MOMENTS)), random.randrange(kind.processes)
            alive = new_workers(job, kind, gone)
            step = 8 * turn + random.randint(1, 6)
            wait_for(when, job, out, step, random)
            need(job.poll() is None, f"it ended before a worker was killed {when}: {last_line(job.said())}")
            os.kill(alive[rank], signal.SIGKILL)
            gone |= set(alive.values())
            found.update({"kills": 1, f"of rank {rank}": 1, when: 1})
        code = job.wait(LONG)
        need(code == 0, f"it ended with {code}: {last_line(job.said())}")
    same_bits(out, whole)
    return dict(found)


def new_workers(job: Job, kind: Kind, gone: set[int]) -> dict[int, int]:
    """The workers that torchrun has started since those that are `gone`, once all are there."""
    found: dict[int, int] = {}

    def all_new() -> bool:
        found.clear()
        found.update({rank: pid for rank, pid in workers(job.pid).items() if pid not in gone})
        return job.poll() is not None or len(found) == kind.processes

    until(all_new, LONG, "no new workers", every=0.01)
    need(job.poll() is None, f"it ended in place of a restart: {last_line(job.said())}")
    return found


def wait_for(when: str, job: Job, out: Path, step: int, random: Random) -> None:
    """Until that moment of the attempt whose workers have just been started, or the end of the job."""
    before = job.said().count("\nout ")  # printed as the reference pass begins

    def begun() -> bool:
        return job.poll() is not None or job.said().count("\nout ") > before

    if when == "at a start":
        time.sleep(random.uniform(0, 3))
        return
    until(begun, LONG, "the reference pass was not reached", every=0.005)
    until(lambda: job.poll() is not None or MOMENTS[when](out, step), LONG, f"step {step} was not reached {when}")
    time.sleep(random.uniform(0, 0.01))
