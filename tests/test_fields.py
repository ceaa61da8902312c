"""data/fields.py: what is said of a row that has not the field that is asked for."""

import pytest

from data.fields import missing
from data.pairs import pair_of
from gpt.command import UserError

CASES = [
    ({"prompt": "p", "choosen": "a"}, "field 'chosen' is missing; found prompt, choosen (is 'choosen' meant?)"),
    ({"prompt": "p", "chosen": None}, "field 'chosen' is null; found prompt, chosen"),
    ({"instruction": "i", "output": "o"}, "found instruction, output ('output' is a plain answer; one to learn from"),
    ({"data": [{"prompt": "p"}]}, "found data (are the rows in 'data'? that list must be all of the file)"),
    ({"prompt": "p", "data": [{"prompt": "p"}]}, "field 'chosen' is missing; found prompt, data"),
    ({"data": []}, "field 'instruction' or 'prompt' is missing; found data"),
    ({}, "field 'instruction' or 'prompt' is missing; found nothing"),
    ({str(i): i for i in range(1000)}, "found 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 990 more"),
]


@pytest.mark.parametrize("row, expected", CASES)
def test_what_is_missing_is_named_beside_what_is_there(row, expected):
    with pytest.raises(UserError) as caught:
        pair_of(row, 3, "pairs.jsonl, row 3")
    message = str(caught.value)
    assert message.startswith("pairs.jsonl, row 3: ") and expected in message and len(message.splitlines()) == 1
    assert message.endswith(expected) or expected.endswith("from")


def test_a_name_that_does_not_print_is_escaped_in_the_hint():
    assert "\x1b" not in str(missing({"\x1b[2J": [{}]}, ("chosen",), "row 1"))
