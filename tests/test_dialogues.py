"""data/dialogues.py: chat messages, ShareGPT and HH, in each of the ways that data sets write them, and as TRL reads them."""

import pytest
from hypothesis import assume, example, given

from data.dialogues import are_dialogues, hh
from data.formats import OneFormat
from data.turns import instruction_prompt
from gpt.command import UserError
from tests.preferences import SAME, Preference, answer, hh_texts, messages, preferences

USER, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def read(row: dict) -> tuple:
    return OneFormat().answers(row, 7, "pairs.jsonl, row 7")[:3]


@given(preferences)
@example(Preference("", [], "", "Human: a\n\nAssistant: b", ""))
def test_every_way_to_write_a_dialogue_down_gives_one_pair(one):
    for written in SAME:
        assert read(written(one)) == (one.prompt, one.chosen, one.rejected), written.__name__


def test_a_prompt_of_text_is_one_turn_of_the_user():
    row = {"prompt": "Hi", "chosen": [SAID], "rejected": [answer("What?")]}
    assert read(row) == (instruction_prompt("Hi"), "Hello", "What?")


def test_one_answer_is_enough_for_sft():
    assert read({"chosen": [USER, SAID]}) == (instruction_prompt("Hi"), "Hello", None)
    assert read({"conversations": [USER], "chosen": SAID, "rejected": None}) == (
        instruction_prompt("Hi"),
        "Hello",
        None,
    )
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    assert read({"chosen": text}) == (text[:-2], " d", None)


REFUSED = [
    (
        {"chosen": [USER], "rejected": [USER, SAID]},
        "field 'chosen' must end in a message of the assistant, found one of the user",
    ),
    (
        {"prompt": [USER], "chosen": [], "rejected": [SAID]},
        "field 'chosen' must end in a message of the assistant, found no mes",
    ),
    ({"chosen": [SAID], "rejected": [SAID]}, "field 'prompt' or 'messages' is missing"),
    ({"prompt": [USER], "chosen": [SAID, USER, SAID], "rejected": [SAID]}, "are not the same in 'prompt' and 'chosen'"),
    ({"chosen": [USER, SAID, USER, SAID], "rejected": [USER, SAID]}, "are not the same in 'chosen' and 'rejected'"),
    (
        {"prompt": "Who?", "chosen": [USER, SAID], "rejected": [USER, SAID]},
        "field 'prompt' is none of the turns before",
    ),
    ({"chosen": [USER, USER, SAID], "rejected": [USER, USER, SAID]}, "two turns of the user in a row (1 and 2)"),
    ({"prompt": [USER, SAID], "chosen": [SAID], "rejected": [SAID]}, "must end in a turn of the user"),
    (
        {"prompt": [USER], "chosen": [SAID], "rejected": 3},
        "field 'rejected' must be an object with role and content, found a nu",
    ),
    ({"conversations": [], "chosen": SAID, "rejected": SAID}, "field 'conversations' must end in a turn of the user"),
    ({"conversations": [USER], "rejected": SAID}, "field 'chosen' is missing"),
    (
        {"conversations": [USER], "chosen": SAID, "rejected": SAID, "system": 3},
        "field 'system' must be text, found a number",
    ),
]


@pytest.mark.parametrize("row, expected", REFUSED)
def test_what_is_no_dialogue_with_an_answer_is_refused_by_row_and_field(row, expected):
    with pytest.raises(UserError) as caught:
        read(row)
    assert str(caught.value).startswith("pairs.jsonl, row 7: ") and expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# HH


@given(preferences)
def test_of_a_dialogue_of_hh_no_byte_is_lost_and_the_prompt_ends_at_the_last_assistant(one):
    # where both answers go on as a dialogue, and alike, these turns are of the prompt: nothing in the text says otherwise
    assume("\n\nAssistant:" not in one.chosen or "\n\nAssistant:" not in one.rejected)
    chosen, rejected = hh_texts(one)
    prompt, better, worse = hh({"chosen": chosen, "rejected": rejected}, "row")
    assert prompt + better == chosen and prompt + worse == rejected
    assert are_dialogues(chosen) and prompt.endswith("\n\nAssistant:")
    assert (better, worse) == (" " + one.chosen, " " + one.rejected)


