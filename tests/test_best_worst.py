"""data/best_worst.py: best against worst found another way, by looking at every two answers; reasons and figures counted."""

import json
import math
from itertools import permutations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.best_worst import (
    ALIKE,
    BLANK,
    CLOSE,
    CUT,
    EQUAL,
    UNKNOWN,
    Prompt,
    best_and_worst,
    figures,
    no_pair,
    preferences,
    report,
)
from data.endpoint import Failed
from data.failures import Failures
from data.pairs import Pair, read_pairs, teaches_nothing, write_rows
from data.scores import parse_score
from gpt.answers import Answer
from gpt.command import UserError

ANSWERS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c d", "", " "]), st.booleans(), st.sampled_from([-1.5, 0.0, 0.25, 1.0])),
    min_size=1,
    max_size=7,
)


def given_answers(drawn) -> tuple[list[Answer], list[float]]:
    return [Answer(text, stopped, len(text) + 1) for text, stopped, _ in drawn], [value for *_, value in drawn]


def prompts(count: int) -> list[Prompt]:
    heads = [{"instruction": f"Say {i}.", "output": str(i), "group": f"g{i}"} for i in range(count)]
    return [Prompt(Pair(f"Say {i}.", "", None, row=i + 1), head) for i, head in enumerate(heads)]


@given(ANSWERS)
def test_of_all_two_answers_that_may_be_a_pair_the_best_and_worst_are_furthest_apart(drawn):
    answers, scores = given_answers(drawn)
    pairs = {  # a whole answer over any other, both with something to read
        (i, k): scores[i] - scores[k]
        for i, k in permutations(range(len(answers)), 2)
        if answers[i].stopped and answers[i].text.strip() and answers[k].text.strip() and scores[i] > scores[k]
    }
    found = best_and_worst(answers, scores)
    if isinstance(found, tuple):
        assert pairs[found] == max(pairs.values())
        assert answers[found[0]].text != answers[found[1]].text
        whole = [k for (i, k), gap in pairs.items() if gap == pairs[found] and answers[k].stopped]
        assert answers[found[1]].stopped or not whole  # one that was cut off only where no whole one is as bad
        return
    said = [a for a in answers if a.text.strip()]
    assert (found == BLANK) == (len(said) < 2)
    assert (found == CUT) == (len(said) >= 2 and not any(a.stopped for a in said))
    assert (found == ALIKE) == (len(said) >= 2 and any(a.stopped for a in said) and not pairs)
    if found == EQUAL:
        assert pairs


@given(st.lists(ANSWERS, min_size=1, max_size=6), st.sampled_from([0.0, 0.25, 1.0, 2.0]))
def test_every_prompt_gives_a_pair_with_its_gap_or_is_dropped_for_a_reason(drawn, min_gap):
    each = [given_answers(some) for some in drawn]
    answers, scores = [a for a, _ in each], [s for _, s in each]
    found = preferences(prompts(len(each)), answers, lambda pairs, given, failures: scores, min_gap)
    dropped = [row for rows in found.dropped.values() for row in rows]
    kept = [int(row["group"][1:]) + 1 for row in found.rows]
    assert sorted(kept + dropped) == list(range(1, len(each) + 1)) and kept == sorted(kept)
    for row, number in zip(found.rows, kept):
        assert row["margin"] >= min_gap and row["margin"] > 0
        some, values = answers[number - 1], scores[number - 1]
        texts = [(row["chosen"], row["rejected"]), row["margin"]]
        assert texts in [
            [(some[i].text, some[k].text), values[i] - values[k]] for i, k in permutations(range(len(some)), 2)
        ]
        assert teaches_nothing(Pair("", row["chosen"], row["rejected"])) is None
        assert row["output"] == str(number - 1)
    for number in found.dropped.get(CLOSE, []):
        best, worst = best_and_worst(answers[number - 1], scores[number - 1])
        assert scores[number - 1][best] - scores[number - 1][worst] < min_gap


def whole(*texts: str) -> list[Answer]:
    return [Answer(text, True, len(text) + 1) for text in texts]


ASKED = [
    whole("5", "6", "5", "7"),
    whole("a", "a"),
    whole("x", "y"),
    [Answer("on and", False, 9), Answer("on", False, 9)],
]
VALUES = [[1, 0, 1, -2], [1, 1], [0.5, 0.25], [1, 0]]


