"""Runs that are killed with SIGKILL, launcher and workers, some several times, half of them during a save.

Each is resumed by the same command with --resume until it ends. A kill counts as one during a save where what it left
behind proves it. Which moments of a save were met is counted by what lies in checkpoints/ then:

    step-000004.part/ without manifest.json    while its files were written
    step-000004.part/ with manifest.json       before it was renamed
    step-000004.old/                           while it took the place of another
    a whole one too many, or one half removed  after the rename, before an old one was gone
"""

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.torture.ground import (
    ADAPTERS,
    DROPOUT,
    LONG,
    MOVING,
    PLAIN,
    Ground,
    Kind,
    Way,
    last_line,
    metrics,
    nothing_lost,
    same_bits,
)
from tests.torture.jobs import Job, kill_all, need
from tests.torture.outcome import Found, Outcome, Try, outcomes

ALONE = (PLAIN, DROPOUT, MOVING, ADAPTERS)
TOGETHER = (PLAIN.of(2), DROPOUT.of(2))
KEPT = 2  # checkpoints
STARTS = 30  # of one run, until a kill met what it was to meet


def kills(ground: Ground, alone: int, together: int) -> Iterator[Outcome]:
    """So many runs in one process, and in two under torchrun; every second one is killed during a save."""
    for kinds, count, where, at_once in (
        (ALONE, alone, "one process", ground.at_once),
        (TOGETHER, together, "two processes", 1),
    ):
        tries = []
        for number in range(count):
            during_save = number % 2 == 0
            what = f"{where} killed {'during a save' if during_save else 'at random moments'}, resumed"
            random = ground.random("kills", where, number)
            tries.append(Try(what, killed_run, (ground, kinds[number // 2 % len(kinds)], during_save, random)))
        yield from outcomes(tries, ground.folder / f"kills of {where}", at_once)


def killed_run(folder: Path, ground: Ground, kind: Kind, during_save: bool, random: Random) -> Found:
    """One to three kills, the first of them surely; then resumed to its end, and the bits compared."""
    whole, out = ground.undisturbed(kind), folder / "run"
    wanted, found = random.randint(1, 2 if kind.processes else 3), Counter()
    for _ in range(STARTS):  # a save, or a run, may be over before the kill arrives
        with ground.started(kind, out, *["--resume"] * bool(found["kills"])) as job:
            came = save_comes(job, out, random) if during_save else moment_comes(job, ground.seconds(kind), random)
            if came:
                kill_all(job)
        if not came:
            if found["during a save" if during_save else "kills"]:
                break
            shutil.rmtree(out)  # whatever it was killed at before: a new run
            found.clear()
            continue
        stage = stage_of_save(out)
        found.update({"kills": 1, "during a save": bool(stage), stage or "elsewhere": 1})
        nothing_lost(out)
        if found["kills"] >= wanted and (found["during a save"] or not during_save):
            break
    need(found["kills"] > 0, f"{kind.name}: it was over before it could be killed, {STARTS} times")
    need(not during_save or found["during a save"] > 0, f"{kind.name}: no kill met a save, in {STARTS} starts")
    ground.finish(kind, out)
    same_bits(out, whole)
    return {"runs": 1} | found


def moment_comes(job: Job, seconds: float, random: Random) -> bool:
    """Wait for a moment of a run that takes so long. Returns whether it still lives then."""
    time.sleep(random.uniform(0, seconds))
    return job.poll() is None


def save_comes(job: Job, out: Path, random: Random) -> bool:
    """Wait for one of the next saves, and then for a while that is at most half as long again as those before it took.

    Returns whether the run still lives then.
    """
    after, began, took = random.randrange(4), {}, [0.002]
    while job.poll() is None:
        now, parts = time.monotonic(), {path.name for path in (out / "checkpoints").glob("step-*.part")}
        for name in parts:
            began.setdefault(name, now)
        if parts and len(began) > after:
            time.sleep(random.uniform(0, 1.5 * took[-1]))
            return job.poll() is None
        if len(took) <= len(began.keys() - parts):
            took.append(now - max(began.values()))
        time.sleep(0.0003)
    return False


def stage_of_save(out: Path) -> str:
    """What a save was at when its process died, "" where none was under way."""
    folder = out / "checkpoints"
    if any(folder.glob("step-*.old")):
        return "in place of another"
    if parts := list(folder.glob("step-*.part")):
        return "before the rename" if (parts[0] / "manifest.json").exists() else "files half written"
    if surplus(out):
        return "old one not yet gone"
    return ""


def surplus(out: Path) -> list[int]:
    """The steps of checkpoints, whole or half removed, that are neither the newest KEPT nor the best on held-out pairs."""
    steps = sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*[0-9]"))
    losses = {line["step"]: line["loss"] for line in metrics(out) if line["split"] == "held-out"}
    best = min((step for step in reversed(steps) if step in losses), key=losses.get, default=None)
    return [step for step in steps[:-KEPT] if step != best]


def every_operation(ground: Ground, count: int) -> Iterator[Outcome]:
    """Runs of three saves, each killed before another one of its operations on files (tests/torture/warm.py), at `count` of
    them chosen at random, or at all."""
    short = PLAIN._replace(name="short", flags=("--steps", 6))
    with ground.started(short, ground.folder / "counted", way=Way(die_at=10**9)) as job:
        need(job.wait(LONG) == 0, f"the run whose operations were to be counted: {last_line(job.said())}")
        total = int(re.search(r"^operations on files: (\d+)", job.said(), re.M)[1])
    chosen = ground.random("operations").sample(range(1, total + 1), min(count, total))
    tries = [Try("killed before an operation on a file, resumed", killed_at, (ground, short, at)) for at in chosen]
    yield from outcomes(tries, ground.folder / "operations", ground.at_once)


def killed_at(folder: Path, ground: Ground, kind: Kind, at: int) -> Found:
    out = folder / "run"
    with ground.started(kind, out, way=Way(die_at=at)) as job:
        code = job.wait(LONG)
        need(code == -9, f"operation {at} was never reached: exit code {code}")
    stage = stage_of_save(out)
    nothing_lost(out)
    ground.finish(kind, out)
    same_bits(out, ground.undisturbed(kind))
    return {"kills": 1, "during a save": int(bool(stage)), stage or "elsewhere": 1}
