"""Ours beside the seed's loop and TRL: speed, memory, and the proof that the work was the same. `./launch.sh bench`.

    python tests/bench/table.py --pairs FILE --turns 2

Each system and turn is a process of its own. They take turns, in reversed order every other turn, so that a machine that
grows slower with time slows all alike; the rate of matrix products is measured before and after each process.

    pairs/s         pairs over the seconds of the reference pass and all steps, from nothing kept: one pass. Median of turns
    peak            the most that the process held, its libraries included; the most of all turns
    of matmul rate  what the pairs need (tests/bench/needed.py) a second, over the best rate that F.linear reached before
                    or after that very process. Median of turns. The best, so that a busy moment flatters nobody
    held-out loss   of the start and of what the first turn trained, by one judge for all (tests/bench/judge.py)

What is the same for all, and what differs, stands in tests/bench/systems.py and tests/bench/peer.py.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt.command import UserError, check_range, flag, run
from tests.bench.calls import REAL_PAIRS, Failed, call, measured, read

SYSTEMS = ("ours", "seed fp32", "seed bf16", "trl bf16", "trl bf16 precomputed")
INSTALL = "trl is not installed; pip install -c constraints.txt -e '.[peers]'"


@dataclass(frozen=True)
class Flags:
    """Measure ours, the seed's loop and TRL in one run, from the same weights on the same pairs."""

    size: str = flag("gpt2", "of the model, with random weights: tiny, gpt2, gpt2-medium ...")
    pairs: str = flag("", "file of pairs; empty: the real rows where ../shared has them, else the embedded set")
    systems: str = flag(",".join(SYSTEMS), "which, with commas between")
    batch: int = flag(8, "pairs a step")
    steps: int = flag(0, "steps of a run; 0: 10, on CUDA 100")
    turns: int = flag(2, "how often each system runs")
    lr: float = flag(1e-5, "rate at the start; half a cosine down to 0")
    held_out: int = flag(32, "pairs for the held-out loss; 0: none")
    device: str = flag("auto", "auto is cuda where there is one, else cpu", choices=("auto", "cpu", "cuda"))
    out: str = flag("bench.json", "where the figures go, as a list of objects")


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
    pairs = flags.pairs or (str(REAL_PAIRS) if REAL_PAIRS.is_file() else "")
    try:
        call("prepare", out=folder, size=flags.size, pairs=pairs, held_out=flags.held_out, steps=flags.steps,
             batch=flags.batch, device=flags.device)  # fmt: skip
    except Failed as why:
        if flags.device != "cuda" or "--device" not in str(why):
            raise UserError(str(why).removeprefix("error: ")) from None
        print(f"{why}\n{rows(names, {}, {}, 0)}")
        Path(flags.out).write_text("[]\n")
        return 0
    facts = read(folder / "facts.json")
    print(described(flags, facts, pairs), flush=True)
    found: dict[str, list[dict]] = {name: [] for name in names}
    rates, failed, before = [measured_rate(folder, flags.device)], set(), 0.0
    for turn in range(flags.turns):
        for name in names if turn % 2 == 0 else names[::-1]:
            if name in failed:
                continue
            out = folder / f"{name} {turn}".replace(" ", "-")
            try:
                took = measured(folder, name, out, facts["steps"], flags.batch, flags.lr, flags.device)
            except Failed as why:
                print(f"turn {turn + 1}  {name:21}failed: {why}", flush=True)
                failed.add(name)
                continue
            found[name].append(took)
            rates.append(measured_rate(folder, flags.device))
            best = max(rate["flops_per_second"] for rate in rates[-2:])
            took["fraction"] = took["pairs_per_second"] * facts["flops_per_pair"] / best
            rmtree(out / "checkpoints", ignore_errors=True)
            if turn:
                rmtree(out)
            line = f"turn {turn + 1}  {name:21}{took['pairs_per_second']:8.2f} pairs/s"
            shown = f"{took['peak_bytes'] / 2**30:.2f} GiB, {took['fraction']:.1%}, had {took['cores']:.2f} cores"
            print(f"{line}, {shown}", flush=True)
    losses = {}
    done = [name for name in names if found[name]]
    if flags.held_out and done:
        models = [folder / f"{name} 0".replace(" ", "-") for name in done]
        call("judge", init=folder / "start", held_out=folder / "held-out.jsonl", models=models,
             out=folder / "losses.json", device=flags.device)  # fmt: skip
        before, *after = read(folder / "losses.json")
        losses = dict(zip(done, after))
    print("\n" + rows(names, found, losses, before))
    print("\n" + machine(rates))
    write(flags.out, done, found)
    return 1 if failed else 0


def described(flags: Flags, facts: dict, pairs: str) -> str:
    """What is about to be measured."""
    needed = facts["flops_per_pair"]
    lengths = ", ".join(f"{name} {mean:.1f}" for name, mean in facts["lengths"].items())
    return (
        f"{flags.size}, {facts['parameters']:,} parameters with random weights; {Path(pairs).name or 'the embedded pairs'}\n"
        f"{facts['steps']} steps of {flags.batch} pairs, mean tokens: {lengths}; {facts['held_out']} pairs held out\n"
        f"{facts['formula']}\nhere {needed / 1e9:.1f} GFLOP a pair\n"
    )


def measured_rate(folder: Path, device: str) -> dict:
    """The rate of matrix products now, and the facts of the machine."""
    call("rate", init=folder / "start", out=folder / "rate.json", device=device)
    return read(folder / "rate.json")


def rows(names: list[str], found: dict, losses: dict, before: float) -> str:
    """The table."""
    lines = ["| system | pairs/s | ours is | peak | of matmul rate | held-out loss |", "|---|---|---|---|---|---|"]
    speed = {name: median(took["pairs_per_second"] for took in found[name]) for name in names if found.get(name)}
    for name in names:
        if name not in speed:
            lines.append(f"| {name} | not measured | | | | |")
            continue
        times = f"{speed['ours'] / speed[name]:.2f} x" if "ours" in speed else ""
        peak = max(took["peak_bytes"] for took in found[name]) / 2**30
        loss = f"{before:.4f} to {losses[name]:.4f}" if name in losses else ""
        share, each = fraction(found[name]), [took["pairs_per_second"] for took in found[name]]
        spread = f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else ""
        lines.append(f"| {name} | {speed[name]:.2f}{spread} | {times} | {peak:.2f} GiB | {share:.1%} | {loss} |")
    return "\n".join(lines)


def machine(rates: list[dict]) -> str:
    """The machine, and how steady its rate was."""
    speeds, facts = [rate["flops_per_second"] / 1e9 for rate in rates], rates[0]
    return (
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}; {facts['dtype']} F.linear, GFLOP/s of "
        f"{len(speeds)} times: min {min(speeds):.0f}, median {median(speeds):.0f}, max {max(speeds):.0f}"
    )


def fraction(turns: list[dict]) -> float:
    """Of the matmul rate around them."""
    return median(took["fraction"] for took in turns)


def write(path: str, names: list[str], found: dict) -> None:
    """The figures, for other programs."""
    figures = []
    for name in names:
        speed = median(took["pairs_per_second"] for took in found[name])
        figures.append(
            {
                "system": name,
                "pairs_per_second": speed,
                "peak_bytes": max(took["peak_bytes"] for took in found[name]),
                "fraction_of_matmul_rate": fraction(found[name]),
            }
        )
    Path(path).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run(main, Flags)
