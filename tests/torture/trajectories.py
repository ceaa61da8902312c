"""One trajectory, whatever computes it: 1 to 4 processes, DDP or FSDP2, micro-batches of any size, changed on the way.

    loss      the largest |a - b| / max(|b|, 0.01) over the losses of all steps and evaluations
    weights   the largest ||a - b|| / ||b|| over the final model's matrices and vectors

Compared with a run of one process. And with dropout, where each number of processes has a trajectory of its own: the same bits
after a kill and a resumption, across the end of an epoch.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.torture.ground import DROPOUT, LONG, Ground, Kind, last_line, last_step, metrics, same_bits
from tests.torture.jobs import kill_all, need, until
from tests.torture.outcome import Found, Outcome, Try, outcomes

FIFTY = Kind("fifty steps", ("--steps", 50))
NEAR = 1e-5  # of the loss, over 50 steps
SHARD = ("--shard",)
WAYS = [(count, shard, micro) for count in (1, 2, 3, 4) for shard in ((), SHARD) for micro in (0, 1, 3)]
CHANGES = [
    ((1, ()), (3, ())),
    ((4, ()), (2, ())),
    ((2, ()), (4, SHARD)),
    ((3, SHARD), (1, ())),
    ((2, SHARD), (3, SHARD)),
    ((2, ("--micro", 3)), (2, ("--micro", 1))),
]


def trajectories(ground: Ground, ways: list = WAYS) -> Iterator[Outcome]:
    """A whole run in each way."""
    tries = []
    for count, shard, micro in ways:
        kind = FIFTY.of(count, *shard, *(["--micro", micro] if micro else []))
        tries.append(Try(f"{'FSDP2' if shard else 'DDP'} beside one process", same_course, (ground, kind)))
    yield from outcomes(tries, ground.folder / "trajectories")


def changes(ground: Ground, which: list = CHANGES) -> Iterator[Outcome]:
    """Begun in so many processes with such flags, stopped by a signal, and finished with others."""
    tries = []
    for before, after in which:
        kinds = [FIFTY.of(count, *flags) for count, flags in (before, after)]
        tries.append(Try("processes, --shard or --micro changed on the way", changed, (ground, *kinds)))
    yield from outcomes(tries, ground.folder / "changes")


def same_bits_after_kills(ground: Ground, ways: list = WAYS) -> Iterator[Outcome]:
    """With dropout, once for each number of processes and wrapper."""
    tries = []
    for count, shard in dict.fromkeys((count, shard) for count, shard, _ in ways):
        what = f"dropout, {'FSDP2' if shard else 'DDP'}: the same bits after a kill"
        tries.append(Try(what, cut, (ground, DROPOUT.of(count, *shard))))
    yield from outcomes(tries, ground.folder / "bits")


def same_course(folder: Path, ground: Ground, kind: Kind) -> Found:
    with ground.started(kind, folder / "run") as job:
        code = job.wait(LONG)
        need(code == 0, f"{kind.name} ended with {code}: {last_line(job.said())}")
    return apart(folder / "run", ground.undisturbed(FIFTY), kind)


def changed(folder: Path, ground: Ground, before: Kind, after: Kind) -> Found:
    out = folder / "run"
    with ground.started(before, out) as job:
        until(lambda: job.poll() is not None or last_step(out) >= 5, LONG, f"{before.name}: step 5 was not reached")
        job.signal(signal.SIGTERM)
        job.wait(30)
    step = last_step(out)
    need(5 <= step < 50, f"{before.name}: step {step} was the last: {last_line(job.said())}")
    ground.finish(after, out)
    return apart(out, ground.undisturbed(FIFTY), after)


def cut(folder: Path, ground: Ground, kind: Kind) -> Found:
    """Killed in the first epoch, resumed and killed in the second, resumed to the end of the fourth."""
    whole, out = ground.undisturbed(kind), folder / "run"
    for step in (3, 8):
        with ground.started(kind, out, *["--resume"] * out.exists()) as job:
            until(lambda: job.poll() is not None or last_step(out) >= step, LONG, f"step {step} was not reached")  # noqa: B023
            need(job.poll() is None, f"{kind.name}: it ended before it was killed: {last_line(job.said())}")
            kill_all(job)
    ground.finish(kind, out)
    same_bits(out, whole)
    return {"kills": 2}


def apart(run: Path, other: Path, kind: Kind) -> Found:
    """How far two runs are from each other. Raises Failed where that is further than rounding takes them."""
    ours, theirs = metrics(run), metrics(other)
    places = [[(line["step"], line["split"]) for line in lines] for lines in (ours, theirs)]
    need(places[0] == places[1], f"{kind.name}: other steps and evaluations than in one process")
    loss = max(abs(a["loss"] - b["loss"]) / max(abs(b["loss"]), 0.01) for a, b in zip(ours, theirs))
    a, b = (load_file(folder / "model/model.safetensors") for folder in (run, other))
    weights = max(float(np.linalg.norm(a[name] - b[name]) / np.linalg.norm(b[name])) for name in b)
    need(loss <= NEAR, f"{kind.name}: a loss is {loss:.1e} from that of one process, weights {weights:.1e}")
    return {"loss": loss, "weights": weights}
