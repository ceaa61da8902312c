"""Real kills, real signals, damaged files and full disks, many times over: does the project keep what it promises?

    ./launch.sh torture                             all of it, about 40 minutes on 2 cores
    ./launch.sh torture --parts "kills; faults"     some of it

A toy model trains in runs that are killed, stopped, starved of disk, cut from their network or moved to other numbers of
processes. Each must end, after nothing but the same command with --resume, bit by bit as the run that nothing disturbed. Each
part stands in a file of its own beside this one. Quick forms of all of them are tests/test_torture.py.
"""

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt.command import UserError, check_range, flag, run
from gpt.files import whole
from tests.bench.record import KEEP, Parts, as_called, keep, made_part, where
from tests.torture.faults import faults
from tests.torture.ground import Ground
from tests.torture.kills import every_operation, kills
from tests.torture.network import network
from tests.torture.outcome import Outcome, Row, rows, table
from tests.torture.restarts import restarts
from tests.torture.stops import stops
from tests.torture.trajectories import changes, same_bits_after_kills, trajectories
from tests.torture.two_machines import two_machines


@dataclass(frozen=True)
class Flags:
    """Kill, stop, starve and damage toy runs in every way that is promised to do no harm, and print one table."""

    parts: str = flag("", "which, with ; between; empty: all")
    kills: int = flag(60, "runs killed in one process, half of them during a save; a tenth as many again in two")
    operations: int = flag(200, "runs killed before another operation on a file each; there are about 70")
    restarts: int = flag(20, "runs whose workers are killed twice")
    stops: int = flag(20, "runs stopped by a signal in one process; a fifth as many again in two")
    cuts: int = flag(4, "runs on two machines whose network is cut")
    places: int = flag(5, "truncations and flipped bits of each file of a checkpoint, and full disks")
    seed: int = flag(0, "of the moments, places and ranks")
    at_once: int = flag(2, "runs of one process at once")
    out: str = flag("torture.json", "where the figures go")
    record: bool = flag(False, KEEP)


PARTS: dict[str, Callable[[Ground, Flags], Iterator[Outcome]]] = {
    "kills": lambda ground, flags: kills(ground, flags.kills, -(-flags.kills // 10)),
    "operations": lambda ground, flags: every_operation(ground, flags.operations),
    "restarts": lambda ground, flags: restarts(ground, flags.restarts),
    "trajectories": lambda ground, flags: trajectories(ground),
    "changes": lambda ground, flags: changes(ground),
    "bits": lambda ground, flags: same_bits_after_kills(ground),
    "network": lambda ground, flags: network(ground),
    "machines": lambda ground, flags: two_machines(ground, flags.cuts),
    "faults": lambda ground, flags: faults(ground, flags.places),
    "stops": lambda ground, flags: stops(ground, flags.stops, -(-flags.stops // 5)),
}


def main(flags: Flags) -> int:
    check_range(flags, ("kills", "operations", "restarts", "stops", "cuts", "places", "at_once"), 1)
    check_range(flags, ("seed",), 0)
    parts = [part.strip() for part in flags.parts.split(";")] if flags.parts else list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"--parts: there is no {unknown[0]!r}; there are {', '.join(PARTS)}")
    folder, began = Path(tempfile.mkdtemp(prefix="torture-")), time.monotonic()
    found, minutes = [], 0.0
    ground = Ground(folder, flags.seed, flags.at_once)
    for part in parts:
        for one in PARTS[part](ground, flags):
            found.append(one)
            print(f"{'held' if one.held else 'FAILED':7}{one.seconds:6.1f} s  {one.what}", file=sys.stderr, flush=True)
            if not one.held:
                print(f"       {one.said}", file=sys.stderr, flush=True)
            minutes = (time.monotonic() - began) / 60
            with whole(flags.out) as file:  # each time: what was found is there also where this is broken off
                json.dump(report(flags, found, minutes), file, indent=2)
    lines = table(rows(found))
    if flags.record:
        keep("torture", as_called("./launch.sh torture"), report(flags, found, minutes))
    failed = sum(not one.held for one in found)
    print("\n".join(["", *lines, "", f"{len(found)} tries in {minutes:.0f} minutes, {failed} failed; see {flags.out}"]))
    return 1 if failed else 0


def report(flags: Flags, found: list[Outcome], minutes: float) -> dict:
    """What goes into torture.json."""
    machine = {"system": platform.platform(), "python": platform.python_version(), "torch": version("torch")}
    failures = [{"what": one.what, "said": one.said} for one in found if not one.held]
    kept = [row._asdict() for row in rows(found)]
    return {"settings": asdict(flags), "machine": machine, "minutes": minutes, "rows": kept, "failures": failures}


def parts(made: dict) -> Parts:
    """The table, and how long it took."""
    found = [Row(**row) for row in made["figures"]["rows"]]
    tries, held = sum(row.tries for row in found), sum(row.held for row in found)
    about = f"{tries} tries, {held} held, in {made['figures']['minutes']:.0f} minutes; {where(made)}"
    return {"torture": made_part([about], table(found))}


if __name__ == "__main__":
    run(main, Flags)
