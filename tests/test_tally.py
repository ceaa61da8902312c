"""data/tally.py: rows by their numbers, the first of them, and how many more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tally import LISTED, Tally, number_of, rows_listed, summary


@pytest.mark.parametrize(
    "rows, count, expected",
    [
        ([3], None, "row 3"),
        ([3, 4], None, "rows 3, 4"),
        ([3, 4], 2000, "rows 3, 4 and 1,998 more"),
        ([[3, 4]], None, "rows 3 and 4"),
        ([[3, 4], [5, 6]], 2, "rows 3 and 4, 5 and 6"),
        (["4 (as 1)"], None, "row 4 (as 1)"),
        (range(1, 11), None, "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        (range(1, 12), None, "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 1 more"),
    ],
)
def test_rows_are_listed(rows, count, expected):
    assert rows_listed(rows, count) == expected


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=3 * LISTED), st.integers(LISTED, 100))
def test_a_tally_says_what_the_list_of_its_rows_would(rows, kept):
    tally = Tally(kept)
    for row in rows:
        tally.add(row)
    assert (tally.count, tally.rows) == (len(rows), rows[:kept])
    assert str(tally) == rows_listed(rows) and summary({"why": tally}) == summary({"why": rows})


def test_a_summary_has_each_reason_with_its_rows():
    assert summary({"an empty answer": [3, 7], "chosen equal to rejected": [9]}) == (
        "an empty answer: 2 pairs (rows 3, 7); chosen equal to rejected: 1 pair (row 9)"
    )
    assert summary({}) == "" and number_of(1) == "1 row" and number_of(2000, "prompt") == "2,000 prompts"
