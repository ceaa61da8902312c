"""What rounds of online DPO brought: a model's figures on held-out prompts, and the table of all rounds."""

import math
from collections.abc import Callable, Iterable
from statistics import fmean, stdev
from typing import Any

from data.onpolicy import LONGEST, SamplingFlags
from data.pairs import Pair
from data.scores import Score
from dpo.answers import answer, rates
from gpt.generate import longest_answer, ready
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

RATES = ("correct", "courteous", "stopped", "length")


def held_out_figures(
    model: GPT, tokenizer: Tokenizer, pairs: list[Pair], score: Score, flags: SamplingFlags, check: Callable[[], None]
) -> dict:
    """How a model does on prompts that it was never trained on: the score of its greedy answers, one by one and on average,
    the average of answers drawn as in the rounds, and the rates of dpo/answers.py. check: raises where the run is to end."""
    max_new = longest_answer(flags.max_new, LONGEST, model.config.n_positions)
    model = ready(model, flags)
    how: dict[str, Any] = dict(stop=flags.stop, check=check)
    greedy = answer(model, tokenizer, pairs, max_new, "held-out prompts, greedy", **how)
    drawn = answer(model, tokenizer, pairs, max_new, "held-out prompts, drawn", flags.sampling, **how)
    scores = [value for (value,) in score(pairs, [[given] for given in greedy])]
    sampled = mean_known([value for (value,) in score(pairs, [[given] for given in drawn])])
    scores = [None if math.isnan(value) else value for value in scores]  # as JSON has it
    return rates(pairs, greedy) | {"score": mean_known(scores), "sampled score": sampled, "scores": scores}


def mean_known(values: Iterable[float | None]) -> float:
    """The mean of those that are known, NaN where none is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return fmean(known) if known else math.nan


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
        f"{found['sampled score']:10.3f}"
        + "".join(f"{found[one]:11.3f}" for one in RATES if one in found)
        + ("" if seconds is None else f"{seconds / 60:9.1f}")
    )


def gain(before: dict, after: dict) -> str:
    """'+0.120 ± 0.011': the mean of what each prompt's score rose, and its standard error."""
    both = zip(before["scores"], after["scores"], strict=True)
    changes = [b - a for a, b in both if a is not None and b is not None]
    error = stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.nan
    return f"{mean_known(changes):+.3f} ± {error:.3f}"
