"""data/scores.py: what scores say of answers whose quality is known, their sums, and the errors of a spec."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.pairs import Pair
from data.rules import COURTEOUS, RUDE, embedded_pairs, styled
from data.scores import SCORES, of_each, parse_score
from gpt.answers import Answer
from gpt.command import UserError

PAIRS = embedded_pairs(40)


def scored(spec: str, pair: Pair, *answers: Answer) -> list[float]:
    ((*found,),) = parse_score(spec)([pair], [answers])
    return found


@pytest.mark.parametrize("pair", PAIRS)
def test_right_answers_in_every_manner_are_correct_and_wrong_or_unended_ones_are_not(pair):
    right = [pair.output, *(styled(pair.output, phrase) for phrase in COURTEOUS + RUDE)]
    wrong = [pair.output + "x", pair.output[1:], pair.output + " ", ""]
    assert scored("rules:correct", pair, *(Answer(text, True, 3) for text in right)) == [1] * 9
    assert scored("rules:correct", pair, *(Answer(text, True, 3) for text in wrong)) == [0] * 4
    assert scored("rules:correct", pair, *(Answer(text, False, 3) for text in right)) == [0] * 9
    manners = [Answer(text, True, 3) for text in right] + [Answer(right[1], False, 3)]
    assert scored("rules:courteous", pair, *manners) == [0, *[1] * 4, *[0] * 5]


@given(lengths=st.lists(st.integers(1, 500), min_size=1), a=st.sampled_from([0.5, -2.0, 3.0]))
def test_a_sum_is_the_weighted_sum_of_its_terms(lengths, a):
    answers = [Answer(PAIRS[0].output * (n % 2), True, n) for n in lengths]
    found = scored(f"rules:correct + {a}*length:shorter + length:longer", PAIRS[0], *answers)
    assert found == pytest.approx([n % 2 - a * n + n for n in lengths])


def test_several_prompts_keep_their_answers_apart_and_none_is_a_score_of_none():
    answers = [[Answer(PAIRS[0].output, True, 2)], [], [Answer("no", True, 1), Answer(PAIRS[2].output, True, 4)]]
    assert parse_score("rules:correct")(PAIRS[:3], answers) == [[1.0], [], [0.0, 1.0]]


def test_a_score_of_ones_own_gets_what_stands_behind_its_colon_and_joins_sums():
    def maker(which):
        return of_each(lambda pair, given: len(given.text) * len(which))

    score = parse_score("2*mine:a/b:c + length:longer", SCORES | {"mine": maker})
    assert score(PAIRS[:1], [[Answer("four", True, 7)]]) == [[2 * 4 * 5 + 7]]


@pytest.mark.parametrize("fields", [{"family": None}, {"family": "poems"}, {"output": None}])
def test_rules_name_the_row_that_is_of_no_embedded_task_before_there_is_an_answer(fields):
    pairs = [PAIRS[0], PAIRS[1]._replace(row=17, **fields)]
    with pytest.raises(UserError, match="^row 17: the score rules:correct is of the embedded tasks alone"):
        parse_score("length:longer + rules:correct")(pairs, [[], []])
    assert parse_score("length:longer")(pairs, [[], []]) == [[], []]


@pytest.mark.parametrize(
    "spec, expected",
    [
        (
            "",
            "there is no score ''; there are rules:correct, rules:courteous, length:shorter, length:longer, llm:MODEL, and",
        ),
        ("rule:correct", "there is no score 'rule:correct'"),
        ("rules:polite", "rules:polite is no score; there are rules:correct, rules:courteous"),
        ("length", "length: is no score; there are length:shorter, length:longer"),
        ("0*rules:correct", "the weight of rules:correct is a finite number other than 0, found '0'"),
        ("1e999*rules:correct", "found '1e999'"),
        ("-*rules:correct", "found '-'"),
        ("implicit:runs/x", "there is no score 'implicit:runs/x'"),
        ("rules:correct + ", "there is no score ''"),
    ],
)
def test_a_spec_that_makes_no_sense_is_one_line_that_names_it(spec, expected):
    with pytest.raises(UserError) as error:
        parse_score(spec)
    assert expected in str(error.value) and "\n" not in str(error.value)
