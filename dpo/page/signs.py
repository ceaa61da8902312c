"""Signs of trouble that curves and answers show: functions to a sentence, "" where there is nothing to say.

Each looks at held-out pairs where there are some, since they are the same at every evaluation, else at the last quarter of
the training. None knows what is right for every run: a sign says where to look.
"""

import math
import re
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from dpo.page.reading import Metrics, Sample, part

LN_2 = math.log(2)
ENOUGH = 20  # steps below which a curve says nothing
PART = 4  # the first and the last of so many parts of a curve are compared
RISEN = 0.05  # of the loss on held-out pairs, above its lowest
FALLEN = 0.05  # of the log-probability of chosen answers; and a nat at least
LOOP = 3  # words and signs in a row
LOOPING = 0.3  # of these, how many were there before in an answer that goes round in circles
LETTERS = re.compile(
    r"([^\W\d_]{1,4}?)\1{5,}"
)  # the same few letters six times and more: IIIIII, one word to the above
SOME, MANY = 0.02, 0.1  # of all answers: what is said where it is new, and what is said though it was there before
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
    _, rates = metrics.curve("learning_rate")
    if rates and 0 < max(rates) <= rates[-1]:
        return ""
    for name in ("loss", *(name for name in metrics.names() if name.startswith("loss/"))):
        _, values = metrics.curve(name)
        if len(values) < ENOUGH or abs(values[0] - LN_2) > 0.001:
            continue
        if (last := _ends(values)[1]) > LN_2 - 0.01:
            return (
                f"The {name} is {last:.4f} after {len(values)} steps, ln 2 still: nothing is learned. "
                "The rate may be too low, or the two answers of a pair alike."
            )
    return ""


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
    """The margin doubles on held-out pairs after accuracy has reached its end."""
    steps, accuracy = metrics.curve("rewards/accuracies", "held-out")
    there, margins = metrics.curve("rewards/margins", "held-out")
    if len(accuracy) < 3 or steps != there:
        return ""
    reached = next(place for place, value in enumerate(accuracy) if value >= max(accuracy) - 0.005)
    if margins[reached] > 1 and margins[-1] > 2 * margins[reached]:
        return (
            f"Accuracy was as good at step {steps[reached]} as at the end, but the margin went on from "
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
    return (
        f"From {first:.3g} pairs a second to {last:.3g}: something else takes the machine's time."
        if last < first / 2
        else ""
    )


def _middles(metrics: Metrics, name: str) -> tuple[float, float]:
    """The medians of the first and of the last part of the training, which single steps do not move; 0 for too few steps."""
    _, values = metrics.curve(name)
    share = len(values) // PART
    return (median(values[:share]), median(values[-share:])) if len(values) >= ENOUGH else (0.0, 0.0)


# what was run


def untaught(record: dict) -> str:
    """A start from random weights, with a loss that only compares."""
    flags, settings = part(record, "flags"), part(record, "settings")
    loss = str(settings.get("loss") or flags.get("loss") or "")
    if loss and str(flags.get("init")).startswith("random:") and not LIKELIHOOD.search(loss):
        return (
            "It began at random weights, with a loss without a term of likelihood: such a loss moves probability among "
            "answers that a model can already give, and teaches none. Train with --loss sft first, or add + 0.2*sft."
        )
    return ""


# answers


def is_looping(text: str) -> bool:
    """Whether an answer goes round in circles: of its runs of LOOP words, how many stood in it before (seq-rep-n of
    Welleck et al. 2019, arXiv 1908.04319); or of its letters, how many are the same few again and again."""
    if sum(len(found[0]) for found in LETTERS.finditer(text)) > LOOPING * len(text):
        return True
    words = re.findall(r"\w+|[^\w\s]", text)
    runs = [tuple(words[i : i + LOOP]) for i in range(len(words) - LOOP + 1)]
    return len(runs) > LOOP and 1 - len(set(runs)) / len(runs) > LOOPING


def fewer_correct(samples: Sequence[Sample]) -> str:
    """More prompts became wrong than right, by more than two standard errors of a coin that is tossed for each."""
    found = [sample.correct for sample in samples if sample.correct is not None]
    wrong, right = found.count((True, False)), found.count((False, True))
    if wrong - right > 2 * math.sqrt(wrong + right):
        before, after = (fmean(side) for side in zip(*found))
        return (
            f"Correct answers fell from {before:.3f} to {after:.3f}: {wrong:,} prompts became wrong, {right:,} right. "
            "What was learned cost what was known."
        )
    return ""


def repeating(samples: Sequence[Sample]) -> str:
    """More answers go round in circles than before, or many did and do."""
    before, after = (sum(map(is_looping, texts)) for texts in ([s.before for s in samples], [s.after for s in samples]))
    if after >= max(2, SOME * len(samples)) and after > 2 * before:
        return f"{after:,} of {len(samples):,} answers repeat themselves, {before:,} did before."
    if after >= max(2, MANY * len(samples)):
        return (
            f"{after:,} of {len(samples):,} answers repeat themselves; so did {before:,} before, as the start "
            "had it already."
        )
    return ""


def drifting(samples: Sequence[Sample]) -> str:
    """Answers are half as long again as before, or more; or half as long."""
    found = [sample.length for sample in samples if sample.length is not None]
    if not found:
        return ""
    before, after = (fmean(lengths) for lengths in zip(*found))
    if before > 0 and not 0.5 < after / before < 1.5:
        what = "longer" if after > before else "shorter"
        return f"Answers became {what}: {before:.1f} tokens before, {after:.1f} after. Is that better, or only {what}?"
    return ""


def not_ending(samples: Sequence[Sample]) -> str:
    """Answers that no longer end, or of which most do not, as they did not before."""
    found = [sample.stopped for sample in samples if sample.stopped is not None]
    before, after = (sum(not ended for ended in side) for side in zip(*found)) if found else (0, 0)
    if after < max(2, SOME * len(found)) or after <= min(2 * before, len(found) / 2):
        return ""
    if after > 2 * before:
        return f"{after:,} of {len(found):,} answers did not end within the tokens allowed, {before:,} did not before."
    return (
        f"{after:,} of {len(found):,} answers did not end within the tokens allowed; {before:,} did not before: the start "
        "hardly knew how to end one, which --loss sft teaches."
    )


OF_ANSWERS = (fewer_correct, repeating, not_ending, drifting)
