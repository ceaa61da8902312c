"""How good is an answer? A score is a function of prompts and of several answers to each; more is better.

    rules:correct                       1 or 0: right, by the rule of an embedded task, and ended        (data/tasks.py)
    rules:courteous                     1 or 0: carries a courteous phrase                               (data/rules.py)
    length:shorter, length:longer       tokens, the fewer or the more the better
    llm:MODEL                           1 to 10, by a criterion, asked of a large language model         (data/judge.py)
    implicit:RUN                        the reward that the DPO model of a run folder carries in itself  (dpo/implicit.py)
    FILE.py:FUNCTION                    a function of one's own                                          (data/own_score.py)
    rules:correct + 0.5*rules:courteous     the weighted sum

`parse_score(spec)` looks the word before the colon up in SCORES, and gives what follows it to the function that stands
there; that one returns the score. Asked about rows with no answers yet, a score raises what it would raise later: so what
cannot be scored is said before hours of sampling.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from data.endpoint import Failed
from data.failures import Failures
from data.judge import JudgeFlags, check_judge, open_judge
from data.own_score import OWN, own_score
from data.pairs import Pair
from data.rules import judge
from data.tasks import FAMILIES
from gpt.answers import Answer
from gpt.command import UserError

# (pairs, several answers to each, failures) -> a number for each answer, NaN where that is not known. `failures` is filled
# with why. Raises UserError naming the row of a pair it cannot score.
Score = Callable[..., list[list[float]]]


class How(NamedTuple):
    """What scores go by that need more than answers."""

    judge: JudgeFlags = JudgeFlags()  # where and by what an LLM is asked
    kept: Path | None = None  # the file of its replies, which are not asked for again
    device: str = "auto"  # of a model that is a score


USUAL = How()

# The word before the colon -> where a function stands from what follows it, and How, to the score; it raises UserError where
# that makes no sense. It is looked up by name when it is asked for, since a room may not import what stands in a later one.
SCORES: Mapping[str, str] = {
    "rules": "data.scores:by_rule",
    "length": "data.scores:by_length",
    "llm": "data.scores:by_llm",
    "implicit": "dpo.implicit:implicit_reward",
}
KNOWN = "rules:correct, rules:courteous, length:shorter, length:longer, llm:MODEL, implicit:RUN, FILE.py:FUNCTION"


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

    def score(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]], failures: Failures) -> list[list[float]]:
        return [[float(rule(pair, given)) for given in some] for pair, some in zip(pairs, answers)]

    return score


def by_rule(which: str, how: How) -> Score:
    """`rules:correct` and `rules:courteous`, of the embedded tasks."""
    rule = _chosen("rules", which, {"correct": is_correct, "courteous": is_courteous})

    def score(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]], failures: Failures) -> list[list[float]]:
        if other := next((pair for pair in pairs if not is_task(pair)), None):
            raise UserError(
                f"row {other.row}: the score rules:{which} is of the embedded tasks alone, whose rows have 'output' and "
                f"'family' (one of {', '.join(list(FAMILIES)[:3])}, ...); take another score"
            )
        return of_each(rule)(pairs, answers, failures)

    return score


def by_length(which: str, how: How) -> Score:
    """`length:shorter` and `length:longer`, in tokens."""
    sign = _chosen("length", which, {"shorter": -1, "longer": 1})
    return of_each(lambda pair, given: sign * given.length)


def by_llm(model: str, how: How) -> Score:
    """`llm:MODEL`: whole numbers from 1 to 10, by a criterion.

    All answers to a prompt score NaN where one of them gets no score.
    """
    check_judge(model, how.judge, how.kept)

    def score(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]], failures: Failures) -> list[list[float]]:
        if not any(answers):
            return [[] for _ in answers]
        with open_judge(model, how.judge, how.kept) as judge:
            cases = [(pair.prompt, [given.text for given in some]) for pair, some in zip(pairs, answers)]
            found = judge.score_all(cases)
        scores = []
        for pair, some, given in zip(pairs, answers, found):
            if isinstance(given, Failed):
                failures.add(given, pair.row)
                given = [math.nan] * len(some)
            scores.append(given)
        return scores

    return score


def parse_score(spec: str, how: How = USUAL) -> Score:
    """'rules:correct + 0.5*rules:courteous' as one score. Raises UserError, naming the term that makes no sense."""
    terms, needs_llm = [], False
    for term in terms_of(spec):
        weight, name = weighted(term)
        word, _, which = name.partition(":")
        if not OWN.fullmatch(name) and word not in SCORES:
            raise UserError(
                f"--score: there is no score {term.strip()!r}; there are {KNOWN}, and weighted sums of them"
            )
        try:
            factor = float(weight)
        except ValueError:
            factor = math.nan
        if not factor or not math.isfinite(factor):
            raise UserError(f"--score: the weight of {name} is a finite number other than 0, found {weight!r}")
        needs_llm |= word == "llm"
        terms.append((factor, own_score(name) if OWN.fullmatch(name) else resolve_name(SCORES[word])(which, how)))
    if not needs_llm:
        how.judge.check_unused("--score has no llm:MODEL")

    def score(
        pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]], failures: Failures | None = None
    ) -> list[list[float]]:
        failures = Failures() if failures is None else failures
        parts = [(weight, one(pairs, answers, failures)) for weight, one in terms]
        return [
            [math.fsum(weight * part[i][k] for weight, part in parts) for k in range(len(some))]
            for i, some in enumerate(answers)
        ]

    return score


def terms_of(spec: str) -> list[str]:
    """The terms of a sum. Raises UserError where a plus or a minus looks like one between two of them, but is not read so:
    the names of models and files may have such signs in them."""
    terms = re.split(r"\s\+\s", spec)
    one = rf"(({'|'.join(SCORES)}):|[^+]*\.py:)"
    joint = re.compile(rf"{one}\S*?\s*(\+|\s-)\s*-?([\d.]+\*)?{one}")
    if tight := next(filter(joint.search, terms), ""):
        raise UserError(
            f"--score: {tight!r} looks like a sum; write its plus with a space on either side, and less as '+ -0.1*...'"
        )
    return terms


def weighted(term: str) -> tuple[str, str]:
    """'0.5*rules:correct' -> ('0.5', 'rules:correct'), and without a weight '1'."""
    found = re.fullmatch(r"([^*:]*)\*(.*)", term, re.DOTALL)
    return (found[1].strip(), found[2].strip()) if found else ("1", term.strip())


def runs_code(spec: str) -> bool:
    """Whether a file of Python is run for this score, which nobody may ask for but the user himself."""
    return any(OWN.fullmatch(weighted(term)[1]) for term in terms_of(spec))


def _chosen(word: str, which: str, options: Mapping):
    if which not in options:
        raise UserError(
            f"--score: {word}:{which} is no score; there are {', '.join(f'{word}:{name}' for name in options)}"
        )
    return options[which]
