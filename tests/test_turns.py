"""data/turns.py: dialogues as text, against text that is put together otherwise, and what is refused of them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.turns import Turn, dialogue_prompt, instruction_prompt, turns_of
from gpt.command import UserError
from tests.preferences import messages, preferences

PICTURE = """You are terse.

### Instruction:
Add 2 and 3.

### Response:
5

### Instruction:
And 4?

### Response:
"""


def prompt(*turns: tuple[str, str], system: str = "") -> str:
    return dialogue_prompt([Turn(*turn) for turn in turns], system, "field 'prompt'", "pairs.jsonl, row 7")


def test_the_picture_of_the_file():
    dialogue = [("user", "Add 2 and 3."), ("assistant", "5"), ("user", "And 4?")]
    assert prompt(("system", "You are terse."), *dialogue) == PICTURE
    assert prompt(*dialogue, system="You are terse.") == PICTURE
    assert prompt(("system", "You are terse."), *dialogue, system="You are terse.") == PICTURE


@given(st.text())
def test_one_turn_of_a_user_is_an_instruction_without_input(said):
    assert prompt(("user", said)) == instruction_prompt(said)


@given(preferences)
def test_any_dialogue_is_the_template_line_by_line(one):
    assert dialogue_prompt(turns_of(messages(one), "prompt", "row"), "", "", "") == one.prompt


words = st.text("ab \n😀", max_size=5)


@given(st.lists(st.tuples(words, words), max_size=4), words)
def test_no_turn_is_lost_or_moved(rounds, asked):
    turns = [(role, said) for pair in rounds for role, said in zip(("user", "assistant"), pair)] + [("user", asked)]
    text = prompt(*turns, system="S")
    assert text.startswith("S\n\n### Instruction:\n") and text.endswith("\n\n### Response:\n")
    sections = re.split(r"\n\n### (Instruction|Response):\n", text)[1:]
    roles = ["user" if name == "Instruction" else "assistant" for name in sections[::2]]
    assert [*zip(roles, sections[1::2])] == [*turns, ("assistant", "")]


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_system_message_is_none(blank):
    assert prompt(("system", blank), ("user", "a")) == prompt(("user", "a"), system=blank) == instruction_prompt("a")
    assert prompt(("system", blank), ("user", "a"), system="S").startswith("S\n\n")


REFUSED = [
    ([], "must end in a turn of the user, to which the answer is given; found none"),
    ([("system", "S")], "found none"),
    ([("user", "a"), ("assistant", "b")], "found an assistant's"),
    ([("user", "a"), ("user", "b")], "two turns of the user in a row (1 and 2)"),
    ([("system", "S"), ("user", "a"), ("user", "b")], "two turns of the user in a row (2 and 3)"),
    (
        [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")],
        "two turns of the assistant in a row (2 and 3)",
    ),
    ([("user", "a"), ("system", "S"), ("user", "b")], "a system message 'S' that is not the first"),
]


@pytest.mark.parametrize("turns, expected", REFUSED)
def test_turns_that_are_no_dialogue_before_an_answer_are_refused(turns, expected):
    with pytest.raises(UserError) as caught:
        prompt(*turns)
    assert str(caught.value).startswith("pairs.jsonl, row 7: field 'prompt' ") and expected in str(caught.value)


def test_two_system_messages_that_differ_are_refused():
    with pytest.raises(UserError, match="'system' has another"):
        prompt(("system", "A"), ("user", "a"), system="B")


def test_an_assistant_may_speak_first():
    assert prompt(("assistant", "Hi"), ("user", "a")).endswith(
        "### Response:\nHi\n\n### Instruction:\na\n\n### Response:\n"
    )


MESSAGES = [
    (["a"], "field 'chosen', message 1, must be an object with role and content, found text"),
    ([{"role": "user", "content": "a"}, None], "message 2, must be an object with role and content, found null"),
    (
        [{"role": "tool", "content": "a"}],
        "message 1, has the role 'tool'; known are system, user, assistant, human, gpt",
    ),
    ([{"from": "observation", "value": "a"}], "message 1, has the from 'observation'"),
    ([{"role": ["user"], "content": "a"}], "message 1, has the role a list"),
    ([{"content": "a"}], "message 1, has the role null"),
    ([{"role": "assistant", "content": None}], "message 1, 'content' must be text, found null"),
    ([{"from": "gpt", "content": "a"}], "message 1, 'value' must be text, found null"),
    ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "message 1, 'content' must be text, found a list"),
    ([{"role": "user", "content": "\ud800"}], "message 1, 'content' holds half a surrogate pair"),
    ({"role": "user"}, "field 'chosen' 'content' must be text, found null"),
]


@pytest.mark.parametrize("value, expected", MESSAGES)
def test_a_message_that_cannot_be_read_is_named(value, expected):
    with pytest.raises(UserError) as caught:
        turns_of(value, "chosen", "pairs.jsonl, row 7")
    assert expected in str(caught.value) and str(caught.value).startswith("pairs.jsonl, row 7: field 'chosen'")
    assert len(str(caught.value).splitlines()) == 1
