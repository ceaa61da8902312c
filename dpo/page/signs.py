"""Signs of trouble that curves show, or what was run: functions to a sentence, "" where there is nothing to say.

Each looks at held-out pairs where there are some, since they are the same at every evaluation, else at the last quarter of
the training. None knows what is right for every run: a sign says where to look.
"""

import math
import re
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from dpo.page.digits import MINUS, signed
from dpo.page.reading import Metrics, Run, figure, part

LN_2 = math.log(2)
ENOUGH = 20  # steps below which a curve says nothing
PART = 4  # the first and the last of so many parts of a curve are compared
RISEN = 0.05  # of the loss on held-out pairs, above its lowest
FALLEN = 0.05  # of the log-probability of chosen answers; and a nat at least
GUESSED = 0.9  # of what a guess says; a model that knows anything says less than that
LIKELIHOOD = re.compile(r"\b(sft|orpo|cpo)\b")  # losses that make the chosen answer likelier for its own sake


class Change(NamedTuple):
    """The first value of a metric, and how much was added to it."""

    first: float
    added: float


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the first and of the last part."""
    share = max(1, len(values) // PART)
    return fmean(values[:share]), fmean(values[-share:])


def stuck(metrics: Metrics) -> str:
    """A loss that began at ln 2 and is still there, though the warm-up is over."""
    if _warms_up(metrics):
        return ""
    for name in ("loss", *(name for name in metrics.names() if name.startswith("loss/"))):
        _, values = metrics.curve(name)
        if len(values) < ENOUGH or abs(values[0] - LN_2) > 0.001:
            continue
        if abs((last := _ends(values)[1]) - LN_2) < 0.01:
            return (
                f"The {name} is {last:.4f} after {len(values)} steps, ln 2 still: nothing is learned. "
                "The rate may be too low, or the two answers of a pair alike."
            )
    return ""


def _warms_up(metrics: Metrics) -> bool:
    """Whether the rate still rises, and little can have been learned."""
    _, rates = metrics.curve("learning_rate")
    return bool(rates) and 0 < max(rates) <= rates[-1]


def by_heart(metrics: Metrics) -> str:
    """The loss rises on held-out pairs while it falls in training."""
    steps, held_out = metrics.curve("loss", "held-out")
    _, train = metrics.curve("loss")
    if len(held_out) < 3 or len(train) < ENOUGH:
        return ""
    lowest, (first, last) = min(held_out), _ends(train)
    if held_out[-1] > lowest + RISEN * abs(lowest) and last < first:
        return (
            f"On held-out pairs the loss was lowest at step {steps[held_out.index(lowest)]}, {lowest:.4g}, and rose to "
            f"{held_out[-1]:.4g} while it fell in training: pairs are learned by heart. Stop earlier, or --export best."
        )
    return ""


def collapsing(metrics: Metrics) -> str:
    """The margin grows while the chosen answers become less likely."""
    margin, reward, logp = (_change(metrics, name) for name in ("rewards/margins", "rewards/chosen", "logps/chosen"))
    if margin is None or reward is None or logp is None:
        return ""
    if margin.added > 0 > reward.added and logp.added < -max(1.0, FALLEN * abs(logp.first)):
        return (
            f"The margin grew by {margin.added:.3g} while chosen answers lost {-logp.added:.3g} nats of log π: both "
            "answers of a pair are unlearned, the rejected one faster. Look at what the model says."
        )
    return ""


def _change(metrics: Metrics, name: str) -> Change | None:
    """On held-out pairs, else in training from end to end; None where there are too few values."""
    _, held_out = metrics.curve(name, "held-out")
    if len(held_out) >= 2:
        return Change(held_out[0], held_out[-1] - held_out[0])
    _, train = metrics.curve(name)
    if len(train) < ENOUGH:
        return None
    first, last = _ends(train)
    return Change(first, last - first)


def racing(metrics: Metrics) -> str:
    """The margin doubles on held-out pairs after accuracy has reached its best."""
    steps, accuracy = metrics.curve("rewards/accuracies", "held-out")
    there, margins = metrics.curve("rewards/margins", "held-out")
    if len(accuracy) < 3 or steps != there:
        return ""
    reached = next(place for place, value in enumerate(accuracy) if value >= max(accuracy) - 0.005)
    if margins[reached] > 1 and margins[-1] > 2 * margins[reached]:
        then = "better at step {} than" if accuracy[-1] < max(accuracy) - 0.005 else "as good at step {} as"
        return (
            f"Accuracy was {then.format(steps[reached])} at the end, but the margin went on from "
            f"{margins[reached]:.3g} to {margins[-1]:.3g}: the policy moved away from the reference without ranking better."
        )
    return ""


def below_chance(metrics: Metrics) -> str:
    """Fewer pairs are ranked right than by tossing a coin, by more than chance explains."""
    _, accuracy = metrics.curve("rewards/accuracies", "held-out")
    _, pairs = metrics.curve("pairs", "held-out")
    if len(accuracy) >= 2 and len(pairs) == len(accuracy):
        rate, count, of = accuracy[-1], pairs[-1], "held-out pairs"
    else:
        (_, accuracy), (_, pairs) = metrics.curve("rewards/accuracies"), metrics.curve("pairs")
        if len(accuracy) < ENOUGH or len(pairs) != len(accuracy):
            return ""
        share = len(accuracy) // PART
        rate, count, of = fmean(accuracy[-share:]), sum(pairs[-share:]), "the last pairs trained on"
    if rate < 0.5 - 2 * math.sqrt(0.25 / max(count, 1)):
        return f"Of {of} {rate:.3f} are ranked right, fewer than by chance: chosen and rejected may be swapped in the data."
    return ""


def lengths_differ(metrics: Metrics) -> str:
    """In the data one side is longer by a quarter."""
    found = [metrics.curve(f"length/{side}")[1] for side in ("chosen", "rejected")]
    if min(map(len, found)) < ENOUGH:
        return ""
    chosen, rejected = map(fmean, found)
    if min(chosen, rejected) > 0 and not 0.8 < chosen / rejected < 1.25:
        more = "longer" if chosen > rejected else "shorter"
        return (
            f"Chosen answers have {chosen:.1f} tokens in the data, rejected ones {rejected:.1f}: the policy can win by being "
            f"{more}. data/build.py check says more; dpo_norm, simpo or ld_alpha weigh length less."
        )
    return ""


def exploding(metrics: Metrics) -> str:
    """The gradient has grown tenfold."""
    first, last = _middles(metrics, "grad_norm")
    if last > 10 * first > 0:
        return (
            f"The gradient's norm grew from {first:.3g} to {last:.3g}: the rate is too high for this loss, or beta too."
        )
    return ""


def slowing(metrics: Metrics) -> str:
    """Half as many pairs a second as at the beginning."""
    first, last = _middles(metrics, "pairs_per_second")
    if last < first / 2:
        return (
            f"The machine became slower, from {first:.3g} pairs a second to {last:.3g}: something else takes its time, or it is "
            "too hot. What is learned does not change by that."
        )
    return ""


def _middles(metrics: Metrics, name: str) -> tuple[float, float]:
    """The medians of the first and of the last part of the training, which single steps do not move; 0 for too few steps."""
    _, values = metrics.curve(name)
    share = len(values) // PART
    return (median(values[:share]), median(values[-share:])) if len(values) >= ENOUGH else (0.0, 0.0)


# what was run


def guessing(run: Run) -> str:
    """log π a token began as that of a model that knows nothing, minus the log of its vocabulary; and it is so still, or the
    loss only compares."""
    size = figure(part(run.record, "settings"), "vocab_size")
    first, last = _per_token(run.metrics)
    if size is None or size < 2:
        return ""
    guess = -math.log(size)
    if not first <= GUESSED * guess:
        return ""
    still = last <= GUESSED * guess and len(run.metrics.curve("loss")[0]) >= ENOUGH and not _warms_up(run.metrics)
    if not still and LIKELIHOOD.search(_loss(run.record)):
        return ""
    return (
        f"log π a token is {signed(first)} at the start{f', {signed(last)} now' * still}: that of a model that guesses, which "
        f"is -ln {size:,.0f} = {signed(guess)}. So are random weights, or a model with the tokenizer of another. --loss sft "
        "teaches answers, DPO does not."
    ).replace("-ln", f"{MINUS}ln")


def _per_token(metrics: Metrics) -> tuple[float, float]:
    """log π of chosen answers by their tokens at the first and the last evaluation, else at the first and the last steps; 0
    where it is not known."""
    for split in ("held-out", "train"):
        _, logps = metrics.curve("logps/chosen", split)
        _, lengths = metrics.curve("length/chosen", split)
        if logps and len(logps) == len(lengths) and min(lengths) > 0:
            return logps[0] / lengths[0], logps[-1] / lengths[-1]
    return 0.0, 0.0


def untaught(record: dict) -> str:
    """A start from random weights, with a loss that only compares."""
    loss = _loss(record)
    if loss and str(part(record, "flags").get("init")).startswith("random:") and not LIKELIHOOD.search(loss):
        return (
            "It began at random weights, with a loss without a term of likelihood: such a loss moves probability among "
            "answers that a model can already give, and teaches none. Train with --loss sft first, or add + 0.2*sft."
        )
    return ""


def _loss(record: dict) -> str:
    return str(part(record, "settings").get("loss") or part(record, "flags").get("loss") or "")