def test_figures_and_report_are_those_counted_by_hand(tmp_path):
    found = preferences(prompts(4), ASKED, lambda pairs, answers, failures: VALUES, 0.5)
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in found.rows] == [("5", "7", 3)]
    assert found.dropped == {ALIKE: [2], CLOSE: [3], CUT: [4]}
    f = figures(ASKED, found)
    assert (f["prompts"], f["answers"], f["pairs"], f["blank"]) == (4, 10, 1, 0)
    assert f["distinct"] == (3 + 1 + 2 + 2) / 4 and f["cut off"] == 0.2
    assert f["score"] == fmean([1, 0, 1, -2, 1, 1, 0.5, 0.25, 1, 0])
    assert (f["best"], f["worst"]) == (3.5 / 4, (-2 + 1 + 0.25 + 0) / 4)
    text = report(ASKED, found, {"held out": 3, "repeated": 0})
    assert "4 answered; left aside: 3 held out\n" in text and "10, 2.00 distinct a prompt; 20.0% cut off" in text
    assert "1 kept, of 25.0% of the prompts" in text and f"{CLOSE}: 1 (row 3)" in text
    write_rows(tmp_path / "pairs.jsonl", found.rows)
    (pair,) = read_pairs(tmp_path / "pairs.jsonl")
    assert (pair.chosen, pair.rejected, pair.margin, pair.group) == ("5", "7", 3, "g0")


def test_an_infinite_score_names_the_row():
    with pytest.raises(UserError, match="^row 2: an answer's score is not finite"):
        preferences(prompts(2), [whole("a", "b")] * 2, lambda pairs, answers, failures: [[0, 1], [math.inf, 1]])


def test_a_prompt_with_a_score_that_is_not_known_gives_no_pair_and_is_in_no_mean():
    answers = [whole("a", "b")] * 3
    found = preferences(prompts(3), answers, lambda pairs, answers, failures: [[0, 1], [math.nan, 1], [2, 5]])
    assert [row["margin"] for row in found.rows] == [1, 3] and found.dropped == {UNKNOWN: [2]}
    assert (figures(answers, found)["score"], figures(answers, found)["best"]) == (2, 3)


def test_where_no_score_is_known_figures_are_valid_json_and_the_line_says_why():
    def none(pairs, answers, failures):
        failures.add(Failed("HTTP 400", "too long"), pairs[1].row)
        return [[math.nan, math.nan]] * 2

    answers = [whole("a", "b")] * 2
    found = preferences(prompts(2), answers, none)
    figured = figures(answers, found)
    assert (figured["score"], figured["best"], figured["worst"]) == (None, None, None)
    assert figured["failed"] == {"HTTP 400": 1} and json.dumps(figured, allow_nan=False)
    assert "as no score is known (failed: HTTP 400: 1 (row 2): too long)" in str(no_pair(found))
    found = preferences(prompts(2), answers, lambda pairs, answers, failures: [[math.nan, 1]] * 2)
    assert "no score is known (the score is NaN each time)" in str(no_pair(found))
    found = preferences(prompts(2), answers, lambda pairs, answers, failures: [[1, 1]] * 2)
    assert f"({ALIKE}: 2 (rows 1, 2)); draw more --samples, at a higher --temperature" in str(no_pair(found))


def test_failures_are_told_by_kind_with_rows_and_the_first_detail():
    failures = Failures()
    assert not failures and str(failures) == "" and failures.counts == {}
    for row, kind, detail in [(3, "a", ""), (4, "b", "x"), (5, "a", "y"), (6, "a", "z")]:
        failures.add(Failed(kind, detail), row)
    assert failures and len(failures) == 4 and failures.counts == {"a": 3, "b": 1}
    assert str(failures) == "a: 3 (rows 3, 5, 6): y; b: 1 (row 4): x"


def test_the_quarters_of_the_gaps_lie_between_the_least_and_the_most():
    prompts = [Prompt(Pair(f"p{i}", "", None, i), {"prompt": f"p{i}"}) for i in (1, 2)]
    some = [[Answer("a", True, 3), Answer("b", True, 6)], [Answer("a", True, 3), Answer("b", True, 12)]]
    found = preferences(prompts, some, parse_score("length:longer"))
    assert "least, quarters and most: 3, 4.5, 6, 7.5, 9" in report(some, found, {})
