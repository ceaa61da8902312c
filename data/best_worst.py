"""From several scored answers to a pair: the best is chosen over the worst.

    "5" 1.0     "6" 0.0     " " 0.0     "5 and then" 1.0, cut off       chosen "5", rejected "6", margin 1.0

An answer that was cut off before its end is never chosen: training puts end-of-text behind it, and so would teach to stop
in the middle. It is rejected only where no whole answer is as bad. A blank answer is in no pair, since no reader of pairs
would have it.
"""

import math
from collections.abc import Sequence
from statistics import fmean, quantiles
from typing import Any, NamedTuple

from data.candidates import row_with
from data.failures import Failures
from data.pairs import Pair
from data.scores import Score
from data.tally import summary
from gpt.answers import Answer
from gpt.command import UserError

HEAD = ("prompt", "instruction", "input", "output", "family", "group")  # the fields of a row that belong to its prompt
ALIKE, CLOSE = "all answers score the same", "a gap below --min-gap"
UNKNOWN = "an answer whose score is not known"
UNREADABLE = "answers that no row can hold"
CUT, BLANK, EQUAL = "no answer that ended", "fewer than two answers that are not blank", "best and worst are one text"


class Prompt(NamedTuple):
    """What is asked: a pair whose answers do not matter, and the fields that rows of it keep."""

    pair: Pair
    head: dict


class Preferences(NamedTuple):
    """What came of the answers to some prompts."""

    rows: list[dict]  # of the pairs
    dropped: dict[str, list[int]]  # why a prompt gave none -> its rows
    scores: list[list[float]]  # of all answers
    failures: Failures  # why some of them are not known


def best_and_worst(answers: Sequence[Answer], scores: Sequence[float]) -> tuple[int, int] | str:
    """The numbers of the best and of the worst answer, of equals the first; or why there are no two to compare."""
    said = [k for k, given in enumerate(answers) if given.text.strip()]
    ended = [k for k in said if answers[k].stopped]
    if len(said) < 2:
        return BLANK
    if not ended:
        return CUT
    best = max(ended, key=lambda k: scores[k])
    worst = min(said, key=lambda k: (scores[k], not answers[k].stopped))
    if not scores[best] > scores[worst]:
        return ALIKE
    return EQUAL if answers[best].text == answers[worst].text else (best, worst)


def preferences(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]], score: Score, min_gap: float = 0.0
) -> Preferences:
    """The pairs of these answers whose scores are at least `min_gap` apart, that being each one's margin.

    A prompt with a score that is not known (NaN) gives none. Raises UserError for an infinite one, naming the row, and
    what `score` raises.
    """
    failures = Failures()
    found = Preferences([], {}, score([prompt.pair for prompt in prompts], answers, failures), failures)
    for (pair, head), some, scores in zip(prompts, answers, found.scores):
        if any(map(math.isinf, scores)):
            raise UserError(f"row {pair.row}: an answer's score is not finite ({scores})")
        picked = UNKNOWN if any(map(math.isnan, scores)) else best_and_worst(some, scores)
        if not isinstance(picked, str):
            best, worst = picked
            gap = scores[best] - scores[worst]
            if gap >= min_gap:
                new = {"chosen": some[best].text, "rejected": some[worst].text, "margin": gap}
                if row := row_with(head, pair.prompt, new):
                    found.rows.append(row)
                    continue
            picked = CLOSE if gap < min_gap else UNREADABLE
        found.dropped.setdefault(picked, []).append(pair.row)
    return found


def no_pair(found: Preferences) -> UserError:
    """That no pair came of these answers, why, and what to do."""
    count = len(found.scores)
    if len(found.dropped.get(UNKNOWN, [])) == count:
        why = f"failed: {found.failures}" if found.failures else "the score is NaN each time"
        return UserError(f"no pair came of {count:,} prompts, as no score is known ({why}); the answers are kept")
    failed = f"; failed: {found.failures}" if found.failures else ""
    why = summary(found.dropped, "") + failed
    return UserError(f"no pair came of {count:,} prompts ({why}); draw more --samples, at a higher --temperature")


def figures(answers: Sequence[Sequence[Answer]], found: Preferences) -> dict[str, Any]:
    """What one wants to know of answers and pairs, in numbers; None for a mean of scores where none is known."""
    every = [given for some in answers for given in some]
    known = [scores for scores in found.scores if not any(map(math.isnan, scores))]
    mean = fmean if known else lambda values: None
    return {
        "prompts": len(answers),
        "answers": len(every),
        "distinct": fmean(len({given.text for given in some}) for some in answers),
        "cut off": fmean(not given.stopped for given in every),
        "blank": sum(not given.text.strip() for given in every),
        "score": mean(value for scores in known for value in scores),
        "best": mean(map(max, known)),
        "worst": mean(map(min, known)),
        "pairs": len(found.rows),
        "dropped": {why: len(rows) for why, rows in found.dropped.items()},
        "failed": found.failures.counts,
    }


def report(answers: Sequence[Sequence[Answer]], found: Preferences, left: dict[str, int]) -> str:
    """`figures` as text, with the gaps of the pairs, of which there is one. left: prompts that were not asked, by reason."""
    f = figures(answers, found)
    aside = ", ".join(f"{count:,} {why}" for why, count in left.items() if count)
    gaps = sorted(row["margin"] for row in found.rows)
    cuts = [gaps[0], *quantiles(gaps, n=4, method="inclusive"), gaps[-1]] if len(gaps) > 1 else gaps
    lines = {
        "prompts": f"{f['prompts']:,} answered" + (f"; left aside: {aside}" if aside else ""),
        "answers": f"{f['answers']:,}, {f['distinct']:.2f} distinct a prompt; {f['cut off']:.1%} cut off, {f['blank']:,} blank",
        "score": f"mean {f['score']:.4g}; of each prompt's best {f['best']:.4g}, of its worst {f['worst']:.4g}",
        "pairs": f"{f['pairs']:,} kept, of {f['pairs'] / f['prompts']:.1%} of the prompts",
        "no pair": summary(found.dropped, "") or "none",
        "failed": str(found.failures),
        "gap": "least, quarters and most: " + ", ".join(f"{gap:.4g}" for gap in cuts),
    }
    return "\n".join(f"{name:9}{text}" for name, text in lines.items() if text)
