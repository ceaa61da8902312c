"""Every loss beside the others: trained from the same start on the same pairs, in the same order, with the same budget.

    python dpo/compare.py                                              all of dpo/losses/family.py
    python dpo/compare.py --losses "dpo; dpo @ 3e-5; ipo(beta=1)"      these; behind an @ a rate of its own

Each is a run of dpo/train.py, and a run that is finished is not trained again. What the trained models say to held-out
prompts, how they rank held-out pairs and how far they went from the start becomes one table, the start its first row.
"""

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.pairs import Pair
from dpo.answers import answer, rates
from dpo.examples import EMBEDDED, Examples, open_examples
from dpo.forward import Way, fitting
from dpo.kl import sampled_kl
from dpo.loss_table import ANSWERED, table
from dpo.losses import LOSSES, parse_loss
from dpo.reference import Reference, reference_logps
from dpo.start import open_model
from dpo.step import Plan, held_out_metrics
from dpo.train import Flags as TrainFlags
from dpo.train import main as train
from gpt.command import UserError, check_range, flag, run
from gpt.device import check_device
from gpt.files import whole
from gpt.generate import longest_answer
from gpt.joining import join
from gpt.launched import under_torchrun
from gpt.model import GPT
from gpt.optim import default_learning_rate
from gpt.parallel import World
from gpt.stopping import SIGNALS
from gpt.tokenizer import Tokenizer
from gpt.weights import fingerprint


@dataclass(frozen=True)
class Flags:
    """Train a model with each loss, from the same start with the same budget, and make one table of what came of it.

    python dpo/compare.py --losses "dpo; dpo @ 3e-5; ipo(beta=1); dpo + 0.5*sft"
    python dpo/compare.py --init runs/sft --pairs pairs.jsonl --steps 500
    """

    losses: str = flag("", "losses with ; between, each a spec as in train.py, or SPEC @ RATE; empty: all, by name")
    init: str = flag("", "where all start, as in train.py; empty: the embedded data/tiny")
    pairs: str = flag("", "pairs file; empty: the embedded set")
    steps: int = flag(200, "optimizer steps of each")
    batch: int = flag(32, "pairs a step")
    lr: float = flag(
        None, "peak rate, one for all but those with a rate of their own; unset: train.py's for preferences"
    )
    seed: int = flag(0, "of the order of pairs, and of the sampled answers")
    prompts: int = flag(0, "held-out prompts to answer and to sample answers to; 0: all")
    out: str = flag("runs/compare", "folder: of each loss the run, compare.md and compare.json", metavar="DIR")
    device: str = flag("auto", "auto is cuda where there is one, else cpu", choices=("auto", "cpu", "cuda", "mps"))


class Row(NamedTuple):
    """A loss and its rate."""

    spec: str
    rate: float
    own: bool  # whether the rate was given with the loss

    @property
    def name(self) -> str:
        return f"{self.spec} @ {self.rate:g}" if self.own else self.spec

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=+@]+", "-", self.name.replace(" ", "")).strip("-")


class Ground(NamedTuple):
    """What all are held to: the start, and what it says of the held-out pairs."""

    start: GPT
    tokenizer: Tokenizer
    held_out: Examples
    said: Reference
    prompts: list[Pair]  # a pair of each
    max_new: int
    plan: Plan


def main(flags: Flags) -> int:
    if under_torchrun():
        raise UserError("dpo/compare.py runs alone, and trains in one process; start it without torchrun")
    check_range(flags, ("steps", "batch"), 1)
    check_range(flags, ("prompts", "lr"), 0)
    check_range(flags, ("seed",), 0, below=2**31)
    check_device(flags.device)
    start, tokenizer, _ = open_model(flags.init, flags.seed)
    rows = rows_of(flags, start)
    out = Path(flags.out)
    context = start.config.n_positions
    _, held_out = open_examples(flags.pairs, tokenizer, context, TrainFlags.held_out, False, {}, may_be_empty=True)
    if not held_out.ids:
        raise UserError(f"{flags.pairs or EMBEDDED}: no pair is held out, so there is nothing to compare on")
    with join(flags.device) as world:
        ground = ground_of(start.to(world.device), tokenizer, held_out, flags.prompts, world)
        found = {"the start": figures(start, ground, flags.seed)}
        print("\n".join(table(found)), flush=True)
        for number, row in enumerate(rows, 1):
            print(f"{number} of {len(rows)}: {row.name}", file=sys.stderr, flush=True)
            folder = out / row.folder
            if code := trained(row, folder, flags):
                print(f"stopped while {row.name} was trained; the same command goes on from there", file=sys.stderr)
                return code
            policy, _, _ = open_model(str(folder))
            found[row.name] = figures(policy.to(world.device), ground, flags.seed)
            print(table(found)[-1], flush=True)
    about = caption(flags, rows, ground)
    with whole(out / "compare.md") as file:
        file.write("\n".join([about, "", *table(found), ""]))
    with whole(out / "compare.json") as file:
        settings = asdict(flags) | {"rates": {row.name: row.rate for row in rows}}
        json.dump({"caption": about, "settings": settings, "rows": found}, file, indent=2, ensure_ascii=False)
    print(f"\nwritten to {out / 'compare.md'} and compare.json")
    return 0


