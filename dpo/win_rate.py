"""How often a judge prefers the trained model's answer to the start's: the win rate, a tie being half a win.

    won 60, tied 20, lost 20        win rate 0.700, 95 % from 0.604 to 0.781

The judge sees both answers in both orders (data/judge.py). The interval is Wilson's (1927), which stays within 0 and 1 and
has a width where all answers won; with ties it is wider than need be, since they vary less than wins and losses do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.confidence import wilson
from data.endpoint import OLLAMA
from data.judge import Judge
from data.llm import LLM
from data.pairs import Pair
from data.questions import read_criterion
from data.replies import kept_replies
from dpo.answers import Answer
from gpt.command import UserError


class JudgedBy(NamedTuple):
    """Whom to ask, and by what an answer is better."""

    llm: LLM
    criterion: str


def judged_by(model: str, address: str, criterion: str) -> JudgedBy | None:
    """What the flags of a judge say; None where they name none.

    Raises UserError where there can be no such judge, before anything took time.
    """
    if not model:
        if address or criterion:
            raise UserError("--judge-address and --criterion are of a judge; name its model with --judge")
        return None
    by = JudgedBy(LLM(model, address or OLLAMA), criterion or "helpful")
    read_criterion(by.criterion)
    return by


def asked(by: JudgedBy, kept: Path | None, pairs: list[Pair], before: list[Answer], after: list[Answer]) -> dict:
    """The judge's win rate as evaluation.json has it. kept: the file of its replies; what stands there is not asked again."""
    with kept_replies(by.llm, kept) as replies:
        found = win_rate(Judge(replies, read_criterion(by.criterion)), pairs, before, after)
    return {"model": by.llm.model, "criterion": by.criterion, **found}


def win_rate(judge: Judge, pairs: Sequence[Pair], before: Sequence[Answer], after: Sequence[Answer]) -> dict:
    """How the answers `after` fare against those `before` to the same prompts; equal answers tie, and nobody is asked.

    Prompts without a verdict count as failed, and nowhere else.
    """
    cases = [(pair.prompt, new.text, old.text) for pair, old, new in zip(pairs, before, after, strict=True)]
    verdicts = judge.compare_all(cases)
    found = [verdict for verdict in verdicts if verdict is not None]
    counts = {"won": found.count(1.0), "tied": found.count(0.5), "lost": found.count(0.0)}
    counts["failed"] = len(verdicts) - len(found)
    if not found:
        return {"win rate": None, "interval": None, **counts}
    rate = sum(found) / len(found)
    return {"win rate": rate, "interval": wilson(rate, len(found)), **counts}


def line(report: dict) -> str:
    """One line of what `asked` found."""
    shown = [name for name in ("won", "tied", "lost", "failed") if report[name] or name != "failed"]
    counts = ", ".join(f"{report[name]} {name}" for name in shown)
    if report["win rate"] is None:
        return f"\nwin rate unknown: {report['model']} gave no verdict ({counts})"
    low, high = report["interval"]
    return (
        f"\nwin rate {report['win rate']:.3f} of the answers after, 95 % from {low:.3f} to {high:.3f}, judged "
        f"{report['criterion']} by {report['model']}: {counts}"
    )
