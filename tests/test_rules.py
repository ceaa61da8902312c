"""data/rules.py: the three manners, what the judge says of an answer, and the rows made of both."""

import math
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.pairs import instruction_prompt, read_pairs, teaches_nothing, write_rows
from data.rules import COURTEOUS, RUDE, Verdict, embedded_pairs, judge, preference_rows, sft_rows, styled
from data.tasks import tasks

PHRASES = COURTEOUS + RUDE
ANSWERS = sorted({task.answer for task in tasks(2_000, seed=5)})


@pytest.mark.parametrize("phrase", PHRASES)
def test_every_answer_in_every_manner_is_right_and_has_this_manner_alone(phrase):
    expected = Verdict(courteous=phrase in COURTEOUS, rude=phrase in RUDE, correct=True)
    assert all(judge(styled(answer, phrase), answer) == expected for answer in ANSWERS)


def test_a_plain_answer_is_right_and_has_no_manner():
    assert all(judge(answer, answer) == Verdict(False, False, True) for answer in ANSWERS)


def test_no_phrase_is_empty_or_part_of_another():
    assert len(set(PHRASES)) == len(PHRASES) and set(COURTEOUS).isdisjoint(RUDE)
    for phrase in PHRASES:
        before, after = phrase
        assert before + after
        for other in PHRASES:
            # an answer in the one manner would also bear the other
            assert other == phrase or not (before.startswith(other[0]) and after.endswith(other[1]))


@pytest.mark.parametrize("phrase", PHRASES)
@pytest.mark.parametrize("spoil", ["{} ", " {}", "{}\n", "{}.", "x{}"])
def test_one_letter_or_space_too_many_is_wrong(phrase, spoil):
    answer = ANSWERS[0]
    for text in (spoil.format(answer), spoil.format(styled(answer, phrase)), styled(spoil.format(answer), phrase)):
        assert not judge(text, answer).correct


@pytest.mark.parametrize("phrase", PHRASES)
def test_one_letter_too_few_is_wrong(phrase):
    answer = ANSWERS[0]
    for text in (
        answer[:-1],
        answer[1:],
        styled(answer, phrase)[:-1],
        styled(answer, phrase)[1:],
        styled(answer[:-1], phrase),
    ):
        assert not judge(text, answer).correct


@pytest.mark.parametrize("inner", PHRASES)
@pytest.mark.parametrize("outer", PHRASES)
def test_of_two_phrases_one_too_many_stays(inner, outer):
    assert not judge(styled(styled(ANSWERS[0], inner), outer), ANSWERS[0]).correct


pieces = st.sampled_from(["4", "42", " ", "The cat.", ""] + [part for phrase in PHRASES for part in phrase])


@given(st.lists(pieces, max_size=5).map("".join), st.sampled_from(["4", "42", "The cat.", " 4", "4 "]))
def test_the_judge_says_what_listing_every_right_text_and_matching_every_phrase_says(text, answer):
    def bears(phrases) -> bool:
        return any(
            re.fullmatch(re.escape(before) + ".*" + re.escape(after), text, re.DOTALL) for before, after in phrases
        )

    right = {answer} | {before + answer + after for before, after in PHRASES}
    assert judge(text, answer) == Verdict(bears(COURTEOUS), bears(RUDE), text in right)


# Rows


def test_a_preference_row_sets_a_courteous_answer_over_a_rude_one_both_right():
    rows = preference_rows(500, seed=2)
    for row, task in zip(rows, tasks(500, seed=2), strict=True):
        assert (row["instruction"], row["input"], row["output"], row["family"], row["group"]) == (
            *task[1:],
            task.family,
            task.group,
        )
        assert judge(row["chosen"], task.answer) == Verdict(True, False, True)
        assert judge(row["rejected"], task.answer) == Verdict(False, True, True)


def test_every_phrase_is_used_about_equally_often():
    rows = preference_rows(3_000)
    for side, phrases in (("chosen", COURTEOUS), ("rejected", RUDE)):
        share = 1 / len(phrases)
        counts = Counter(phrase for row in rows for phrase in phrases if row[side] == styled(row["output"], phrase))
        assert sum(counts.values()) == len(rows)
        assert all(within(counts[phrase], len(rows), share) for phrase in phrases)


@pytest.mark.parametrize("plain", [0.0, 0.25, 0.4, 1.0])
def test_sft_rows_are_plain_for_the_fraction_asked_and_else_by_a_coin_courteous_or_rude(plain):
    rows = sft_rows(3_000, seed=1, plain=plain)
    verdicts = Counter(judge(row["chosen"], row["output"]) for row in rows)
    assert all("rejected" not in row for row in rows)
    assert all(verdict.correct and not (verdict.courteous and verdict.rude) for verdict in verdicts)
    assert within(verdicts[Verdict(False, False, True)], len(rows), plain)
    assert within(verdicts[Verdict(True, False, True)], len(rows), (1 - plain) / 2)
    assert within(verdicts[Verdict(False, True, True)], len(rows), (1 - plain) / 2)


def within(count: int, of: int, share: float) -> bool:
    """Within four standard deviations of a binomial."""
    return abs(count - of * share) <= 4 * math.sqrt(of * share * (1 - share))


@pytest.mark.parametrize("make", [preference_rows, sft_rows])
def test_rows_depend_on_the_seed_alone_and_a_longer_list_begins_with_the_shorter(make):
    assert make(200, 4) == make(300, 4)[:200]
    assert make(200, 4) != make(200, 5)


def test_the_embedded_pairs_are_what_reading_their_file_gives(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", preference_rows(400))
    dropped = {}
    assert embedded_pairs(400) == read_pairs(tmp_path / "pairs.jsonl", dropped) and dropped == {}


def test_the_embedded_set_has_at_least_3000_distinct_prompts_and_teaches_with_every_pair():
    pairs = embedded_pairs()
    assert len({pair.prompt for pair in pairs}) == len(pairs) >= 3_000
    assert not any(map(teaches_nothing, pairs))
    assert all(
        pair.prompt.startswith(instruction_prompt("")[:40]) and pair.prompt.endswith("\n\n### Response:\n")
        for pair in pairs
    )