def ground_of(start: GPT, tokenizer: Tokenizer, held_out: Examples, prompts: int, world: World) -> Ground:
    """What models from this start are held to: the held-out pairs, and so many of their prompts (0: all)."""
    plan = Plan(parse_loss("dpo"), Way(fitting(start.config, world), "fp32", world))
    said = reference_logps(start, held_out, range(len(held_out.ids)), plan.way, fingerprint(start))
    different = list({pair.prompt: pair for pair in held_out.pairs}.values())[: prompts or None]
    return Ground(start, tokenizer, held_out, said, different, longest_answer(None, 64, start.config.n_positions), plan)


def rows_of(flags: Flags, start: GPT) -> list[Row]:
    """The losses to compare. Raises UserError for a loss or a rate that makes no sense, or one that stands twice."""
    usual = flags.lr if flags.lr is not None else default_learning_rate(start.parameter_count, preference=True)
    found: list[Row] = []
    for text in flags.losses.split(";") if flags.losses else LOSSES:
        spec, own, rate = (part.strip() for part in text.partition("@"))
        parse_loss(spec)
        try:
            row = Row(spec, float(rate) if own else usual, bool(own))
        except ValueError:
            raise UserError(f"--losses: the rate of {spec} is a number, found {rate!r}") from None
        if not 0 <= row.rate < float("inf"):
            raise UserError(f"--losses: the rate of {spec} is {row.rate:g}, it must be at least 0 and finite")
        if row.folder in [one.folder for one in found]:
            raise UserError(f"--losses: {row.name} stands twice")
        found.append(row)
    return found


def trained(row: Row, folder: Path, flags: Flags) -> int:
    """Train with this loss, or see that it was done. Returns dpo/train.py's exit code."""
    asked = TrainFlags(
        pairs=flags.pairs, init=flags.init, loss=row.spec, out=str(folder), steps=flags.steps, batch=flags.batch,
        lr=row.rate, seed=flags.seed, eval_every=0, resume=True, device=flags.device,
    )  # fmt: skip
    with redirect_stdout(StringIO()), signals_as_before():
        try:
            return train(asked)
        except UserError as error:
            raise UserError(f"{row.name}: {error}") from None


def figures(policy: GPT, ground: Ground, seed: int) -> dict[str, float]:
    """What a model says to the prompts, how it ranks the held-out pairs, how far it is from the start."""
    answers = answer(policy, ground.tokenizer, ground.prompts, ground.max_new, "answers")
    found = rates(ground.prompts, answers)
    after = held_out_metrics(policy, ground.held_out, ground.said, ground.plan)
    before = float(ground.said.sums(ground.held_out)[:, 0].double().mean())
    end = ground.tokenizer.end_of_text
    prompts = [ground.tokenizer.encode(pair.prompt) or [end] for pair in ground.prompts]
    kl = sampled_kl(policy, ground.start, prompts, ground.max_new, end, ground.plan.way, seed)
    return {name: found[name] for name in ANSWERED if name in found} | {
        "accuracy": after["rewards/accuracies"],
        "kl": kl.mean,
        "kl standard error": kl.error,
        "chosen": after["logps/chosen"] - before,
    }


def caption(flags: Flags, rows: list[Row], ground: Ground) -> str:
    """What the table is of, and how it was made."""
    usual = {f"{row.rate:g}" for row in rows if not row.own}
    others = " but where another is named (@)" if any(row.own for row in rows) else ""
    rate = f"a peak rate of {min(usual)} for all{others}" if usual else "a peak rate for each (@)"
    return (
        f"{flags.steps} steps of {flags.batch} pairs with each loss, from the same start ({flags.init or 'data/tiny'}) on the "
        f"same pairs ({flags.pairs or EMBEDDED}) in the same order, with {rate}; one rate for all is not each loss's best. "
        f"Answers are greedy, to {len(ground.prompts):,} held-out prompts, with at most {ground.max_new} tokens; length is in "
        "tokens. Accuracy: of held-out pairs, how many have a log-ratio above 0 (a tie is half). KL: of the trained model "
        "from the start, over one answer to each prompt sampled at temperature 1, ± its standard error. Chosen: what the mean "
        "log-probability of the held-out chosen answers rose (+) or fell (\N{MINUS SIGN})."
    )


@contextmanager
def signals_as_before() -> Iterator[None]:
    """Training listens to signals in its own way; afterwards Ctrl+C is what it was."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    run(main, Flags)
