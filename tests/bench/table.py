"""Ours beside the seed's loop and TRL: speed, memory, and the proof that the work was the same. `./launch.sh bench`.

    python tests/bench/table.py --pairs FILE

Each run is a process of its own, and ours runs before and after each of the others, so that a machine which grows slower
or faster with time does so for both; the rate of matrix products is measured before and after each process.

    pairs/s         pairs over the seconds of the reference pass and all steps, from nothing kept: one pass. Median of runs
    ours is         the mean of the runs of ours before and after, over the run itself. Median of runs
    peak            the most that the process held, its libraries included; the most of all runs
    of matmul rate  what the pairs need (tests/bench/needed.py) a second, over the best rate that F.linear reached before
                    or after that very process. Median of runs. The best, so that a busy moment flatters nobody
    held-out loss   of the start and of what the first run trained, by one judge for all (tests/bench/judge.py)

What is the same for all, and what differs, stands in tests/bench/systems.py and tests/bench/peer.py.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from statistics import fmean, median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt.command import UserError, check_range, flag, run
from tests.bench.calls import Failed, call, measured, pairs_of, read
from tests.bench.record import KEEP, Parts, as_called, keep, made_part

SYSTEMS = ("ours", "seed fp32", "seed bf16", "trl bf16", "trl bf16 precomputed")
INSTALL = "trl is not installed; pip install -c constraints.txt -e '.[peers]'"


class Run(NamedTuple):
    """One process, measured."""

    system: str
    speed: float  # pairs a second
    peak: int  # bytes
    fraction: float  # of the matmul rate around it


@dataclass(frozen=True)
class Flags:
    """Measure ours, the seed's loop and TRL in one run, from the same weights on the same pairs."""

    size: str = flag("gpt2", "of the model, with random weights: tiny, gpt2, gpt2-medium ...")
    pairs: str = flag("", "file of pairs; empty: the real rows where ../shared has them, else the embedded set")
    systems: str = flag(",".join(SYSTEMS), "which, with commas between")
    batch: int = flag(8, "pairs a step")
    steps: int = flag(0, "steps of a run; 0: 20, on CUDA 100")
    turns: int = flag(1, "how often each of the others runs, between two runs of ours")
    lr: float = flag(1e-5, "rate at the start; half a cosine down to 0")
    held_out: int = flag(32, "pairs for the held-out loss; 0: none")
    device: str = flag("auto", "auto is cuda where there is one, else cpu", choices=("auto", "cpu", "cuda"))
    out: str = flag("bench.json", "where the figures go, as a list of objects")
    record: bool = flag(False, KEEP)


def main(flags: Flags) -> int:
    check_range(flags, ("batch", "turns"), 1)
    check_range(flags, ("steps", "held_out", "lr"), 0)
    names = [name.strip() for name in flags.systems.split(",")]
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise UserError(f"--systems: there is no {unknown[0]!r}; there are {', '.join(SYSTEMS)}")
    if find_spec("trl") is None and (left_out := [name for name in names if name.startswith("trl")]):
        print(f"left out: {', '.join(left_out)}; {INSTALL}", flush=True)
        names = [name for name in names if name not in left_out]
    with tempfile.TemporaryDirectory() as folder:
        return compare(flags, names, Path(folder))


def compare(flags: Flags, names: list[str], folder: Path) -> int:
    """Run everything and print it. Returns the exit code: 1 where a system failed."""
    pairs = pairs_of(flags.pairs)
    try:
        call("prepare", out=folder, size=flags.size, pairs=pairs, held_out=flags.held_out, steps=flags.steps,
             batch=flags.batch, device=flags.device)  # fmt: skip
    except Failed as why:
        if flags.device != "cuda" or "--device" not in str(why):
            raise UserError(str(why).removeprefix("error: ")) from None
        print("\n".join([str(why), *table(names, [], {}, 0)]))
        Path(flags.out).write_text("[]\n")
        return 0
    facts = read(folder / "facts.json") | {"size": flags.size, "of": Path(pairs).name or "the embedded set"}
    print(described(facts), flush=True)
    runs, trained, failed, rates = [], {}, set(), [measured_rate(folder, flags.device)]
    for number, name in enumerate(order(names, flags.turns)):
        if name in failed:
            continue
        out = folder / str(number)
        try:
            took = measured(folder, name, out, facts["steps"], flags.batch, flags.lr, flags.device)
        except Failed as why:
            print(f"{name:21}failed: {why}", flush=True)
            failed.add(name)
            continue
        rates.append(measured_rate(folder, flags.device))
        best = max(rate["flops_per_second"] for rate in rates[-2:])
        fraction = took["pairs_per_second"] * facts["flops_per_pair"] / best
        runs.append(Run(name, took["pairs_per_second"], took["peak_bytes"], fraction))
        shown = f"{took['peak_bytes'] / 2**30:.2f} GiB, {fraction:.1%}, had {took['cores']:.2f} cores"
        print(f"{name:21}{took['pairs_per_second']:8.2f} pairs/s, {shown}", flush=True)
        rmtree(out / "checkpoints" if name not in trained else out, ignore_errors=True)
        trained.setdefault(name, out)
    losses, before = {}, 0.0
    if flags.held_out and runs:
        call("judge", init=folder / "start", held_out=folder / "held-out.jsonl", models=list(trained.values()),
             out=folder / "losses.json", device=flags.device)  # fmt: skip
        before, *after = read(folder / "losses.json")
        losses = dict(zip(trained, after))
    figures = {"facts": facts, "names": names, "runs": runs, "losses": losses, "before": before, "rates": rates}
    print("\n".join(["", *table(names, runs, losses, before), "", machine(rates)]))
    write(flags.out, names, runs)
    if flags.record:
        keep("bench", as_called("./launch.sh bench"), figures)
    return 1 if failed else 0


