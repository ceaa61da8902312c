"""What rounds of online DPO brought: a model's figures on held-out prompts, and the table of all rounds."""

import math
from collections.abc import Callable, Iterable
from statistics import fmean, stdev
from typing import Any

from data.failures import Failures
from data.onpolicy import LONGEST, SamplingFlags
from data.pairs import Pair
from data.scores import Score
from dpo.answers import answer, rates
from gpt.command import UserError
from gpt.generate import longest_answer, ready
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

RATES = ("correct", "courteous", "stopped", "length")


def held_out_figures(
    model: GPT, tokenizer: Tokenizer, pairs: list[Pair], score: Score, flags: SamplingFlags, check: Callable[[], None]
) -> tuple[dict, Failures]:
    """How a model does on prompts that it was never trained on: the score of its greedy answers, one by one and on average,
    the average of answers drawn as in the rounds, and the rates of dpo/answers.py; None is a score that is not known. And
    why one is not. check: raises where the run is to end. Raises UserError where no greedy answer has a score."""
    max_new = longest_answer(flags.max_new, LONGEST, model.config.n_positions)
    model = ready(model, flags)
    how: dict[str, Any] = dict(stop=flags.stop, check=check)
    greedy = answer(model, tokenizer, pairs, max_new, "held-out prompts, greedy", **how)
    drawn = answer(model, tokenizer, pairs, max_new, "held-out prompts, drawn", flags.sampling, **how)
    failures = Failures()
    scores, sampled = (
        [None if math.isnan(value) else value for (value,) in score(pairs, [[given] for given in some], failures)]
        for some in (greedy, drawn)
    )
    if mean_known(scores) is None:
        why = f"failed: {failures}" if failures else "it is NaN each time"
        raise UserError(
            f"no score is known of {len(pairs):,} held-out prompts, so there is nothing to see a gain on ({why})"
        )
    known = {"score": mean_known(scores), "sampled score": mean_known(sampled), "scores": scores}
    return rates(pairs, greedy) | known | {"failed": failures.counts}, failures


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known, None where none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def head(found: dict, score: str) -> str:
    """The first lines of the table. found: figures of the start."""
    names = "".join(f"{name:>11}" for name in RATES if name in found)
    return (
        f"\n{found['prompts']:,} held-out prompts, greedy; score is {score}; sampled: of answers drawn as in the rounds\n"
        f"{'round':7}{'pairs':>7}{'score':>9}{'gain':>18}{'sampled':>10}{names}{'minutes':>9}"
    )


def row(
    name: str, found: dict, before: dict | None = None, pairs: int | None = None, seconds: float | None = None
) -> str:
    """A line of the table: the figures after a round, and what they gained over those `before`."""
    return (
        f"{name:7}{'' if pairs is None else f'{pairs:,}':>7}{found['score']:9.3f}{gain(before, found) if before else '':>18}"
        f"{'unknown' if found['sampled score'] is None else format(found['sampled score'], '.3f'):>10}"
        + "".join(f"{found[one]:11.3f}" for one in RATES if one in found)
        + ("" if seconds is None else f"{seconds / 60:9.1f}")
    )


def gain(before: dict, after: dict) -> str:
    """'+0.120 ± 0.011': the mean of what each prompt's score rose, and its standard error, which one prompt does not tell."""
    both = zip(before["scores"], after["scores"], strict=True)
    changes = [b - a for a, b in both if a is not None and b is not None]
    if not changes:
        return "unknown"
    error = f" ± {stdev(changes) / math.sqrt(len(changes)):.3f}" if len(changes) > 1 else ""
    return f"{fmean(changes):+.3f}{error}"
