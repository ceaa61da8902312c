"""Two machines of two processes each, as two network namespaces: the trajectory of one process, also after the cable is cut.

Each machine has a run folder of its own; only the first one's is written. What must happen when the other machine is gone:
both end within --timeout and some seconds, the last line says that the other was lost, and when the network is mended the
same commands with --resume finish the run.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.torture.ground import LONG, ROOT, Ground, last_line, last_step
from tests.torture.jobs import Job, kill_all, need, until
from tests.torture.outcome import Found, Outcome, Try, outcomes
from tests.torture.trajectories import FIFTY, apart

TIMEOUT, MORE = 10, 25  # seconds: of --timeout, and what the end may take longer: last words 3, the agent 10
MEANS = {"silent": ("cut", "mend"), "unplugged": ("unplug", "plug")}
KIND = FIFTY.of(4, "--timeout", TIMEOUT)


def two_machines(ground: Ground, cuts: int) -> Iterator[Outcome]:
    """One whole run, then so many that lose the network on their way, by turns silently and with the links down."""
    if os.geteuid():
        print("left out, since only root can make network namespaces: two machines")
        return
    yield from outcomes(
        [Try("two machines of two processes beside one", whole_run, (ground,))], ground.folder / "machines"
    )
    tries = []
    for number in range(cuts):
        means = list(MEANS)[number % len(MEANS)]
        tries.append(
            Try(f"two machines, the network {means} on the way, resumed", cut_off, (ground, means, 3 + 5 * number))
        )
    yield from outcomes(tries, ground.folder / "cuts")


def whole_run(folder: Path, ground: Ground) -> Found:
    from tests.namespaces import machines

    with machines(2) as both, started(ground, folder, both) as jobs:
        finished(jobs)
    return apart(folder / "node-1/run", ground.undisturbed(FIFTY), KIND)


def cut_off(folder: Path, ground: Ground, means: str, step: int) -> Found:
    """The second machine loses its network after some steps."""
    from tests.namespaces import machines

    out, (cut, mend) = folder / "node-1/run", MEANS[means]
    with machines(2) as both:
        with started(ground, folder, both) as jobs:
            until(lambda: any(job.poll() is not None for job in jobs) or last_step(out) >= step, LONG, "no steps")
            getattr(both[1], cut)()
            took = until(lambda: all(job.poll() is not None for job in jobs), TIMEOUT + MORE, "it does not end")
            need(last_step(out) < 50, "it was over before the network was")
            for number, job in enumerate(jobs):
                need(job.poll() not in (0, None), f"machine {number} ended with {job.poll()}")
                need("error: " in last_line(job.said()), f"machine {number} names no cause: {last_line(job.said())}")
        getattr(both[1], mend)()
        with started(ground, folder, both, "--resume") as jobs:
            finished(jobs)
    return apart(out, ground.undisturbed(FIFTY), KIND) | {"seconds to the end of both": took}


@contextmanager
def started(ground: Ground, folder: Path, both: list, *more) -> Iterator[list[Job]]:
    """launch.sh on both machines with the same words, in a folder of each."""
    with ExitStack() as stack:
        jobs = []
        for number, machine in enumerate(both):
            here = folder / machine.name
            here.mkdir(exist_ok=True)
            where = {"NNODES": "2", "NODE_RANK": str(number), "MASTER_ADDR": both[0].address, "MASTER_PORT": "29500"}
            own = {"N": "2", "RESTARTS": "0", "GPT_DPO_CACHE": str(here / "cache")}
            words = ["env", "-C", here, ROOT / "launch.sh", "train", *ground.flags(KIND, Path("run")), *more]
            jobs.append(
                Job(machine.words(*words), here / f"launch{''.join(more)}.log", ground.environment | where | own)
            )
            stack.callback(kill_all, jobs[-1])
        yield jobs


def finished(jobs: list[Job]) -> None:
    for number, job in enumerate(jobs):
        code = job.wait(LONG)
        need(code == 0, f"machine {number} ended with {code}: {last_line(job.said())}")
