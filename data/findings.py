"""What a census says, line by line, and which of it asks for a decision.

A line is marked where something is wrong whatever the purpose (the same pair twice, a contradiction), or where more of the
pairs have it than is usual (LOPSIDED, EASY, and what data/census.py tolerates of each oddity).
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.census import KEPT, ODDITIES, Census, on_both_sides
from data.confidence import wilson
from data.features import FEWEST
from data.normal import NEARLY
from data.sides import firsts
from data.tally import Tally, number_of, rows_listed, summary
from gpt.untrusted import printing

LOPSIDED = 0.6  # the accuracy of "the longer answer is better", or of "the shorter", that is surely exceeded
EASY = 0.7  # the same of all trivial features


class Line(NamedTuple):
    """One line of the report, the same as figures for a machine, and what is marked below it."""

    name: str
    text: str
    figures: dict
    marks: Sequence[str] = ()


def findings(census: Census, dropped: dict[str, list[int]], held_out: float, max_length: int) -> list[Line]:
    """Every line of the report. dropped: why -> rows; held_out: a fraction; max_length: tokens of prompt and longer answer."""
    lines = [_pairs(census), _dropped(dropped), _prompts(census), *_repeated(census), _split(census, held_out)]
    lines += [*_names(census), *_margins(census)]
    if census.tokenizer and len(census):
        lines += _tokens(census, max_length)
    lines += [*_separable(census), *_odd(census)]
    return lines


def percent(fraction: float) -> str:
    """0.5114 -> '51.1 %'"""
    return f"{100 * fraction:.1f} %"


def _pairs(census: Census) -> Line:
    one = census.noted["one answer"]
    text = f"{len(census):,}" + (f", of them {one.count:,} with one answer" if one.count else "")
    marks = []
    if 0 < one.count < len(census):
        marks.append(f"{one}: losses that compare answers refuse these")
    return Line("pairs", text, {"count": len(census), "one answer": _noted(one)}, marks)


def _noted(noted: Tally) -> dict:
    return {"pairs": noted.count, "rows": noted.rows}


def _dropped(dropped: dict[str, list[int]]) -> Line:
    figures = {why: {"pairs": len(rows), "rows": rows[:KEPT]} for why, rows in dropped.items()}
    marks = ["nothing is learned from these; training leaves them out as well"] if dropped else []
    return Line("dropped", summary(dropped) or "none", figures, marks)


def _prompts(census: Census) -> Line:
    _, counts = np.unique(np.asarray(census.groups.prompts), return_counts=True)
    repeated, most = len(census) - len(counts), int(counts.max(initial=0))
    text = f"{len(counts):,} distinct, {repeated:,} repeated" + (f"; one has {most:,} pairs" if most > 2 else "")
    return Line("prompts", text, {"distinct": len(counts), "repeated": repeated, "most": most})


def _repeated(census: Census) -> list[Line]:
    """Whole pairs that came before, letter by letter or nearly, and pairs that came the other way round."""
    place, rows = np.arange(len(census)), census.rows
    again = firsts(census.keys()) != place
    nearly = (firsts(np.asarray(census.near)) != place) & ~again
    figures = {"whole pairs": _rows(rows[again]), f"but for {NEARLY}": _rows(rows[nearly])}
    text = f"{number_of(again.sum(), 'whole pair')}, {nearly.sum():,} more but for {NEARLY}"
    marks, both = [], rows[again | nearly]
    if len(both):
        marks.append(f"{rows_listed(both)}: what was there before counts twice; keep one of each")
    duplicates, marks = Line("duplicates", text, figures, marks), []

    swapped = _rows(census.swapped())
    text = (
        f"{number_of(swapped['pairs'], 'pair')} with the answers of one before exchanged"
        if swapped["pairs"]
        else "none"
    )
    if swapped["pairs"]:
        listed = rows_listed(swapped["rows"], swapped["pairs"])
        marks.append(f"{listed}: what is chosen in one is rejected in the other; only one can be right")
    return [duplicates, Line("contradictions", text, swapped, marks)]


def _rows(rows: np.ndarray) -> dict:
    return {"pairs": len(rows), "rows": rows[:KEPT].tolist()}


def _split(census: Census, held_out: float) -> Line:
    """Which side each pair is on, as training has it; a prompt is on one alone, unless its pairs have several groups."""
    held, rows = np.asarray(census.sides) / 2**64 < held_out, census.rows
    both, near = on_both_sides(np.asarray(census.groups.prompts), held), np.asarray(census.near_prompts)
    nearly = on_both_sides(near, held)
    nearly = nearly[~np.isin(near[nearly], near[both])]
    grouped = len(np.unique(np.asarray(census.groups.groups))) > 1
    text = (
        f"{(~held).sum():,} to train on, {held.sum():,} held out (--held-out {held_out:g}); on both sides: "
        f"{number_of(len(both), 'prompt')}{'' if grouped else ', by construction'}, {len(nearly):,} but for {NEARLY}"
    )
    marks = []
    if torn := census.groups.torn():
        where = " and ".join(str(rows[place]) for place in torn)
        marks.append(f"rows {where}: one prompt in two groups, which training refuses; give it one group")
    if held_out and len(rows) and not held.any():
        marks.append(
            "none is held out, so nothing will tell what was learned from what was memorized; raise --held-out"
        )
    if len(rows) and held.all():
        marks.append("none is left to train on; lower --held-out")
    if len(nearly):
        marks.append(f"{rows_listed(rows[nearly])}: held-out loss is too good where such a prompt was learned")
    figures = {"train": int((~held).sum()), "held out": int(held.sum())}
    return Line("split", text, figures | {"both sides": _rows(rows[both]), "nearly": _rows(rows[nearly])}, marks)


def _names(census: Census) -> list[Line]:
    lines = []
    if census.families:
        named = ", ".join(f"{printing(name)} {count:,}" for name, count in census.families.most_common(30))
        lines.append(Line("families", named, dict(census.families)))
    if census.plain:
        text = (
            f"is the chosen answer in {census.plain['chosen']:,} rows, the rejected one in {census.plain['rejected']:,}"
        )
        lines.append(Line("output", text, {side: census.plain[side] for side in ("chosen", "rejected")}))
    lines.append(Line("scripts", _fractions(census.scripts, len(census)), dict(census.scripts.most_common())))
    return lines


def _fractions(counts: Counter, total: int) -> str:
    """{"Latin": 98, "Hangul": 2} -> 'Latin 98.0 %, Hangul 2.0 %'"""
    return ", ".join(f"{name} {percent(count / total)}" for name, count in counts.most_common(8)) + " of the answers"


def _margins(census: Census) -> list[Line]:
    margins, rows = np.asarray(census.margins), census.rows
    known = ~np.isnan(margins)
    if not known.any():
        return []
    low, middle, high = np.quantile(margins[known], (0, 0.5, 1)).tolist()
    missing, wrong = rows[~known], rows[known & (margins <= 0)]
    marks = []
    if len(missing):
        marks.append(f"{rows_listed(missing)}: no margin; losses with margin=true want one in every row")
    if len(wrong):
        marks.append(f"{rows_listed(wrong)}: a margin of 0 or less says that the chosen answer is not better")
    figures = {"least": low, "median": middle, "most": high, "missing": _rows(missing), "not above 0": _rows(wrong)}
    return [Line("margins", f"{known.sum():,}, from {low:g} to {high:g}, median {middle:g}", figures, marks)]


def _tokens(census: Census, max_length: int) -> list[Line]:
    """Lengths, those that do not fit, and whether the longer answer is the better one."""
    lines, (rows, lengths) = [], census.measured()  # (pairs,), (pairs, 3)
    if len(lengths) < len(census):
        text = f"tokens, what is told of them, and 'separable' are of {len(lengths):,} pairs, chosen by a hash; all else of all"
        lines.append(Line("sample", text, {"pairs": len(lengths)}))
    for name, side in zip(("prompt", "chosen", "rejected"), lengths.T):
        if (side := side[side > 0]).size:
            middle, most = np.median(side), np.quantile(side, 0.95, method="inverted_cdf")
            text = f"median {middle:g}, 95 % at most {most}, longest {side.max()}, {side.sum():,} in all"
            figures = {"median": float(middle), "95 %": int(most), "longest": int(side.max()), "total": int(side.sum())}
            lines.append(Line(f"{name} tokens", text, figures))
    answers = lengths[:, 1:].max(1)
    over, room = lengths[:, 0] + answers > max_length, answers < max_length
    marks, cut, out = [], rows[over & room], rows[~room]
    if len(cut):
        marks.append(f"{rows_listed(cut)}: {number_of(len(cut), 'prompt')} would be cut from the left")
    if len(out):
        marks.append(
            f"{rows_listed(out)}: {number_of(len(out), 'pair')} would be left out, an answer alone is too long"
        )
    text = f"{number_of(over.sum(), 'pair')} of more than {max_length} tokens (--max-length)"
    figures = {"max length": max_length, "prompt cut": _rows(cut), "left out": _rows(out)}
    lines.append(Line("too long", text, figures, marks))
    if len(both := lengths[lengths[:, 2] > 0]):
        lines.append(_length_bias(both[:, 1] - both[:, 2]))
    return lines


def _length_bias(more: np.ndarray) -> Line:
    """more (pairs,): by how many tokens chosen is longer than rejected."""
    right, count = float((more > 0).sum() + (more == 0).sum() / 2), len(more)
    low, high = wilson(right / count, count)
    text = f"'the longer answer is better' is right for {percent(right / count)} of the pairs ({_range(low, high)})"
    advice = "a model may learn length alone; even it out, or see ld_alpha, dpo_norm and simpo among the losses"
    figures = {"accuracy": right / count, "interval": [low, high], "pairs": count}
    return Line("length bias", text, figures, [advice] if low > LOPSIDED or high < 1 - LOPSIDED else [])


def _range(low: float, high: float) -> str:
    return f"95 % interval {percent(low)} to {percent(high)}"


def _separable(census: Census) -> list[Line]:
    if census.noted["one answer"].count == len(census):
        return []
    found = census.separability()
    if not found:
        return [Line("separable", f"not known: fewer than {FEWEST} pairs in one half of the prompts", {})]
    told = ", ".join(f"{name}, alone {percent(accuracy)}" for name, accuracy in found.strongest)
    text = (
        f"trivial features tell {percent(found.accuracy)} of {found.pairs:,} held-out pairs apart ({_range(*found.interval)}); "
        f"the strongest: {told or 'none'}"
    )
    advice = "a model can learn these alone; where they are not what is preferred, write pairs that have them in common"
    return [Line("separable", text, found._asdict(), [advice] if found.interval[0] > EASY else [])]


def _odd(census: Census) -> list[Line]:
    """A line for each oddity that was seen, and one for all that were not."""
    lines = []
    for name, noted in census.noted.items():
        what, tolerated, advice = ODDITIES[name]
        if not noted.count or name == "one answer":
            continue
        which = f": {', '.join(f'{printing(token)} {n:,}' for token, n in census.special.most_common(8))}"
        text = f"{number_of(noted.count, 'pair')} with {what}{which if name == 'special tokens' else ''}"
        is_much = noted.count > tolerated * len(census)
        lines.append(
            Line(
                name, text if is_much else f"{text} ({noted})", _noted(noted), [f"{noted}: {advice}"] if is_much else []
            )
        )
    unseen = [name for name, noted in census.noted.items() if not noted.count and name != "one answer"]
    if unseen:
        lines.append(Line("no pair has", "; ".join(ODDITIES[name].what for name in unseen), {"names": unseen}))
    return lines
