"""Which charts a report has: of which metrics, how each is to be read, and which signs of trouble it can show."""

from collections.abc import Callable
from typing import NamedTuple

from dpo.page import answer_signs, signs
from dpo.page.reading import Metrics, Run

TERMS = 8  # colours of terms of a loss, those of runs
Sign = Callable[[Metrics], str]  # what is wrong, in a sentence; "" where nothing is


class Line(NamedTuple):
    """A metric as a curve of a chart."""

    metric: str
    label: str = ""
    color: str = "ink"
    noisy: bool = True  # whether its mean over some steps says more than each of them
    thin: bool = False  # where several runs are drawn, whose colours tell the runs apart


class Chart(NamedTuple):
    """name: its id. unit: of its values. reading: how to read it. warning: what trouble looks like, from within a sentence;
    `signs` look for it."""

    name: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    reading: str
    warning: str = ""
    signs: tuple[Sign, ...] = ()
    level: float | None = None  # a line to compare with
    note: str = ""  # what it says beside that line
    least: float = 0.0  # what its axis spans at least, so that rounding is no curve
    machine: bool = False  # whether it tells of the machine, and not of the model


CHOSEN, REJECTED = "chosen", "rejected"
BY_HEART = "it rises on held-out pairs while it falls in training, pairs are learned by heart."
# How a loss is to be read that begins elsewhere than at ln 2
ELSEWHERE = ("It falls from where it began.", f"it does not fall, nothing is learned; or {BY_HEART}")


def _both(metric: str) -> tuple[Line, ...]:
    return Line(f"{metric}/chosen", "chosen", CHOSEN), Line(f"{metric}/rejected", "rejected", REJECTED, thin=True)


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "nats",
        (Line("loss"),),
        "It falls from where it began. DPO's own begins at ln 2 = 0.693, where both answers of a pair have gained as much.",
        f"it stays at ln 2, nothing is learned; or {BY_HEART}",
        (signs.stuck, signs.by_heart),
        signs.LN_2,
        "ln 2",
        0.01,
    ),
    Chart(
        "rewards",
        "Rewards",
        "nats × beta",
        _both("rewards"),
        "How much likelier an answer became than it was to the reference. The loss sees only the gap between the two.",
        "both fall, the rejected one faster: the gap grows while good answers are unlearned. A term of likelihood "
        "(+ 0.2*sft), a higher beta or a lower rate holds them.",
        (signs.collapsing,),
        0.0,
        least=0.001,
    ),
    Chart(
        "margins",
        "Margin",
        "nats × beta",
        (Line("rewards/margins"),),
        "The gap: the chosen reward less the rejected one. It grows from 0.",
        "it goes on growing for long after accuracy has reached its end: the policy only moves further from the reference.",
        (signs.racing,),
        0.0,
        least=0.001,
    ),
    Chart(
        "accuracy",
        "Accuracy",
        "share of pairs",
        (Line("rewards/accuracies"),),
        "Of all pairs, how many have the larger reward at the chosen answer; before the first update one half, all being ties.",
        "it is below one half: pairs are ranked the wrong way round, or their sides were swapped.",
        (signs.below_chance,),
        0.5,
        "chance",
        0.1,
    ),
    Chart(
        "logps",
        "log π of an answer",
        "nats",
        _both("logps"),
        "How likely the policy itself finds the answers, end-of-text included. In training it jumps with the answers of each "
        "step; held-out pairs are the same every time. That the chosen one falls a little is usual with DPO.",
        "the chosen answers become much less likely than they were: probability went to answers that nobody compared.",
        (signs.collapsing,),
    ),
    Chart(
        "length",
        "Length in the data",
        "tokens",
        _both("length"),
        "Of the pairs, not of what the model writes. Sums of log-probabilities reward length where one side is longer.",
        "chosen answers are much longer or shorter than rejected ones: length is then learned before anything else.",
        (signs.lengths_differ,),
    ),
    Chart(
        "grad-norm",
        "Gradient",
        "norm, before clipping",
        (Line("grad_norm"),),
        "It is largest early and shrinks as pairs are told apart.",
        "it grows tenfold and stays there, or spikes: the rate is too high, or some pairs are broken.",
        (signs.exploding,),
    ),
    Chart(
        "rate",
        "Learning rate",
        "rate",
        (Line("learning_rate", noisy=False),),
        "It rises over the warm-up, then half a cosine takes it down to 0. Where it ends above, the run was stopped, or goes on.",
    ),
    Chart(
        "speed",
        "Speed",
        "pairs a second",
        (Line("pairs_per_second"),),
        "Of all processes together, evaluations and checkpoints left out.",
        "it falls to half and stays there: the machine has other work, or is too hot.",
        (signs.slowing,),
        machine=True,
    ),
)


def charts_of(metrics: list[Metrics]) -> list[Chart]:
    """The charts of which some of these runs have a curve; behind the loss its terms, where it is a sum.

    Of ln 2 speak those alone in which a curve begins there.
    """
    there = {name for one in metrics for name in one.names()}
    found = [one._replace(lines=tuple(line for line in one.lines if line.metric in there)) for one in CHARTS]
    found = [one for one in found if one.lines]
    terms = sorted(name for name in there if name.startswith("loss/"))
    if terms and len(metrics) == 1:
        lines = tuple(
            Line(name, name.removeprefix("loss/"), f"run-{place % TERMS}") for place, name in enumerate(terms)
        )
        reading = "Each before its weight. Where one falls while another rises, the weights decide between them."
        found.insert(
            1, Chart("terms", "Terms of the loss", "nats", lines, reading, level=signs.LN_2, note="ln 2", least=0.01)
        )
    return [_without_ln_2(one) if one.note == "ln 2" and not _begins_at_ln_2(one, metrics) else one for one in found]


def _begins_at_ln_2(chart: Chart, metrics: list[Metrics]) -> bool:
    firsts = [values[0] for one in metrics for line in chart.lines if (values := one.curve(line.metric)[1])]
    return any(abs(first - signs.LN_2) < 0.01 for first in firsts)


def _without_ln_2(chart: Chart) -> Chart:
    chart = chart._replace(level=None, note="")
    return chart._replace(reading=ELSEWHERE[0], warning=ELSEWHERE[1]) if chart.name == "loss" else chart


def signs_of(run: Run) -> dict[str, list[str]]:
    """Of each sign of trouble that there is the sentence, and where it is seen: {"sentence": ["rewards", "logps"]}."""
    found = {sentence: ["in-full"]} if (sentence := signs.untaught(run.record)) else {}
    found |= {sentence: ["logps"]} if (sentence := signs.guessing(run)) else {}
    found |= {sentence: ["answers"] for sign in answer_signs.OF_ANSWERS if (sentence := sign(run.samples))}
    for chart in charts_of([run.metrics]):
        for sign in chart.signs:
            if sentence := sign(run.metrics):
                found.setdefault(sentence, []).append(chart.name)
    return found
