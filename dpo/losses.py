"""The family of preference losses: what was scored goes in, one loss per pair comes out.

    loss = parse_loss("dpo(beta=0.2) + 0.5*sft")
    terms = loss(scores)                            # {"dpo": (B,), "sft": (B,)}

With the names of Rafailov et al. 2023 (arXiv 2305.18290), y_w chosen and y_l rejected:

    gain_chosen    = log pi(y_w|x) - log pi_ref(y_w|x)        how much likelier the policy made it
    gain_rejected  = log pi(y_l|x) - log pi_ref(y_l|x)
    log_ratio      = gain_chosen - gain_rejected              0 before the first update

beta turns a log-ratio into a reward. A higher beta stays closer to the reference: the loss saturates after a smaller
change of log-probabilities.

A new loss is a function of Scores whose keywords are its hyperparameters, and its name in LOSSES.
"""

import inspect
import re
from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from gpt.command import UserError


class Scores(NamedTuple):
    """What a loss may see of B pairs. Log-probabilities are sums over an answer's tokens, end-of-text included; all (B,).

    ref_chosen and ref_rejected are zeros where no reference is asked; rejected too for rows without a second branch.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_len: Tensor
    rejected_len: Tensor

    @property
    def gain_chosen(self) -> Tensor:
        return self.chosen - self.ref_chosen

    @property
    def gain_rejected(self) -> Tensor:
        return self.rejected - self.ref_rejected

    @property
    def log_ratio(self) -> Tensor:
        return self.gain_chosen - self.gain_rejected


def dpo(s: Scores, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta * log_ratio): Rafailov et al. 2023 (arXiv 2305.18290), equation 7."""
    return -logsigmoid(beta * s.log_ratio)


def dpo_norm(s: Scores, beta: float = 5.0) -> Tensor:
    """DPO on means over an answer's tokens, so that length does not count: Lambert et al. 2024 (Tulu 3, arXiv 2411.15124),
    section 5, with their beta. dpo/plain.py and the book compute this one, with beta 0.1."""
    return -logsigmoid(beta * (s.gain_chosen / s.chosen_len - s.gain_rejected / s.rejected_len))


def cdpo(s: Scores, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """DPO where a label is wrong with probability `label_smoothing`: Mitchell 2023, "A note on DPO with noisy preferences
    & relationship to IPO", equation 3. The loss is smallest at a finite margin, log((1 - e) / e) / beta."""
    right, wrong = -logsigmoid(beta * s.log_ratio), -logsigmoid(-beta * s.log_ratio)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def ipo(s: Scores, beta: float = 0.1) -> Tensor:
    """(log_ratio - 1 / (2 beta))^2: Azar et al. 2023 (arXiv 2310.12036), equation 17, whose tau is our beta. It wants a
    margin of 1 / (2 beta) and no more. On means over tokens, as its authors ran it and as TRL does; the paper writes
    sums."""
    margin = s.gain_chosen / s.chosen_len - s.gain_rejected / s.rejected_len
    return (margin - 1 / (2 * beta)) ** 2


def hinge(s: Scores, beta: float = 0.1) -> Tensor:
    """max(0, 1 - beta * log_ratio): SLiC-HF's hinge (Zhao et al. 2023, arXiv 2305.10425) on DPO's log-ratio, as Liu et al.
    2023 (RSO, arXiv 2309.06657) write it. A pair with a log-ratio of 1 / beta teaches nothing more."""
    return relu(1 - beta * s.log_ratio)


def sft(s: Scores) -> Tensor:
    """-log pi(y_w|x), the likelihood of the chosen answer alone, divided by tokens where the others are divided by pairs.
    Added to a preference loss it keeps the chosen answer from falling (RPO: Liu et al. 2024, arXiv 2405.16436)."""
    return -s.chosen


LOSSES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (dpo, dpo_norm, cdpo, ipo, hinge, sft)}
PER_TOKEN = {"sft"}  # divided by the answer tokens of the whole step; all others by its pairs
NO_REFERENCE = {"sft"}  # never compute one
ONE_ANSWER = {"sft"}  # content with `chosen` alone

# keyword: (lowest, highest, whether the lowest itself is allowed)
RANGES = {"beta": (0.0, float("inf"), False), "label_smoothing": (0.0, 0.5, True)}


class Term(NamedTuple):
    """weight * name(**keywords)"""

    weight: float
    name: str
    keywords: dict[str, float]


