"""The grammar of --loss: a sum of losses by name, each with a weight, its keywords and what modifies it.

    dpo    ipo(beta=0.2)    dpo + 0.2*sft    dpo(divergence=js, wpo=true)

What a keyword must be stands here, what it means in the losses' docstrings.
"""

import re
from decimal import Decimal
from difflib import get_close_matches
from functools import reduce
from math import inf
from operator import add
from typing import NamedTuple

from torch import Tensor

from dpo.losses.family import (
    CHOICES,
    COUPLED,
    LOSSES,
    MODIFIERS,
    NO_REFERENCE,
    ONE_ANSWER,
    PER_TOKEN,
    modifiers_of,
    own_keywords,
)
from dpo.losses.modifiers import desensitized, diverging, weighted, widened
from dpo.losses.scores import Scores
from gpt.command import UserError

# keyword: (lowest, highest, whether these themselves are allowed)
RANGES = {
    "beta": (0, inf, False, False),
    "label_smoothing": (0, 0.5, True, False),
    "tau": (0, 1, False, True),  # above, the wrong side would be exponential
    "penalty": (0, inf, True, False),
    "delta": (-inf, inf, False, False),
    "gamma": (0, inf, True, False),
    "desirable": (0, inf, False, False),
    "undesirable": (0, inf, False, False),
    "ld_alpha": (0, 1, True, True),
    "alpha": (0, 1, False, True),  # of a divergence
    "cpo alpha": (0, inf, True, False),  # a weight
    "exo label_smoothing": (0, 0.5, False, False),  # whose logarithm is taken
}
TERM = "a term is a name, as in dpo, ipo(beta=0.2) or 0.5*sft"


class Term(NamedTuple):
    """weight * name(**keywords), modified."""

    weight: float
    name: str
    keywords: dict[str, float]
    modifiers: dict[str, float | str | bool] = {}  # those that change something

    def __call__(self, scores: Scores) -> Tensor:
        """The loss of each pair, (B,), unweighted."""
        given, s = self.modifiers, scores
        if "ld_alpha" in given:
            s = desensitized(s, float(given["ld_alpha"]))
        if "divergence" in given:
            s = diverging(s, str(given["divergence"]), float(given.get("alpha", MODIFIERS["alpha"])))
        if "margin" in given:
            s = widened(s, self.keywords["beta"])
        losses = LOSSES[self.name](s, **self.keywords)
        return weighted(losses, scores) if "wpo" in given else losses

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f"{_written(self.weight)}*"
        keywords = ", ".join(f"{name}={_written(value)}" for name, value in (self.keywords | self.modifiers).items())
        return weight + self.name + (f"({keywords})" if keywords else "")


class Loss(NamedTuple):
    """A weighted sum of losses, as parsed from a spec."""

    terms: tuple[Term, ...]

    def __call__(self, scores: Scores) -> dict[str, Tensor]:
        """The losses of each term, unweighted, by name: (B,) each. Sum them with `total`."""
        return {term.name: term(scores) for term in self.terms}

    def total(self, sums: dict[str, Tensor], pairs: float, tokens: float) -> Tensor:
        """The weighted sum of the terms' sums over pairs, each divided by what it counts: the pairs, or the tokens of the
        chosen answers, of the whole step."""
        parts = [term.weight * sums[term.name] / (tokens if term.name in PER_TOKEN else pairs) for term in self.terms]
        return reduce(add, parts)

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

    @property
    def coupled(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its step."""
        return any(term.name in COUPLED for term in self.terms)

    def needs(self, modifier: str) -> bool:
        """Whether a term is modified in this way."""
        return any(modifier in term.modifiers for term in self.terms)

    def __str__(self) -> str:
        """The spec with every keyword written out."""
        return " + ".join(map(str, self.terms))


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
    if not text:
        raise UserError(
            f"--loss {spec!r}: {'a loss is missing beside a +' if '+' in spec else 'it names no loss'}; {TERM}"
        )
    match = re.fullmatch(r"(?:([^*()]+?)\s*\*\s*)?(\w+)\s*(?:\((.*)\))?", text)
    if not match:
        raise UserError(f"--loss {spec!r}: cannot read {text!r}; {TERM}")
    weight, name, arguments = match.groups()
    if name not in LOSSES:
        close = get_close_matches(name, LOSSES, n=1)
        raise UserError(
            f"--loss {spec!r}: there is no loss {name!r}{f', did you mean {close[0]}?' if close else ''}; "
            f"there are {', '.join(LOSSES)}"
        )
    own, modifiers = own_keywords(name), modifiers_of(name)
    given: dict[str, float | str | bool] = {}
    for argument in filter(None, re.split(r"\s*,\s*", (arguments or "").strip())):
        key, equals, value = (part.strip() for part in argument.partition("="))
        if not equals or key not in own | modifiers:
            raise UserError(
                f"--loss {spec!r}: {name} has no keyword {key!r}; it has {', '.join(own | modifiers) or 'none'}"
            )
        if key in given:
            raise UserError(f"--loss {spec!r}: {key} stands twice in {name}")
        given[key] = _value(name, key, value, spec)
    keywords = own | ({"beta": beta} if beta is not None and "beta" in own else {})
    keywords |= {key: float(value) for key, value in given.items() if key in own}
    for key, value in keywords.items():
        _check_range(name, key, value, f"--loss {spec!r}: {key}" if key in given or key != "beta" else "--beta")
    changing = {
        key: given[key] for key in modifiers if key in given and (key == "alpha" or given[key] != MODIFIERS[key])
    }
    if changing.get("divergence") == "alpha":
        changing.setdefault("alpha", MODIFIERS["alpha"])
    elif "alpha" in changing:
        raise UserError(f"--loss {spec!r}: alpha in {name} is the coefficient of divergence=alpha, which is not there")
    factor = 1.0 if weight is None else _number(weight, "the weight", spec)
    if not 0 < factor < inf:
        raise UserError(f"--loss {spec!r}: the weight of {name} is {factor:g}, it must be above 0 and finite")
    return Term(factor, name, keywords, changing)


def _value(name: str, key: str, text: str, spec: str) -> float | str | bool:
    """What a keyword is given: a number in its range, or one of its choices."""
    if key not in CHOICES:
        number = _number(text, f"{name}({key}=...)", spec)
        _check_range(name, key, number, f"--loss {spec!r}: {key}")
        return number
    if text not in CHOICES[key]:
        raise UserError(f"--loss {spec!r}: {name}({key}=...) is one of {', '.join(CHOICES[key])}, found {text!r}")
    return {"true": True, "false": False}.get(text, text)


def _check_range(name: str, key: str, value: float, what: str) -> None:
    """Raises UserError, which begins with `what`, for a value that the keyword of this loss cannot have."""
    low, high, with_low, with_high = RANGES.get(f"{name} {key}") or RANGES[key]
    if not (low < value < high or with_low and value == low or with_high and value == high):
        least = f"{'at least' if with_low else 'above'} {low:g} and " if low > -inf else ""
        most = f"{'at most' if with_high else 'below'} {high:g}" if high < inf else "finite"
        raise UserError(f"{what} is {value:g}, it must be {least}{most}")


def _written(value: float | str | bool) -> str:
    """0.2, 3, 1000000, true, js: every digit, so that the spec can be read back, and no sign that it uses otherwise."""
    if isinstance(value, (bool, str)):
        return str(value).lower()
    return format(Decimal(repr(value)), "f").removesuffix(".0")


def _number(text: str, what: str, spec: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--loss {spec!r}: {what} is a number, found {text!r}") from None
