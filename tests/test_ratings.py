"""data/ratings.py: the best and the worst of scored answers, found by comparing each with each."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.formats import OneFormat
from data.ratings import NoPair, ratings
from data.turns import instruction_prompt
from gpt.command import UserError

# Of openbmb/UltraFeedback's fields these
ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Name a colour.",
    "models": ["a", "b", "c"],
    "completions": [
        {"model": "a", "response": "Blue.", "overall_score": 6.5, "fine-grained_score": 4.25, "annotations": {}},
        {"model": "b", "response": "Colour.", "overall_score": 1.0, "fine-grained_score": 1.0, "annotations": {}},
        {
            "model": "c",
            "response": "Blue, or red.",
            "overall_score": 8.0,
            "fine-grained_score": 4.75,
            "annotations": {},
        },
    ],
}
DISTILABEL = {"instruction": "Name a colour.", "generations": ["Blue.", "Colour.", "?"], "ratings": [4, 2, None]}


def read(row: dict) -> tuple:
    return OneFormat().answers(row, 7, "pairs.jsonl, row 7")


def test_ultrafeedback_and_distilabel():
    prompt = instruction_prompt("Name a colour.")
    assert read(ULTRAFEEDBACK) == (prompt, "Blue, or red.", "Colour.", 7.0)
    assert read(DISTILABEL) == (prompt, "Blue.", "Colour.", 2.0)


answers = st.lists(st.tuples(st.text(max_size=3), st.none() | st.integers(-3, 3) | st.floats(-10, 10)), max_size=6)


@given(answers, st.integers(0, 2))
@example([("", -1), ("0", -6.27e-67), ("", 0)], 0)
def test_best_and_worst_are_what_comparing_each_with_each_finds(scored, way):
    row = {"prompt": "p", "responses": [text for text, _ in scored], "scores": [score for _, score in scored]}
    if way:
        name = ("response", "text")[way - 1]
        row = {"prompt": "p", "completions": [{name: text, "score": score} for text, score in scored]}
    # exactly, since the difference of floats may be rounded to that of other ones
    pairs = [
        (Fraction(b) - Fraction(w), i, k)
        for i, (_, b) in enumerate(scored)
        for k, (_, w) in enumerate(scored)
        if None not in (b, w)
    ]
    widest = max((gap for gap, *_ in pairs), default=0)
    if widest <= 0:
        with pytest.raises(NoPair):
            ratings(row, "row")
        return
    prompt, chosen, rejected, margin = ratings(row, "row")
    _, i, k = next(pair for pair in pairs if pair[0] == widest)
    assert (prompt, margin) == ("p", pytest.approx(float(widest))) and (chosen, rejected) == (
        scored[i][0],
        scored[k][0],
    )


def test_ties_and_too_few_answers_are_no_pair_and_say_which():
    for scores, why in (
        ([3, 3], "all answers have one score"),
        ([3], "fewer than two"),
        ([3, None], "fewer than two"),
        ([], "few"),
    ):
        with pytest.raises(NoPair, match=why):
            ratings({"prompt": "p", "responses": ["a", "b"][: len(scores)], "scores": scores}, "row")


REFUSED = [
    (
        {"prompt": "p", "responses": ["a", "b"], "scores": [1]},
        "'responses' and 'scores' must be of one length, found 2 and 1",
    ),
    ({"prompt": "p", "responses": ["a", "b"]}, "field 'responses', answer 1, must be an object with overall_score"),
    (
        {"prompt": "p", "responses": [{"response": "a"}]},
        "answer 1, has none of the fields overall_score, score, rating",
    ),
    (
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, "2"]},
        "answer 2, the score must be a number, found the text",
    ),
    ({"prompt": "p", "responses": ["a", "b"], "scores": [1, float("nan")]}, "answer 2, the score is nan"),
    ({"prompt": "p", "responses": ["a", 3], "scores": [1, 2]}, "answer 2, must be an object with response or text"),
    ({"prompt": "p", "responses": ["a", {"response": None}], "scores": [1, 2]}, "answer 2, must be text, found null"),
    ({"responses": ["a", "b"], "scores": [1, 2]}, "field 'instruction' or 'prompt' is missing"),
    (
        {"prompt": "p", "instruction": "i", "responses": ["a", "b"], "scores": [1, 2]},
        "'prompt' and 'instruction' are both there",
    ),
    ({"prompt": ["p"], "responses": ["a", "b"], "scores": [1, 2]}, "field 'prompt', message 1, must be an object"),
]


@pytest.mark.parametrize("row, expected", REFUSED)
def test_what_cannot_be_read_is_refused_by_row_field_and_answer(row, expected):
    with pytest.raises(UserError) as caught:
        read(row)
    assert str(caught.value).startswith("pairs.jsonl, row 7: ") and expected in str(caught.value)
