"""How good is an answer? A score is a function of prompts and of several answers to each; more is better.

    rules:correct                       1 or 0: right, by the rule of an embedded task, and ended        (data/tasks.py)
    rules:courteous                     1 or 0: carries a courteous phrase                               (data/rules.py)
    length:shorter, length:longer       tokens, the fewer or the more the better
    llm:MODEL                           1 to 10, by a criterion, asked of a large language model         (data/judge.py)
    rules:correct + 0.5*rules:courteous     the weighted sum

`parse_score(spec)` looks the word before the colon up in SCORES, and gives what follows it to the function that it finds
there; that one returns the score. Asked about rows with no answers yet, a score raises what it would raise later: so what
cannot be scored is said before hours of sampling.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from data.judge import open_judge
from data.pairs import Pair
from data.questions import read_criterion
from data.rules import judge
from data.tasks import FAMILIES
from gpt.answers import Answer
from gpt.command import UserError

# (pairs, several answers to each) -> a number for each answer, NaN where that is not known. Raises UserError naming the row
# of a pair it cannot score.
Score = Callable[[Sequence[Pair], Sequence[Sequence[Answer]]], list[list[float]]]


def is_task(pair: Pair) -> bool:
    """Whether a rule knows the right answer."""
    return pair.family in FAMILIES and pair.output is not None


def is_correct(pair: Pair, given: Answer) -> bool:
    """The plain answer, or it and one known phrase of style, and then end-of-text."""
    return given.stopped and judge(given.text, pair.output or "").correct


def is_courteous(pair: Pair, given: Answer) -> bool:
    """It carries a courteous phrase, wherever the rest leads, and then ends."""
    return given.stopped and judge(given.text, pair.output or "").courteous


def of_each(rule: Callable[[Pair, Answer], float]) -> Score:
    """The score that asks a rule about each answer alone."""
    return lambda pairs, answers: [[float(rule(p, given)) for given in some] for p, some in zip(pairs, answers)]


def by_rule(which: str) -> Score:
    """`rules:correct` and `rules:courteous`, of the embedded tasks."""
    rule = _chosen("rules", which, {"correct": is_correct, "courteous": is_courteous})

    def score(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        if other := next((pair for pair in pairs if not is_task(pair)), None):
            raise UserError(
                f"row {other.row}: the score rules:{which} is of the embedded tasks alone, whose rows have 'output' and "
                f"'family' (one of {', '.join(list(FAMILIES)[:3])}, ...); take another score"
            )
        return of_each(rule)(pairs, answers)

    return score


def by_length(which: str) -> Score:
    """`length:shorter` and `length:longer`, in tokens."""
    sign = _chosen("length", which, {"shorter": -1, "longer": 1})
    return of_each(lambda pair, given: sign * given.length)


def by_llm(model: str, address: str, criterion: str, kept: Path | None) -> Score:
    """`llm:MODEL`: whole numbers from 1 to 10, by a criterion. kept: the file of its replies, which are not asked again.

    All answers to a prompt score NaN where one of them gets no score.
    """
    if not model:
        raise UserError("--score: llm: must be followed by the name of a model, such as llm:llama3.1")
    read_criterion(criterion)  # what is wrong with it is said now

    def score(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        if not any(answers):
            return [[] for _ in answers]
        with open_judge(model, address, criterion, kept) as judge:
            cases = [(pair.prompt, [given.text for given in some]) for pair, some in zip(pairs, answers)]
            found = judge.score_all(cases)
        return [scores or [math.nan] * len(some) for scores, some in zip(found, answers)]

    return score


# The word before the colon -> a function from what follows it to the score. Raises UserError where that makes no sense.
SCORES: Mapping[str, Callable[[str], Score]] = {"rules": by_rule, "length": by_length}
KNOWN = "rules:correct, rules:courteous, length:shorter, length:longer, llm:MODEL"


def with_llm(address: str, criterion: str, kept: Path | None) -> Mapping[str, Callable[[str], Score]]:
    """SCORES, and `llm:MODEL` of a model at that address."""
    return {**SCORES, "llm": partial(by_llm, address=address, criterion=criterion, kept=kept)}


def parse_score(spec: str, known: Mapping[str, Callable[[str], Score]] = SCORES) -> Score:
    """'rules:correct + 0.5*rules:courteous' as one score. Raises UserError, naming the term that makes no sense."""
    terms: list[tuple[float, Score]] = []
    for term in re.split(r"\s\+\s", spec):
        weight, _, name = term.partition("*") if re.match(r"\s*[-+.\d]", term) else ("1", "*", term)
        word, _, which = name.strip().partition(":")
        if word not in known:
            there = ", ".join([KNOWN, *(f"{other}:..." for other in known if f"{other}:" not in KNOWN)])
            raise UserError(
                f"--score: there is no score {term.strip()!r}; there are {there}, and weighted sums of them"
            )
        try:
            factor = float(weight)
        except ValueError:
            factor = math.nan
        if not factor or not math.isfinite(factor):
            raise UserError(
                f"--score: the weight of {name.strip()} is a finite number other than 0, found {weight.strip()!r}"
            )
        terms.append((factor, known[word](which)))

    def score(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        parts = [(weight, one(pairs, answers)) for weight, one in terms]
        return [
            [math.fsum(weight * part[i][k] for weight, part in parts) for k in range(len(some))]
            for i, some in enumerate(answers)
        ]

    return score


def _chosen(word: str, which: str, options: Mapping):
    if which not in options:
        raise UserError(
            f"--score: {word}:{which} is no score; there are {', '.join(f'{word}:{name}' for name in options)}"
        )
    return options[which]