class Loss(NamedTuple):
    """A weighted sum of losses, as parsed from a spec."""

    terms: tuple[Term, ...]

    def __call__(self, scores: Scores) -> dict[str, Tensor]:
        """The losses of each term, unweighted, by name: (B,) each. Sum them with `total`."""
        return {term.name: LOSSES[term.name](scores, **term.keywords) for term in self.terms}

    def total(self, sums: dict[str, Tensor], pairs: float, tokens: float) -> Tensor:
        """The weighted sum of the terms' sums over pairs, each divided by what it counts: the pairs, or the tokens of the
        chosen answers, of the whole step."""
        return sum(term.weight * sums[term.name] / (tokens if term.name in PER_TOKEN else pairs) for term in self.terms)

    @property
    def beta(self) -> float:
        """What rewards are measured in: the beta of the first term that has one, else 1."""
        return next((term.keywords["beta"] for term in self.terms if "beta" in term.keywords), 1.0)

    @property
    def needs_reference(self) -> bool:
        return any(term.name not in NO_REFERENCE for term in self.terms)

    @property
    def needs_rejected(self) -> bool:
        return any(term.name not in ONE_ANSWER for term in self.terms)

    def __str__(self) -> str:
        """The spec with every keyword written out."""

        def written(term: Term) -> str:
            weight = "" if term.weight == 1 else f"{_written(term.weight)}*"
            keywords = ", ".join(f"{name}={_written(value)}" for name, value in term.keywords.items())
            return weight + term.name + (f"({keywords})" if keywords else "")

        return " + ".join(map(written, self.terms))


def parse_loss(spec: str, beta: float | None = None) -> Loss:
    """The loss that a spec such as "dpo", "ipo(beta=0.2)" or "dpo + 0.2*sft" names.

    `beta` binds to every term that takes one and did not set it. Raises UserError, naming what it does not know.
    """
    terms = tuple(_parse_term(part.strip(), beta, spec) for part in re.split(r"(?<!\d[eE])\+(?![^(]*\))", spec))
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--loss {spec!r}: {name} stands twice; give it once, with the sum of the weights")
    return Loss(terms)


def _parse_term(text: str, beta: float | None, spec: str) -> Term:
    match = re.fullmatch(r"(?:([^*()]+?)\s*\*\s*)?(\w+)\s*(?:\((.*)\))?", text)
    if not match:
        raise UserError(f"--loss {spec!r}: cannot read {text!r}; a term is a name, as in dpo, ipo(beta=0.2) or 0.5*sft")
    weight, name, arguments = match.groups()
    if name not in LOSSES:
        close = get_close_matches(name, LOSSES, n=1)
        raise UserError(
            f"--loss {spec!r}: there is no loss {name!r}{f', did you mean {close[0]}?' if close else ''}; "
            f"there are {', '.join(LOSSES)}"
        )
    known = {p.name: p.default for p in list(inspect.signature(LOSSES[name]).parameters.values())[1:]}
    given: dict[str, float] = {}
    for argument in filter(None, re.split(r"\s*,\s*", (arguments or "").strip())):
        key, equals, value = (part.strip() for part in argument.partition("="))
        if not equals or key not in known:
            raise UserError(f"--loss {spec!r}: {name} has no keyword {key!r}; it has {', '.join(known) or 'none'}")
        if key in given:
            raise UserError(f"--loss {spec!r}: {key} stands twice in {name}")
        given[key] = _number(value, f"{name}({key}=...)", spec)
    keywords = known | ({"beta": beta} if beta is not None and "beta" in known else {}) | given
    for key, value in keywords.items():
        low, high, closed = RANGES[key]
        if not (low < value < high or closed and value == low):
            raise UserError(
                f"--loss {spec!r}: {key} is {value:g}, it must be {'at least' if closed else 'above'} {low:g} and "
                + (f"below {high:g}" if high < float("inf") else "finite")
            )
    factor = 1.0 if weight is None else _number(weight, "the weight", spec)
    if not 0 < factor < float("inf"):
        raise UserError(f"--loss {spec!r}: the weight of {name} is {factor:g}, it must be above 0 and finite")
    return Term(factor, name, keywords)


def _written(value: float) -> str:
    """0.2, 3 and 1000000: every digit, so that the spec can be read back, and no sign that it uses otherwise."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")


def _number(text: str, what: str, spec: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--loss {spec!r}: {what} is a number, found {text!r}") from None