@given(preferences)
def test_windows_line_ends_inside_a_dialogue_stay_and_part_its_turns_all_the_same(one):
    assume("\r" not in "".join(hh_texts(one)))
    chosen, rejected = (text.replace("\n", "\r\n") for text in hh_texts(one))
    prompt, better, worse = read({"chosen": chosen, "rejected": rejected})
    assert prompt + better == chosen and prompt + worse == rejected and prompt.endswith("\r\n\r\nAssistant:")


def test_an_answer_that_begins_as_the_other_ends_is_split_at_the_turn_and_not_within_it():
    before = "\n\nHuman: Hi\n\nAssistant:"
    for chosen, rejected in ((" The sky", " The sky is blue"), (" a b", " a c"), ("", " x"), (" x", " x")):
        assert hh({"chosen": before + chosen, "rejected": before + rejected}, "row") == (before, chosen, rejected)


def test_dialogues_that_part_before_the_last_turn_are_split_where_they_are_still_the_same():
    common = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    longer, shorter = common + " d\n\nHuman: e\n\nAssistant: f", common + " g"
    assert hh({"chosen": longer, "rejected": shorter}, "row") == (common, longer[len(common) :], " g")
    assert hh({"chosen": shorter, "rejected": longer}, "row") == (common, " g", longer[len(common) :])


@pytest.mark.parametrize(
    "chosen, rejected, expected",
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: b", "part before the assistant's first turn"),
        ("\n\nHuman: a\n\nAssistant: b", "", "part before the assistant's first turn"),
        ("\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b", "no turn of the assistant"),
        ("\n\nHuman: a\n\nAssistant: b", 3, "field 'rejected' must be text"),
    ],
)
def test_dialogues_without_a_common_prompt_are_refused(chosen, rejected, expected):
    with pytest.raises(UserError, match=f"pairs.jsonl, row 7: .*{expected}"):
        hh({"chosen": chosen, "rejected": rejected}, "pairs.jsonl, row 7")


# As TRL reads it


@pytest.mark.slow
def test_trl_finds_the_same_prompt_in_messages_and_a_later_end_of_it_in_text():
    data_utils = pytest.importorskip("trl.data_utils", reason="trl is absent: it reads implicit prompts its own way")
    one = Preference("Be kind.", [("Hi", "Hello")], "What is it?", "The sky is blue.", "The sky is green.")
    before = messages(one)
    row = {"chosen": [*before, answer(one.chosen)], "rejected": [*before, answer(one.rejected)]}
    theirs = data_utils.maybe_extract_prompt(row)
    assert read(row) == read(theirs)  # their prompt apart, their answers of one message
    # TRL cuts text after the longest beginning that both share, but for a space: within the answer, where both begin alike
    chosen, rejected = hh_texts(one)
    ours, theirs = (
        read({"chosen": chosen, "rejected": rejected}),
        data_utils.maybe_extract_prompt({"chosen": chosen, "rejected": rejected}),
    )
    assert theirs["prompt"] == ours[0] + " The sky is" and theirs["chosen"] == " blue."
    assert ours[0] + ours[1] == theirs["prompt"] + theirs["chosen"] == chosen
    # where the answers differ at once the two agree
    alike = [text.replace("The sky is ", "") for text in (chosen, rejected)]
    ours, theirs = (
        reader({"chosen": alike[0], "rejected": alike[1]}) for reader in (read, data_utils.maybe_extract_prompt)
    )
    assert ours == (theirs["prompt"], theirs["chosen"], theirs["rejected"])


@pytest.mark.parametrize("system", ["System: Be brief.", "\n\nSystem: Be brief.\n"])
def test_a_dialogue_of_hh_may_begin_with_a_system_message_which_is_of_the_prompt(system):
    asked = f"{system}\n\nHuman: Hi\n\nAssistant:"
    row = {"chosen": f"{asked} Hello.", "rejected": f"{asked} What?"}
    assert are_dialogues(row["chosen"]) and hh(row, "row 1") == (asked, " Hello.", " What?")
    assert not are_dialogues("System: Be brief.\n\nAssistant: Hello.") and not are_dialogues(
        "The System: of Human: kind"
    )
