"""What did training change? The start and the trained model on the same held-out pairs and prompts, side by side.

    python dpo/evaluate.py --policy runs/demo

Of every held-out pair: the loss, which answer became likelier, by how much. Of every held-out prompt: the answer that
both models give, decoded greedily. For the embedded tasks, whose right answers a rule knows: the rates of courteous,
rude and correct ones, overall and by family, and whether correctness changed, prompt by prompt.
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from data.pairs import Pair, write_rows
from data.rules import judge
from data.tasks import FAMILIES
from dpo.losses import parse_loss
from dpo.reference import reference_scores
from dpo.run_folder import RunFolder
from dpo.side_by_side import SHOWN, samples, table
from dpo.start import EMBEDDED, open_examples, open_model
from dpo.step import Plan, fitting, held_out_metrics
from gpt import precision
from gpt.command import UserError, check_range, flag, run
from gpt.generate import generate
from gpt.model import GPT
from gpt.parallel import World, join, say
from gpt.tokenizer import Tokenizer
from gpt.weights import fingerprint

TOKENS = 32_768  # of the prompts answered at once, and of their answers: the cache keeps keys and values of each


@dataclass(frozen=True)
class Flags:
    """Compare a trained model with its start, on held-out pairs and prompts.

    python dpo/evaluate.py --policy runs/demo
    """

    policy: str = flag(help="run folder or model folder of the trained model")
    reference: str = flag(
        "", "model or run folder to compare with; empty: what the run's log-ratios were taken against"
    )
    pairs: str = flag("", "pairs file; empty: what the run was trained on")
    held_out: float = flag(
        None, "fraction of the prompts that was held out; unset: as in the run, else 0.1; 1: all of the file"
    )
    loss: str = flag("", "loss to report; empty: the run's, else dpo")
    prompts: int = flag(0, "held-out prompts to answer; 0: all")
    max_new: int = flag(64, "tokens of the longest answer")
    show: int = flag(6, "samples to print")
    out: str = flag("", "folder for evaluation.json and samples.jsonl; empty: the run folder, else none is written")
    device: str = flag("auto", "auto is cuda where there is one, else cpu", choices=("auto", "cpu", "cuda", "mps"))


class Answer(NamedTuple):
    text: str
    stopped: bool  # by end-of-text, within max_new tokens
    length: int  # tokens


def main(flags: Flags) -> None:
    check_range(flags, ("held_out",), 0, most=1)
    check_range(flags, ("prompts", "show"), 0)
    check_range(flags, ("max_new",), 1)
    trained = RunFolder(flags.policy)
    record = trained.read_json("run.json") if (trained.path / "run.json").exists() else {}
    used, settings = record.get("flags", {}), record.get("settings", {})
    loss = parse_loss(flags.loss or used.get("loss", "dpo"), used.get("beta"))
    policy, tokenizer, _ = open_model(flags.policy)
    if not used and not flags.reference:
        raise UserError(
            f"--policy {flags.policy} is no run folder, which would tell its start: name a model to compare with, --reference"
        )
    reference, other, _ = open_model(flags.reference or used.get("reference") or used.get("init", ""), used.get("seed", 0))
    if tokenizer.ids != other.ids:
        raise UserError(f"--policy {flags.policy} and its reference have different vocabularies")
    context = min(policy.config.n_positions, reference.config.n_positions)
    if flags.max_new >= context:
        raise UserError(f"--max-new is {flags.max_new}, but the model's context is {context}")
    started = "init_sha256" if not used.get("reference") else "reference_sha256"
    if used and not flags.reference and settings[started] not in (None, fingerprint(reference)):
        raise UserError(
            f"the model that {trained.path} started from has changed since; name one to compare with, --reference"
        )
    fraction = flags.held_out if flags.held_out is not None else used.get("held_out", 0.1)
    file = flags.pairs or used.get("pairs", "")
    length = used.get("max_length") or context
    _, held_out = open_examples(file, tokenizer, length, fraction, not loss.needs_rejected, {}, may_be_empty=True)
    if not held_out.pairs:
        raise UserError(f"{file or EMBEDDED}: no pair is held out at --held-out {fraction:g}")

    with join(flags.device) as world:
        margins = pair_metrics(policy, reference, held_out, loss, world)
        prompts = {pair.prompt: pair for pair in held_out.pairs}  # a prompt with several pairs is answered once
        chosen = list(prompts.values())[: flags.prompts or None]
        answers = {
            name: answer(model.to(world.device), tokenizer, chosen, flags.max_new, f"answers {name}")
            for name, model in (("before", reference), ("after", policy))
        }
    report = {name: margins[name] | rates(chosen, given) for name, given in answers.items()}
    report["difference"] = differences(chosen, answers["before"], answers["after"])
    report["loss"] = str(loss)
    say(table(report, len(chosen)), world)
    say(samples(chosen, answers, flags.show), world)
    if world.is_main and (flags.out or used):
        folder = RunFolder(flags.out or flags.policy)
        folder.write_json("evaluation.json", report)
        write_rows(
            folder.path / "samples.jsonl",
            [
                {
                    "prompt": pair.prompt,
                    "before": before.text,
                    "after": after.text,
                    "chosen": pair.chosen,
                    "rejected": pair.rejected,
                }
                for pair, before, after in zip(chosen, answers["before"], answers["after"])
            ],
        )
        print(f"\nwritten to {folder.path / 'evaluation.json'} and samples.jsonl")


def pair_metrics(policy: GPT, reference: GPT, held_out, loss, world: World) -> dict[str, dict[str, float]]:
    """{"before", "after"}: loss, accuracy and margin (beta included) of the held-out pairs against the reference."""
    autocast = partial(precision.autocast, "fp32", world.device)
    micro = fitting(policy.config, held_out.ids, world.device)
    plan = Plan(loss, micro, autocast, world)
    said = reference_scores(
        reference.to(world.device), held_out.ids, list(range(len(held_out.ids))), micro, autocast, world
    )
    found = {}
    for name, model in (("before", reference), ("after", policy)):
        line = held_out_metrics(model.to(world.device), held_out, said, plan)
        found[name] = {short: line[long] for short, long in SHOWN.items() if long in line}
    return found


def answer(model: GPT, tokenizer: Tokenizer, pairs: list[Pair], max_new: int, title: str) -> list[Answer]:
    """The model's greedy answer to each pair's prompt. A prompt too long for the context loses its beginning."""
    room = model.config.n_positions - max_new
    ids = [tokenizer.encode(pair.prompt)[-room:] or [tokenizer.end_of_text] for pair in pairs]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # like lengths together: little padding
    found: dict[int, Answer] = {}
    together = max(1, TOKENS // (max(map(len, ids)) + max_new))
    for start in tqdm(range(0, len(order), together), desc=title, unit="batch", leave=False, delay=1):
        some = order[start : start + together]
        for i, new in zip(some, generate(model.eval(), [ids[i] for i in some], max_new, [tokenizer.end_of_text])):
            stopped = new[-1] == tokenizer.end_of_text
            found[i] = Answer(tokenizer.decode(new[:-1] if stopped else new), stopped, len(new))
    return [found[i] for i in range(len(ids))]


def is_task(pair: Pair) -> bool:
    """Whether a rule knows the right answer."""
    return pair.family in FAMILIES and pair.output is not None


def is_correct(pair: Pair, given: Answer) -> bool:
    """The plain answer, or it and one known phrase of style, and then end-of-text."""
    return given.stopped and judge(given.text, pair.output).correct


def rates(pairs: list[Pair], answers: list[Answer]) -> dict:
    """Mean length and the rate of stopped answers; for tasks the rates of courteous, rude and correct ones too."""
    found = {
        "stopped": fmean(a.stopped for a in answers),
        "length": fmean(a.length for a in answers),
        "prompts": len(answers),
    }
    tasks = [(pair, given) for pair, given in zip(pairs, answers) if is_task(pair)]
    if tasks:
        verdicts = [judge(given.text, pair.output) for pair, given in tasks]
        found |= {
            "courteous": fmean(v.courteous for v in verdicts),
            "rude": fmean(v.rude for v in verdicts),
            "correct": fmean(is_correct(*task) for task in tasks),
        }
        families = sorted({pair.family for pair, _ in tasks})
        found["correct by family"] = {
            name: fmean(is_correct(p, a) for p, a in tasks if p.family == name) for name in families
        }
    return found


def differences(pairs: list[Pair], before: list[Answer], after: list[Answer]) -> dict:
    """Correct after minus correct before, prompt by prompt: the mean and its standard error. {} without tasks."""
    changes = [is_correct(p, a) - is_correct(p, b) for p, b, a in zip(pairs, before, after) if is_task(p)]
    if len(changes) < 2:
        return {}
    return {
        "correct": fmean(changes),
        "standard error": stdev(changes) / math.sqrt(len(changes)),
        "became correct": changes.count(1),
        "became wrong": changes.count(-1),
    }


if __name__ == "__main__":
    run(main, Flags)
