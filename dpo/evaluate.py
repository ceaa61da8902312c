"""What did training change? The start and the trained model on the same held-out pairs and prompts, side by side.

    python dpo/evaluate.py --policy runs/NAME
    python dpo/evaluate.py --policy runs/NAME --reference gpt2 --pairs pairs.jsonl > scores.jsonl     # dpo/score.py

Of every held-out pair: the loss, which answer became likelier, by how much. Of every held-out prompt: the answer that
both models give, decoded greedily. For the embedded tasks, whose right answers a rule knows: the rates of courteous,
rude and correct ones, overall and by family, and whether correctness changed, prompt by prompt. And for any prompts, if
an LLM is named that judges (--judge): how often it prefers the trained model's answer.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.candidates import asks_alone
from data.judge import JudgeFlags
from data.onpolicy import held_out_of
from data.pairs import Pair, summary, write_rows
from data.reading import stream_rows
from dpo.answers import Answer, answer, differences, rates
from dpo.by_token import by_token
from dpo.examples import EMBEDDED, Examples, check_margins, open_examples
from dpo.forward import Way, fitting
from dpo.losses import Loss, parse_loss
from dpo.reference import Reference, reference_logps
from dpo.report import write_report
from dpo.run_folder import SHOWN, RunFolder
from dpo.score import score_pairs, verdict
from dpo.side_by_side import sample_rows, samples, table
from dpo.start import open_model
from dpo.step import Plan, held_out_metrics
from dpo.win_rate import asked, judged_by, line
from gpt.command import UserError, check_range, flag, run
from gpt.generate import longest_answer
from gpt.joining import join
from gpt.model import GPT
from gpt.parallel import World, on_main, say
from gpt.tokenizer import Tokenizer
from gpt.weights import fingerprint


@dataclass(frozen=True)
class Flags(JudgeFlags):
    """Compare a trained model with its start, on held-out pairs and prompts, or score the pairs of a file.

    python dpo/evaluate.py --policy runs/NAME
    python dpo/evaluate.py --policy A --reference B --pairs FILE    # a JSON line for each pair
    """

    policy: str = flag(help="the trained model: run folder, model folder or name on the Hugging Face Hub")
    reference: str = flag("", "model to compare with; empty: what the run's log-ratios were taken against")
    pairs: str = flag("", "file of pairs, or of prompts alone; empty: what the run was trained on")
    compare: bool = flag(
        None, "answer prompts and compare; unset: unless all three above are given, which scores each pair instead"
    )
    held_out: float = flag(
        None, "fraction of the prompts to compare on; unset: as in the run, else 0.1; 1: all of the file"
    )
    loss: str = flag("", "loss to report, whose beta the rewards have; empty: the run's, else dpo")
    prompts: int = flag(0, "held-out prompts to answer; 0: all")
    max_new: int = flag(None, "tokens of the longest answer; unset: 64, or half the context if that is less")
    show: int = flag(6, "samples to print")
    out: str = flag(
        "",
        metavar="DIR",
        help="folder for evaluation.json and samples.jsonl, or for scores.jsonl; empty: the run folder, if its own pairs "
        "and start are asked, else nothing is written",
    )
    judge: str = flag("", "model that judges the answers of both, for a win rate; empty: none")
    device: str = flag("auto", "auto is cuda where there is one, else cpu", choices=("auto", "cpu", "cuda", "mps"))


def main(flags: Flags) -> int:
    check_range(flags, ("held_out",), 0, most=1)
    check_range(flags, ("prompts", "show"), 0)
    check_range(flags, ("max_new",), 1)
    if flags.out and Path(flags.out).is_file():
        raise UserError(f"--out {flags.out} is a file; name a folder")
    trained = RunFolder(flags.policy)
    record = trained.read_json("run.json") if (trained.path / "run.json").exists() else {}
    used = record.get("flags", {})
    # into the run's own folder comes what its own pairs and start say, nothing else
    own = used and not (flags.reference or flags.pairs or flags.loss or flags.held_out is not None)
    out = flags.out or (flags.policy if own else "")
    kept = Path(out or (trained.path if used else "")) / "judge.jsonl"
    if flags.judge and not (out or used):
        raise UserError(
            "--judge: name a folder with --out, where its replies are kept, so that none is asked for twice"
        )
    judge = judged_by(flags.judge, flags, kept)
    loss = parse_loss(flags.loss) if flags.loss else parse_loss(used.get("loss", "dpo"), used.get("beta"))
    policy, reference, tokenizer = open_both(flags, record)
    scoring = bool(flags.reference and flags.pairs) if flags.compare is None else not flags.compare
    if scoring:
        for name in ("held_out", "prompts", "max_new", "show", "judge"):
            if getattr(flags, name) != Flags.__dataclass_fields__[name].default:
                raise UserError(
                    f"--{name.replace('_', '-')} is of comparing models (--compare), not of scoring pairs, which "
                    "policy, reference and pairs together ask for"
                )
    file, context = flags.pairs or used.get("pairs", ""), min(policy.config.n_positions, reference.config.n_positions)
    length = used.get("max_length") or context
    if scoring:
        counted: dict[str, list[int]] = {}
        examples, _ = open_examples(file, tokenizer, length, 0, None, counted)
        with join(flags.device) as world:
            score(policy, reference, examples, loss, world, flags.out)
            if counted:
                say(f"left out or cut: {summary(counted)}", world, sys.stderr)
        return 0
    max_new = longest_answer(flags.max_new, 64, context)
    fraction = flags.held_out if flags.held_out is not None else used.get("held_out", 0.1)
    held_out, pairs = None, prompts_alone(file, fraction)
    if pairs is None:
        _, held_out = open_examples(file, tokenizer, length, fraction, not loss.needs_rejected, {}, may_be_empty=True)
        check_margins(loss, held_out, file)
        pairs = held_out.pairs
    if not pairs:
        raise UserError(f"{file or EMBEDDED}: no pair is held out at --held-out {fraction:g}; 1 takes all of them")
    different = list({pair.prompt: pair for pair in pairs}.values())  # a prompt with several pairs is answered once
    prompts, flags = different[: flags.prompts or None], replace(flags, max_new=max_new, out=out)
    with join(flags.device) as world:
        report, answers = compare(policy, reference, tokenizer, held_out, prompts, loss, world, flags)
    if world.is_main:
        tell(report, prompts, answers, flags)
        if judge:  # last, since it may take hours, and the other processes need not wait
            report["judge"], failures = asked(judge, prompts, answers["before"], answers["after"])
            print(line(report["judge"], failures))
            if flags.out:
                folder = RunFolder(flags.out)
                folder.write_json("evaluation.json", report)
                if folder.metrics.exists():
                    write_report(folder)
            return 1 if failures else 0
    return 0


def open_both(flags: Flags, record: dict) -> tuple[GPT, GPT, Tokenizer]:
    """The trained model, the one to compare it with, and the vocabulary of both. record: run.json, or {}."""
    used, settings = record.get("flags", {}), record.get("settings", {})
    policy, tokenizer, _ = open_model(flags.policy)
    if not used and not flags.reference:
        raise UserError(
            f"--policy {flags.policy} is no run folder, which would tell its start: name a model to compare with, --reference"
        )
    named = flags.reference or used.get("reference")
    reference, other, _ = open_model(named) if named else open_model(used.get("init", ""), used.get("seed", 0))
    if tokenizer.ids != other.ids:
        raise UserError(f"--policy {flags.policy} and its reference have different vocabularies")
    started = "init_sha256" if not used.get("reference") else "reference_sha256"
    if used and not flags.reference and settings[started] not in (None, fingerprint(reference)):
        raise UserError(
            f"the model that {flags.policy} started from has changed since; name one to compare with, --reference"
        )
    return policy, reference, tokenizer


def score(policy: GPT, reference: GPT, examples: Examples, loss: Loss, world: World, out: str) -> None:
    """One JSON line for each pair, to standard output or into the folder `out`; on standard error their sum."""
    lines = list(score_pairs(policy, reference, examples, loss.beta, way_for(policy, world)))
    if not world.is_main:
        return
    if out:
        write_rows(Path(out) / "scores.jsonl", lines)
        print(f"written to {Path(out) / 'scores.jsonl'}", file=sys.stderr)
    else:
        sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    print(verdict(lines, loss.beta), file=sys.stderr)


def prompts_alone(file: str, fraction: float) -> list[Pair] | None:
    """The held-out prompts of a file whose first row has no answer; None for pairs, and for what is neither."""
    first = next(stream_rows(Path(file)), None) if file else None
    return held_out_of(file, fraction) if first and asks_alone(first.value) else None


def compare(
    policy: GPT,
    reference: GPT,
    tokenizer: Tokenizer,
    held_out: Examples | None,
    prompts: list[Pair],
    loss: Loss,
    world: World,
    flags: Flags,
) -> tuple[dict, dict[str, list[Answer]]]:
    """(what evaluation.json will hold, {"before", "after"}: what both models answer to the prompts). held_out: None where there
    are prompts alone."""
    margins: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    if held_out:
        plan, every = Plan(loss, way_for(policy, world)), range(len(held_out.ids))
        said = reference_logps(reference.to(world.device), held_out, every, plan.way, fingerprint(reference))
        margins = pair_metrics(policy, reference, held_out, said, plan)
        folder = RunFolder(flags.out)
        # there are none after a loss without a reference
        if flags.out and on_main(lambda: str(folder.tokens.exists()), world) == "False":
            rows = by_token(policy, said, held_out, loss.beta, plan.way, tokenizer)
            on_main(lambda: write_rows(folder.tokens, rows), world)
    answers = {
        name: answer(model.to(world.device), tokenizer, prompts, flags.max_new, f"answers {name}")
        for name, model in (("before", reference), ("after", policy))
    }
    report: dict = {name: margins[name] | rates(prompts, given) for name, given in answers.items()}
    report["difference"] = differences(prompts, answers["before"], answers["after"])
    report["loss"] = str(loss)
    return report, answers


def tell(report: dict, prompts: list[Pair], answers: dict[str, list[Answer]], flags: Flags) -> None:
    """Print figures and answers of both models side by side, and write them into the folder --out, if there is one."""
    print(table(report, len(prompts)))
    print(samples(prompts, answers, flags.show), flush=True)
    if flags.out:
        folder = RunFolder(flags.out)
        folder.write_json("evaluation.json", report)
        write_rows(folder.samples, sample_rows(prompts, **answers))
        print(f"\nwritten to {folder.path / 'evaluation.json'} and samples.jsonl", flush=True)
        if folder.metrics.exists():
            print(f"report   {write_report(folder)}", flush=True)


def way_for(model: GPT, world: World) -> Way:
    """How a model is asked here: in float32."""
    return Way(fitting(model.config, world), "fp32", world)


def pair_metrics(
    policy: GPT, reference: GPT, held_out: Examples, said: Reference, plan: Plan
) -> dict[str, dict[str, float]]:
    """{"before", "after"}: loss, accuracy and margin (beta included) of the held-out pairs against what the reference said."""
    found = {}
    for name, model in (("before", reference), ("after", policy)):
        line = held_out_metrics(model.to(plan.way.world.device), held_out, said, plan)
        found[name] = {short: line[long] for short, long in SHOWN.items() if long in line}
    return found


if __name__ == "__main__":
    run(main, Flags)
