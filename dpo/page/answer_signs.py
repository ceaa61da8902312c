"""Signs of trouble that answers show: functions to a sentence, "" where there is nothing to say.

Each compares what the start and the trained model answer to the same prompts.
"""

import math
import re
from collections.abc import Sequence
from statistics import fmean

from dpo.page.reading import Sample

LOOP = 3  # words and signs in a row
LOOPING = 0.3  # of these, how many were there before in an answer that goes round in circles
# the same few letters six times and more: IIIIII, one word to the above
LETTERS = re.compile(r"([^\W\d_]{1,4}?)\1{5,}")
SOME, MANY = 0.02, 0.1  # of all answers: what is said where it is new, and what is said though it was there before


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
