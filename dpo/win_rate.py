"""How often a judge prefers the trained model's answer to the start's: the win rate, a tie being half a win.

    won 60, tied 20, lost 20        win rate 0.700, 95 % from 0.604 to 0.781

The judge sees both answers in both orders (data/judge.py). The interval is Wilson's (1927), which stays within 0 and 1 and
has a width where all answers won; with ties it is wider than need be, since they vary less than wins and losses do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.confidence import wilson
from data.endpoint import Failed
from data.failures import Failures
from data.judge import Judge, JudgeFlags, check_judge, open_judge
from data.pairs import Pair
from dpo.answers import Answer


class JudgedBy(NamedTuple):
    """Whom to ask, and how. kept: the file of its replies; what stands there is not asked again."""

    model: str
    flags: JudgeFlags
    kept: Path | None


def judged_by(model: str, flags: JudgeFlags, kept: Path | None = None) -> JudgedBy | None:
    """What the flags of a judge say; None where they name none.

    Raises UserError where there can be no such judge, before anything took time.
    """
    if not model:
        flags.check_unused("there is no --judge")
        return None
    check_judge(model, flags, kept)
    return JudgedBy(model, flags, kept)


def asked(by: JudgedBy, pairs: list[Pair], before: list[Answer], after: list[Answer]) -> tuple[dict, Failures]:
    """The judge's win rate as evaluation.json has it, and what it gave no verdict on."""
    failures = Failures()
    with open_judge(by.model, by.flags, by.kept) as judge:
        found = win_rate(judge, pairs, before, after, failures)
    return {"model": by.model, "criterion": by.flags.criterion, **found}, failures


def win_rate(
    judge: Judge, pairs: Sequence[Pair], before: Sequence[Answer], after: Sequence[Answer], failures: Failures
) -> dict:
    """How the answers `after` fare against those `before` to the same prompts; equal answers tie, and nobody is asked.

    Prompts without a verdict are counted as failed by why, and nowhere else; `failures` is filled with them.
    """
    cases = [(pair.prompt, new.text, old.text) for pair, old, new in zip(pairs, before, after, strict=True)]
    found = []
    for pair, verdict in zip(pairs, judge.compare_all(cases)):
        if isinstance(verdict, Failed):
            failures.add(verdict, pair.row)
        else:
            found.append(verdict)
    counts = {"won": found.count(1.0), "tied": found.count(0.5), "lost": found.count(0.0), "failed": failures.counts}
    if not found:
        return {"win rate": None, "interval": None, **counts}
    rate = sum(found) / len(found)
    return {"win rate": rate, "interval": wilson(rate, len(found)), **counts}


def line(report: dict, failures: Failures) -> str:
    """What `asked` found, in a line, and another where something failed."""
    failed = f"\nfailed   {failures}" if failures else ""
    if report["win rate"] is None:
        return f"\nwin rate unknown: {report['model']} gave no verdict{failed}"
    low, high = report["interval"]
    counts = ", ".join(f"{report[name]} {name}" for name in ("won", "tied", "lost"))
    return (
        f"\nwin rate {report['win rate']:.3f} of the answers after, 95 % from {low:.3f} to {high:.3f}, judged "
        f"{report['criterion']} by {report['model']}: {counts}{f', {len(failures)} failed' if failures else ''}{failed}"
    )