def order(names: list[str], turns: int) -> list[str]:
    """Ours, another, ours, another, ours: in reversed order every other turn."""
    ours, others = ["ours"] * ("ours" in names), [name for name in names if name != "ours"]
    if not others:
        return ours * turns
    turned = [others[:: 1 if turn % 2 == 0 else -1] for turn in range(turns)]
    return [name for turn in turned for other in turn for name in (*ours, other)] + ours


def described(facts: dict) -> str:
    """What is about to be measured."""
    lengths = ", ".join(f"{name} {mean:.1f}" for name, mean in facts["lengths"].items())
    return (
        f"{facts['size']}, {facts['parameters']:,} parameters with random weights; {facts['of']}\n"
        f"{facts['steps']} steps of {facts['batch']} pairs, mean tokens: {lengths}; {facts['held_out']} pairs held out\n"
        f"{facts['formula']}\nhere {facts['flops_per_pair'] / 1e9:.1f} GFLOP a pair\n"
    )


def measured_rate(folder: Path, device: str) -> dict:
    """The rate of matrix products now, and the facts of the machine."""
    call("rate", init=folder / "start", out=folder / "rate.json", device=device)
    return read(folder / "rate.json")


def parts(made: dict) -> Parts:
    """The table, and what it is of."""
    found, facts = made["figures"], made["figures"]["facts"]
    runs = [Run(*run) for run in found["runs"]]
    about = [
        f"{facts['size']}, {facts['parameters']:,} parameters with random weights; {facts['of']}, {facts['steps']} steps of "
        f"{facts['batch']} pairs; {made['day']}",
        machine(found["rates"]),
    ]
    return {"bench": made_part(about, table(found["names"], runs, found["losses"], found["before"]))}


def table(names: list[str], runs: list[Run], losses: dict, before: float) -> list[str]:
    """A row for each system."""
    lines = ["| system | pairs/s | ours is | peak | of matmul rate | held-out loss |", "|---|---|---|---|---|---|"]
    for name in names:
        own = [run for run in runs if run.system == name]
        if not own:
            lines.append(f"| {name} | not measured | | | | |")
            continue
        each = [run.speed for run in own]
        spread = f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else ""
        times = f"{median(found):.2f} x" if (found := ahead(name, runs)) else ""
        loss = f"{before:.4f} to {losses[name]:.4f}" if name in losses else ""
        peak, share = max(run.peak for run in own) / 2**30, median(run.fraction for run in own)
        lines.append(f"| {name} | {median(each):.2f}{spread} | {times} | {peak:.2f} GiB | {share:.1%} | {loss} |")
    return lines


def ahead(name: str, runs: list[Run]) -> list[float]:
    """For each run of a system: how many times as fast ours was right before and after it."""
    return [
        fmean(near) / run.speed
        for i, run in enumerate(runs)
        if run.system == name != "ours"
        and (near := [other.speed for other in runs[max(i - 1, 0) : i + 2] if other.system == "ours"])
    ]


def machine(rates: list[dict]) -> str:
    """How fast the machine was, and how steady."""
    speeds, facts = [rate["flops_per_second"] / 1e9 for rate in rates], rates[0]
    return (
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}; {facts['dtype']} F.linear, GFLOP/s of "
        f"{len(speeds)} times: min {min(speeds):.0f}, median {median(speeds):.0f}, max {max(speeds):.0f}"
    )


def write(path: str, names: list[str], runs: list[Run]) -> None:
    """The figures, for other programs."""
    figures = []
    for name in names:
        if own := [run for run in runs if run.system == name]:
            figures.append(
                {
                    "system": name,
                    "pairs_per_second": median(run.speed for run in own),
                    "peak_bytes": max(run.peak for run in own),
                    "fraction_of_matmul_rate": median(run.fraction for run in own),
                }
            )
    Path(path).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run(main, Flags)
