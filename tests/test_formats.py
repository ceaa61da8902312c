"""data/formats.py: which format a row has, one for a file, margins; and whatever a row holds, one line for the user."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data.fields import FIELDS
from data.formats import BOTH_SCORES, FORMATS, OneFormat, fitting
from data.pairs import Pair, pair_of, read_pairs
from data.ratings import NoPair
from data.turns import instruction_prompt
from gpt.command import UserError
from tests.preferences import FORMAT, SAME, Preference, chat_apart, hh_texts, instruction, plain, preferences, sharegpt

HELLO = Preference("", [], "Say hello.", "Good morning!", "What?")
HH = dict(zip(("chosen", "rejected"), hh_texts(HELLO)))
ROWS = {
    "instruction": {"instruction": "Say hello.", "chosen": "Good morning!", "rejected": "What?"},
    "prompt": {"prompt": "Say hello.", "chosen": "Good morning!", "rejected": "What?"},
    "chat": chat_apart(HELLO),
    "sharegpt": sharegpt(HELLO),
    "hh": HH,
    "ratings": {"instruction": "Say hello.", "responses": ["Good morning!", "What?"], "scores": [2, 1]},
}


@pytest.fixture
def read(tmp_path):
    """A function from rows to the pairs of the file that has them."""

    def read(*rows: dict, dropped: dict | None = None) -> list[Pair]:
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_pairs(tmp_path / "pairs.jsonl", dropped)

    return read


# Which format


def test_each_format_is_known_by_its_rows_and_a_row_of_each_is_known():
    assert {name: fitting(row) for name, row in ROWS.items()} == {name: [name] for name in FORMATS}


@given(preferences)
def test_no_dialogue_is_taken_for_another_format(one):
    for write in (*SAME, plain, instruction):
        name = FORMAT.get(write.__name__, "chat")
        found = fitting(write(one))
        assert found[0] == name and found[1:] in ([], ["hh"])
        if found[1:]:  # what is asked may stand once more in what then would be a whole dialogue
            assert one.asked.strip() in one.chosen and one.chosen.startswith(("Human:", "\n\nHuman:"))
        assert fitting(write(one) | {"format": name}) == [name]


def test_null_is_absent():
    assert fitting(ROWS["chat"] | {"conversations": None, "completions": None, "instruction": None}) == ["chat"]
    assert fitting(ROWS["prompt"] | {"instruction": None, "messages": None}) == ["prompt"]


def test_lists_of_other_things_that_bear_such_a_name_say_nothing():
    assert fitting(ROWS["prompt"] | {"responses": ["a", "b"], "messages": [], "history": []}) == ["prompt"]
    assert fitting({"prompt": "a", "chosen": ["b"], "rejected": "c"}) == []


@pytest.mark.parametrize("first", ROWS)
@pytest.mark.parametrize("second", ROWS)
def test_a_file_in_two_formats_is_refused_naming_both_rows_and_both_formats(read, first, second):
    if first == second:
        assert len(read(ROWS[first], ROWS[first], ROWS[second])) == 3
        return
    with pytest.raises(UserError) as caught:
        read(ROWS[first], ROWS[first], ROWS[second])
    message = str(caught.value)
    assert (
        f"row 3 is '{second}' (" in message
        and f"row 1 is '{first}' (" in message
        and "data/build.py convert" in message
    )
    assert len(message.splitlines()) == 1


DOUBTFUL = [
    (ROWS["prompt"] | ROWS["instruction"], ["prompt", "instruction"]),
    (ROWS["ratings"] | ROWS["prompt"], ["prompt", "instruction", "ratings"]),
    (ROWS["sharegpt"] | ROWS["prompt"], ["sharegpt", "prompt"]),
    (ROWS["chat"] | {"generations": ["a", "b"], "ratings": [1, 2]}, ["chat", "ratings"]),
    (HH | {"prompt": ""}, ["prompt", "hh"]),  # an empty field beside whole dialogues
    (HH | {"prompt": "Say hello."}, ["prompt", "hh"]),  # the prompt would stand in the text twice
    (HH | {"prompt": "\n\nHuman: Say hello.\n\nAssistant:"}, ["prompt", "hh"]),
    (HH | {"prompt": ""}, ["prompt", "hh"]),
    (HH | {"instruction": "Say hello. "}, ["instruction", "hh"]),
    (sharegpt(HELLO) | HH, ["sharegpt", "hh"]),
]


@pytest.mark.parametrize("row, names", DOUBTFUL)
def test_a_row_that_could_be_two_is_refused_unless_it_is_said_which(read, row, names):
    with pytest.raises(UserError) as caught:
        read(row)
    assert "row 1 could be " in str(caught.value) and all(f"'{name}' (" in str(caught.value) for name in names)
    with pytest.raises(UserError) as caught:
        read(ROWS["prompt"], row)
    assert "row 2 could be " in str(caught.value) and "row 1 is 'prompt'" in str(caught.value)
    for name in names:
        assert fitting(row | {"format": name}) == [name]
    assert fitting(row | {"format": "jsonl"}) == fitting(row | {"format": ["hh"]}) == fitting(row)


@pytest.mark.parametrize(
    "asked", [{"prompt": "Quote it."}, {"instruction": "Quote it."}, {"prompt": "Hello? Say hello."}]
)
def test_an_answer_that_quotes_a_dialogue_is_an_answer(read, asked):
    (pair,) = read(HH | asked)
    assert pair.chosen == HH["chosen"] and pair.prompt == asked.get("prompt", instruction_prompt("Quote it."))


def test_a_field_format_makes_nothing_of_a_row_that_it_is_not():
    assert fitting(ROWS["chat"] | {"format": "hh"}) == ["chat"] and fitting({"format": "hh"}) == []


def test_a_format_that_is_said_holds_for_every_row():
    both = ROWS["prompt"] | ROWS["instruction"] | {"prompt": "raw"}
    prompts = {name: pair_of(both, 1, "row 1", OneFormat(name)).prompt for name in ("prompt", "instruction")}
    assert prompts == {"prompt": "raw", "instruction": instruction_prompt("Say hello.")}
    with pytest.raises(UserError, match="row 1: field 'conversations' is missing; found prompt, chosen, rejected"):
        pair_of(ROWS["prompt"], 1, "row 1", OneFormat("sharegpt"))


def test_a_row_that_is_in_no_format_is_held_to_that_of_its_file(read):
    bad = {"chat": ROWS["chat"] | {"chosen": []}, "hh": HH | {"chosen": "Good morning!"}}
    bad |= {"sharegpt": {"chosen": "a", "rejected": "b"}, "ratings": {"instruction": "a", "response": "b"}}
    expected = {"chat": "found no message", "hh": "no turn of the assistant", "sharegpt": "'conversations' is missing"}
    expected |= {"ratings": "'completions' or 'responses' or 'generations' is missing"}
    for name, row in bad.items():
        with pytest.raises(UserError) as caught:
            read(ROWS[name], row)
        assert "row 2: " in str(caught.value) and expected[name] in str(caught.value)


def test_a_dialogue_that_begins_otherwise_is_not_read_by_the_way(read):
    other = {name: "Note: this is old." + text for name, text in HH.items()}
    with pytest.raises(UserError, match="row 2 is not 'hh' .* as row 1 is"):
        read(HH, other)


# Margins, and what is passed on


@pytest.mark.parametrize("names", BOTH_SCORES)
@pytest.mark.parametrize("format", ROWS)
def test_the_scores_of_both_answers_give_the_margin_in_any_format(read, format, names):
    scores = dict(zip(names, (7.5, 6)))
    row = ROWS[format] | scores
    assert read(row)[0].margin == 1.5
    assert read(row | {"margin": 0.25})[0].margin == 0.25
    assert read(row | {"margin": None})[0].margin == 1.5
    assert read(row | {names[1]: None})[0].margin == (1.0 if format == "ratings" else None)
    assert read(row | {names[1]: 7.5})[0].margin == 0
    with pytest.raises(
        UserError, match=f"row 1: '{names[0]}' is 7.5 and '{names[1]}' 8; are chosen and rejected swapped"
    ):
        read(row | {names[1]: 8})
    with pytest.raises(UserError, match=f"row 1: field '{names[1]}' must be a number, found the text"):
        read(row | {names[1]: "6"})


@pytest.mark.parametrize("format", ROWS)
def test_family_group_and_output_are_passed_on_in_any_format(read, format):
    (pair,) = read(ROWS[format] | {"family": "f", "group": "g", "output": "o"})
    assert (pair.family, pair.group, pair.output) == ("f", "g", "o")


def test_ties_and_rows_of_few_answers_are_dropped_and_counted(read):
    dropped = {}
    rows = [ROWS["ratings"], ROWS["ratings"] | {"scores": [1, 1]}, {"instruction": "a", "completions": []}]
    assert [pair.row for pair in read(*rows, dropped=dropped)] == [1]
    assert dropped == {"all answers have one score": [2], "fewer than two answers with a score": [3]}


# Oddities


LONG = "😀 é " * 2**17  # 1 MB as UTF-8

ODDITIES = {
    "empty turns": Preference("", [("", "")], "", "yes", "no"),
    "system": Preference("You are terse.", [], "Hi", "yes", "no"),
    "prefix": Preference("", [("a", "b")], "Hi", "The sky", "The sky is blue"),
    "line ends": Preference("", [("a\r\nb", "\r\n")], "c\r", "yes\r\n", "no\r\n"),
    "end of text": Preference("", [], "<|endoftext|>", "yes<|endoftext|>", "<|endoftext|>"),
    "emoji": Preference("🤖", [("👩\u200d👩\u200d👧", "🇩🇪")], "\U0001f9d1\U0001f3fd", "é", "e\u0301"),
    "long": Preference("", [("Hi", LONG)], "Hi", LONG, LONG + "."),
}


@pytest.mark.parametrize("name", ODDITIES)
@pytest.mark.parametrize("write", SAME, ids=lambda write: write.__name__)
def test_oddities_come_through_every_format_as_they_are(tmp_path, name, write):
    one = ODDITIES[name]
    for pairs in ways(tmp_path / "pairs", write(one)):
        assert [pair[:3] for pair in pairs] == [(one.prompt, one.chosen, one.rejected)]


def ways(file: Path, row: dict) -> Iterator[list[Pair]]:
    """The pairs of a row as JSONL with escapes, as JSONL of Windows with a byte order mark, as a list with one."""
    for ending, escaped, around in (("\n", True, "{}"), ("\r\n", False, "\ufeff{}"), ("\r\n", False, "\ufeff[{}]")):
        text = json.dumps(row, ensure_ascii=escaped, indent=2 if "[" in around else None)
        file.write_bytes((around.format(text.replace("\n", ending)) + ending).encode())
        yield read_pairs(file)


@pytest.mark.parametrize("name", ODDITIES)
def test_oddities_come_through_hh_to_the_last_byte(tmp_path, name):
    chosen, rejected = hh_texts(ODDITIES[name])
    for (pair,) in ways(tmp_path / "hh", {"chosen": chosen, "rejected": rejected}):
        assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (chosen, rejected)


@pytest.mark.parametrize("name", ODDITIES)
def test_oddities_come_through_prompts_and_instructions_as_they_are(tmp_path, name):
    one = ODDITIES[name]
    for (pair,) in ways(tmp_path / "prompt", plain(one)):
        assert pair[:3] == (one.asked, one.chosen, one.rejected)
    for (pair,) in ways(tmp_path / "instruction", instruction(one)):
        assert pair[:3] == (instruction_prompt(one.asked), one.chosen, one.rejected)


def test_an_empty_answer_is_dropped_in_every_format(read):
    for write in SAME:
        dropped = {}
        assert len(read(write(HELLO), write(HELLO._replace(chosen=" ")), dropped=dropped)) == 1
        assert dropped == {"an empty answer": [2]}


# Whatever a row holds

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "a", "\ud800", "\n\nHuman: a\n\nAssistant: b"])
)
message = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool"]) | scalars,
        "content": scalars,
        "from": st.sampled_from(["human", "gpt"]) | scalars,
        "value": scalars,
        "response": scalars,
        "score": scalars,
    },
)
values = scalars | message | st.lists(message | scalars | st.lists(scalars, max_size=2), max_size=4)
names = st.sampled_from([*FIELDS, *(name for both in BOTH_SCORES for name in both)]) | st.text(max_size=4)
rows = st.dictionaries(names, values, max_size=6) | values


@given(rows, st.sampled_from(["", *FORMATS]))
def test_any_row_is_a_pair_or_no_pair_or_one_line_that_names_it(row, format):
    try:
        pair = pair_of(row, 7, "pairs.jsonl, row 7", OneFormat(format))
    except NoPair as none:
        assert str(none)
    except UserError as error:
        assert "pairs.jsonl, row 7" in str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 1000
    else:
        assert isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str | None)
        assert pair.margin is None or isinstance(pair.margin, float)


arbitrary = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)


@given(st.lists(rows | arbitrary | st.sampled_from(list(ROWS.values())), min_size=1, max_size=4))
def test_any_file_of_rows_is_pairs_or_one_line_that_names_file_and_the_first_bad_row(tmp_path_factory, several):
    assume(not isinstance(several[0], list))  # or the file is one list
    file: Path = tmp_path_factory.getbasetemp() / "any.jsonl"

    def read(rows: list) -> str:
        """What is said of a file of these rows, "" where it has pairs."""
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            return "" if read_pairs(file) else "none"
        except UserError as error:
            assert str(file) in str(error) and len(str(error).splitlines()) == 1
            return str(error)

    said = read(several)
    if said and "no pair is left" not in said:
        bad = int(re.search(r"any.jsonl, (?:row|line) (\d+)", said)[1])
        before = read(several[: bad - 1])
        assert not before or "no pair is left" in before
        assert read(several[:bad]) == said


def test_scores_further_apart_than_a_margin_may_be_are_refused_here_and_not_only_when_read_again():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 999_999, "score_rejected": -999_999}
    with pytest.raises(UserError, match="row 1: the scores of the answers are 2e"):
        pair_of(row, 1, "row 1")
