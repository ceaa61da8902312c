"""Signals at random moments: the last finished step is saved, all processes leave within seconds with a known code."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.torture.ground import ENDLESS, MOVING, PLAIN, Ground, Kind, Way, last_line, last_step, same_bits
from tests.torture.jobs import Failed, alive, family, need, until, workers
from tests.torture.kills import ALONE, moment_comes
from tests.torture.outcome import Found, Outcome, Try, outcomes

CODES = {signal.SIGTERM: {143}, signal.SIGINT: {143, 130}}  # 130: before there was a run to stop
GONE = 30.0  # seconds, what torchrun grants its workers
ORPHANED = 2.0  # seconds, after which workers without a launcher are gone


def stops(ground: Ground, alone: int, together: int) -> Iterator[Outcome]:
    """So many runs stopped, in one process, and in two by launch.sh; then launchers killed over their workers."""
    tries = []
    for number in range(alone + together):
        number_of_signal = (signal.SIGTERM, signal.SIGINT)[number % 2]
        what, kind, way = "one process", ALONE[number // 2 % len(ALONE)], Way(cold=number % 5 == 4)
        if number >= alone:
            what, kind, way = "two processes of launch.sh", (PLAIN, MOVING)[number // 2 % 2].of(2), Way(door=True)
        given = (ground, kind, way, number_of_signal, ground.random("stops", number))
        tries.append(Try(f"{number_of_signal.name} to {what} at a random moment, resumed", stopped, given))
    yield from outcomes(tries[:alone], ground.folder / "stops of one", ground.at_once)
    yield from outcomes(tries[alone:], ground.folder / "stops of two")
    orphans = [Try("workers after a SIGKILL to torchrun", orphaned, (ground, n)) for n in range(together)]
    yield from outcomes(orphans, ground.folder / "orphans")


def stopped(folder: Path, ground: Ground, kind: Kind, way: Way, number: signal.Signals, random: Random) -> Found:
    """Stopped once; to a launcher the signal comes alone, as from a scheduler, or with its group, as Ctrl+C does."""
    whole, out = ground.undisturbed(kind), folder / "run"
    for _ in range(10):
        shutil.rmtree(out, ignore_errors=True)
        with ground.started(kind, out, way=way) as job:
            seconds = ground.seconds(kind) + 3 * (way.cold or way.door)  # to import torch
            if not moment_comes(job, seconds, random):
                continue
            everyone, began = family(job.pid), time.monotonic()
            send = random.choice([os.kill, os.killpg])
            send(job.pid, number)
            code = job.wait(GONE)
            code = 128 - code if code < 0 else code  # as a shell sees it
            need(code in CODES[number] or code == 0, f"{number.name} ended it with {code}: {last_line(job.said())}")
            traced = "Traceback" in job.said()  # torchrun has one for a signal, and Python for one in an import
            need(way != Way() or not traced, f"{number.name} ended it with a traceback: {last_line(job.said())}")
            until(lambda: not any(map(alive, everyone)), GONE, f"processes left after {GONE:g} s")  # noqa: B023
            took = time.monotonic() - began
        break
    else:
        raise Failed(f"{kind.name}: it was over before it could be stopped, ten times")
    ground.finish(kind, out)
    same_bits(out, whole)
    found = {"stopped": int(code != 0), f"left with {code}": 1, "with a traceback": int(traced)}
    return found | {"seconds to the end of all": took}


def orphaned(folder: Path, ground: Ground, number: int) -> Found:
    """The launcher is killed over workers that have much to do."""
    kind, out = ENDLESS.of(2), folder / "run"
    with ground.started(kind, out) as job:
        until(lambda: job.poll() is not None or last_step(out) >= 1 + number, 60, "no step was made")
        left = list(workers(job.pid).values())
        need(len(left) == 2, f"there are {len(left)} workers: {last_line(job.said())}")
        os.kill(job.pid, signal.SIGKILL)
        try:
            took = until(lambda: not any(map(alive, left)), ORPHANED, f"workers are alive after {ORPHANED:g} s")
        finally:
            for pid in filter(alive, left):
                os.kill(pid, signal.SIGKILL)
    return {"workers": 2, "seconds to their end": took}
