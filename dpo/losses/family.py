"""All losses by name, and what is to be known of each: which modifiers it takes, what it needs, and its line in the table.

A new loss is a function of Scores in one of the files beside this one, whose keywords are its hyperparameters and whose
docstring begins with its formula and its source, and its name in LOSSES.
"""

import inspect
from collections.abc import Callable

from torch import Tensor

from dpo.losses.anchored import apo_down, apo_zero, bco, dpop, nca, sppo
from dpo.losses.coupled import aot, aot_unpaired, kto
from dpo.losses.free import cpo, orpo, sft, simpo
from dpo.losses.modifiers import DIVERGENCES, desensitized, diverging, weighted, widened
from dpo.losses.pairwise import cdpo, discopop, dpo, dpo_norm, exo, hinge, ipo, robust

LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        *(dpo, dpo_norm, cdpo, robust, ipo, hinge, exo, discopop),
        *(nca, bco, sppo, apo_zero, apo_down, dpop),
        *(aot, aot_unpaired, kto),
        *(sft, simpo, orpo, cpo),
    )
}
PER_TOKEN = {"sft"}  # divided by the answer tokens of the whole step; all others by its pairs
NO_REFERENCE = {"sft", "simpo", "orpo", "cpo"}  # never compute one
ONE_ANSWER = {"sft"}  # content with `chosen` alone
COUPLED = {"aot", "aot_unpaired", "kto"}  # must see the whole step at once

# keyword: its default, where it changes nothing
MODIFIERS: dict[str, float | str | bool] = {
    "divergence": "reverse_kl",
    "alpha": 0.5,
    "ld_alpha": 1.0,
    "margin": False,
    "wpo": False,
}
CHOICES = {"divergence": tuple(DIVERGENCES), "margin": ("true", "false"), "wpo": ("true", "false")}
# Another divergence needs a difference, in which the divergence's constant cancels; a margin a sigmoid of it, or a hinge
DIVERGING = {"dpo", "dpo_norm", "cdpo", "robust", "ipo", "hinge", "exo", "discopop"}
TAKES = {
    "divergence": DIVERGING,
    "alpha": DIVERGING,
    "ld_alpha": set(LOSSES) - NO_REFERENCE,
    "margin": {"dpo", "cdpo", "robust", "hinge"},
    "wpo": set(LOSSES) - ONE_ANSWER - COUPLED,
}

EXAMPLES = (
    ("dpo(divergence=js)", "divergence", diverging),
    ("dpo(ld_alpha=0.5)", "ld_alpha", desensitized),
    ("dpo(margin=true)", "margin", widened),
    ("dpo(wpo=true)", "wpo", weighted),
)


def own_keywords(name: str) -> dict[str, float]:
    """The hyperparameters of a loss with their defaults."""
    return {p.name: p.default for p in list(inspect.signature(LOSSES[name]).parameters.values())[1:]}


def modifiers_of(name: str) -> dict[str, float | str | bool]:
    """The modifiers that a loss takes, with the values at which they change nothing."""
    own = own_keywords(name)
    return {key: value for key, value in MODIFIERS.items() if name in TAKES[key] and key not in own}


def described(function: Callable) -> tuple[str, str]:
    """Formula and source, the first two paragraphs of the docstring of a loss or a modifier."""
    formula, source = (inspect.getdoc(function) or "").split("\n\n")[:2]
    return " ".join(formula.split()), " ".join(source.split())


def table() -> str:
    """The family as two tables in Markdown, losses and modifiers: `--loss list`, and docs/losses.md."""
    lines = ["| loss | formula, per pair | source | keywords | reference |", "|---|---|---|---|---|"]
    for name, loss in LOSSES.items():
        formula, source = described(loss)
        keywords = ", ".join(f"{key}={value:g}" for key, value in own_keywords(name).items())
        reference = "no" if name in NO_REFERENCE else "yes"
        lines.append(f"| {name} | `{formula}` | {source} | {keywords} | {reference} |")
    lines += ["", "| modifier | what it changes | source | of which losses |", "|---|---|---|---|"]
    for example, keyword, change in EXAMPLES:
        formula, source = described(change)
        takes = [name for name in LOSSES if name in TAKES[keyword]]
        rest = [name for name in LOSSES if name not in TAKES[keyword]]
        which = ", ".join(takes) if len(takes) <= len(rest) else f"all but {', '.join(rest)}"
        lines.append(f"| `{example}` | {formula} | {source} | {which} |")
    return "\n".join(lines)
