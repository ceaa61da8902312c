"""The tables of docs/questions.md and docs/from-the-seed.md: what the answers to readers' questions rest on.

    python tests/bench/questions.py                            all of them, some 15 minutes of one core
    python tests/bench/questions.py --tables beta start        these
    python tests/bench/questions.py --record                   all, and into the pages

A model that was taught once is not taught again: its figures stay in --out.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dpo.compare import Ground, figures, ground_of
from dpo.loss_table import table
from dpo.start import open_model
from dpo.step import held_out_metrics
from gpt.command import UserError, check_range, flag, run
from gpt.files import whole
from tests.bench.differences import markdown, scale_table, seed_table, start_table
from tests.bench.record import KEEP, Parts, as_called, keep
from tests.bench.teaching import ONE, Case, embedded, taught

RANDOM, BESIDE = "random:tiny", "dpo + 1.0*sft"
BETAS = (0.01, 0.03, 0.1, 0.3, 1, 3)
LOOKED = (0, 1, 10, 50, 100, 200)  # steps after which held-out pairs are scored
START = {"the start": Case("")}
DPO, BOTH = Case("dpo(beta=0.1)"), Case(BESIDE)

# table: its rows, the start of all of them first
TAUGHT: dict[str, dict[str, Case]] = {
    "beta": START | {f"`dpo(beta={beta:g})`": Case(f"dpo(beta={beta:g})") for beta in BETAS},
    "mean": START
    | {
        f"`{spec}`": Case(spec)
        for spec in ("dpo(beta=0.1)", "dpo_norm(beta=1)", "dpo(beta=0.01)", "dpo_norm(beta=0.1)")
    },
    "first": {
        "the start": Case("", init=RANDOM),
        "`dpo`": Case("dpo(beta=0.1)", init=RANDOM),
        f"`{BESIDE}`": Case(BESIDE, init=RANDOM),
        "`sft`": Case("sft", init=RANDOM),
        f"from `data/tiny`: `{BESIDE}`": BOTH,
    },
    "end": {
        "the start": Case("", init=RANDOM),
        "`sft`": Case("sft", init=RANDOM),
        "`sft`, end-of-text not scored": Case("sft", "end", RANDOM),
        "from `data/tiny`: `dpo`": DPO,
        "from `data/tiny`: `dpo`, end-of-text not scored": Case("dpo(beta=0.1)", "end"),
    },
    "prompt": START
    | {
        "`dpo`": DPO,
        "`dpo`, prompt scored": Case("dpo(beta=0.1)", "prompt"),
        "`dpo_norm(beta=1)`": Case("dpo_norm(beta=1)"),
        "`dpo_norm(beta=1)`, prompt scored": Case("dpo_norm(beta=1)", "prompt"),
        f"`{BESIDE}`": BOTH,
        f"`{BESIDE}`, prompt scored": Case(BESIDE, "prompt"),
    },
    "masks": START
    | {
        "`dpo_norm(beta=0.1)`": Case("dpo_norm(beta=0.1)"),
        "`dpo_norm(beta=0.1)`, the seed's masks": Case("dpo_norm(beta=0.1)", "seed"),
    },
}


@dataclass(frozen=True)
class Flags:
    """Print the tables that docs/questions.md and docs/from-the-seed.md have, and what they rest on.

    python tests/bench/questions.py --tables beta mean
    """

    tables: list = flag((), "which; none: all")
    steps: int = flag(200, "optimizer steps of each model")
    batch: int = flag(32, "pairs a step")
    prompts: int = flag(400, "held-out prompts to answer; 0: all")
    out: str = flag("runs/questions", "folder in which figures are kept")
    record: bool = flag(False, KEEP)


class Figures:
    """What is known of each case, kept in a file."""

    def __init__(self, flags: Flags, known: dict[str, dict] | None = None):
        self.flags, self.path, self.known = flags, Path(flags.out, "figures.json"), known or {}
        if known is None and self.path.exists():
            self.known = json.loads(self.path.read_text(encoding="utf-8"))
        self.grounds: dict[str, Ground] = {}

    def of(self, case: Case) -> dict:
        """{"figures": as dpo/compare.py has them, "trace": {step: mean log-probabilities of held-out answers}}"""
        flags = self.flags
        key = json.dumps([*case, flags.steps, flags.batch, flags.prompts])
        if key not in self.known:
            ground, trace = self.ground(case.init), {}
            for step, policy in taught(case, self.training, flags.steps, flags.batch):
                if step in LOOKED and case.cut == "ours":
                    found = held_out_metrics(policy, ground.held_out, ground.said, ground.plan)
                    trace[step] = {name: found[name] for name in ("logps/chosen", "logps/rejected")}
            self.known[key] = {"figures": figures(policy, ground, 0), "trace": trace}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole(self.path) as file:
                json.dump(self.known, file, indent=1)
            self.known = json.loads(self.path.read_text(encoding="utf-8"))
        return self.known[key]

    def ground(self, init: str) -> Ground:
        """What models from this start are held to."""
        if init not in self.grounds:
            start, tokenizer, _ = open_model(init)
            self.training, held_out = embedded(tokenizer, start.config.n_positions)
            self.grounds[init] = ground_of(start, tokenizer, held_out, self.flags.prompts, ONE)
        return self.grounds[init]


def of_taught(name: str, known: Figures) -> list[str]:
    """A table of trained models, a row for each."""
    lines = table({row: known.of(case)["figures"] for row, case in TAUGHT[name].items()})
    return [re.sub(r"^\| `(.*?`.*?)` \|", r"| \1 |", line) for line in lines]  # the names have their quotes already


def moved(case: Case, step: int, known: Figures) -> tuple[float, float]:
    """By how much the mean log-probabilities of held-out answers, chosen and rejected, have moved after `step` steps."""
    trace = known.of(case)["trace"]
    chosen, rejected = (
        trace[str(step)][f"logps/{side}"] - trace["0"][f"logps/{side}"] for side in ("chosen", "rejected")
    )
    return chosen, rejected


def way_table(known: Figures) -> list[str]:
    """How far the betas are from each other along the way: the mean log-ratio of held-out pairs, in nats."""
    rows = [["after steps", *map(str, LOOKED[1:])]]
    for name, case in TAUGHT["beta"].items():
        if case.spec:
            sides = [moved(case, step, known) for step in LOOKED[1:]]
            rows.append([name, *(f"{chosen - rejected:.2f}" for chosen, rejected in sides)])
    return markdown(rows)


def falls_table(known: Figures) -> list[str]:
    """Chosen and rejected answers along the way, in nats since the start."""
    rows = [["after steps", *map(str, LOOKED[1:])]]
    for name, case in (("dpo", DPO), (BESIDE, BOTH)):
        for side, answer in enumerate(("chosen", "rejected")):
            values = (moved(case, step, known)[side] for step in LOOKED[1:])
            rows.append(
                [
                    f"`{name}`, {answer}",
                    *(f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}") for value in values),
                ]
            )
    return markdown(rows)


MEASURED: dict[str, Callable[[Figures], list[str]]] = {"way": way_table, "falls": falls_table}
AT_ONCE: dict[str, Callable[[], list[str]]] = {"start": start_table, "scale": scale_table, "seed": seed_table}
TABLES = (*TAUGHT, *MEASURED, *AT_ONCE)


def lines_of(name: str, known: Figures) -> list[str]:
    """The table of this name."""
    if name in AT_ONCE:
        return AT_ONCE[name]()
    return MEASURED[name](known) if name in MEASURED else of_taught(name, known)


def main(flags: Flags) -> None:
    check_range(flags, ("steps", "batch"), 1)
    check_range(flags, ("prompts",), 0)
    if unknown := set(flags.tables) - set(TABLES):
        raise UserError(f"--tables: there is no table {min(unknown)!r}; there are {', '.join(TABLES)}")
    if flags.record and flags.tables:
        raise UserError("--record keeps all tables; leave out --tables")
    known, at_once = Figures(flags), {}
    for name in flags.tables or TABLES:
        lines = lines_of(name, known)
        print("\n".join([name, *lines, ""]), flush=True)
        if name in AT_ONCE:
            at_once[name] = lines
    if flags.record:
        settings = {name: getattr(flags, name) for name in ("steps", "batch", "prompts")}
        figures = {"settings": settings, "taught": known.known, "at once": at_once}
        keep("questions", as_called("python tests/bench/questions.py"), figures)


def parts(made: dict) -> Parts:
    """All tables of the pages."""
    found = made["figures"]
    known = Figures(Flags(**found["settings"]), found["taught"])
    return found["at once"] | {name: lines_of(name, known) for name in (*TAUGHT, *MEASURED)}


if __name__ == "__main__":
    run(main, Flags)
