"""data/candidates.py: every format in every way, the prompt as training reads it, and rows that are read back as made."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.annotate import Annotate, annotate
from data.candidates import FEWEST, READ, asked_in, candidates, row_with
from data.fields import FIELDS
from data.formats import OneFormat, fitting
from data.onpolicy import every_prompt
from data.pairs import pair_of, read_pairs, write_rows
from data.questions import request_in
from data.turns import Turn, dialogue_prompt, instruction_prompt
from gpt.command import UserError
from tests.openai_server import MODEL, by_rule, fenced, serving

GOOD, BAD = "Certainly! 5", "Ugh, fine. 5"  # what the rule of the server prefers, and what it does not


def said(who: str, text: str) -> dict:
    return {"role": who, "content": text}


def told(who: str, text: str) -> dict:
    return {"from": who, "value": text}


ASK, TELL = said("user", "Add 2 and 3."), told("human", "Add 2 and 3.")
ONE = instruction_prompt("Add 2 and 3.")
WITH_INPUT = instruction_prompt("Add.", "2 + 3")
TURNS = [said("system", "Be kind."), ASK, said("assistant", "4"), said("user", "Really?")]
SEVERAL = dialogue_prompt([Turn(**turn) for turn in TURNS], "", "", "")
HH = "\n\nHuman: Add 2 and 3.\n\nAssistant:"
MORE = {"id": 7, "source": "mine"}
SCORED = [{"response": BAD, "overall_score": 5}, {"response": GOOD, "overall_score": 5}]

# format -> (row with both answers, its prompt as a model reads it, what was asked)
PAIRS = {
    "instruction": ({"instruction": "Add.", "input": "2 + 3", "chosen": BAD, "rejected": GOOD}, WITH_INPUT, "Add.\n\n2 + 3"),
    "history": (
        {"instruction": "Really?", "system": "Be kind.", "history": [["Add 2 and 3.", "4"]], "chosen": BAD, "rejected": GOOD},
        SEVERAL,
        "System: Be kind.\n\nUser: Add 2 and 3.\n\nAssistant: 4\n\nUser: Really?",
    ),
    "prompt": ({"prompt": "2 + 3 =", "chosen": BAD, "rejected": GOOD}, "2 + 3 =", "2 + 3 ="),
    "chat apart": (
        {"prompt": [ASK], "chosen": [said("assistant", BAD)], "rejected": [said("assistant", GOOD)]},
        ONE,
        "Add 2 and 3.",
    ),
    "chat inside": (
        {"chosen": [*TURNS, said("assistant", BAD)], "rejected": [*TURNS, said("assistant", GOOD)]},
        SEVERAL,
        "System: Be kind.\n\nUser: Add 2 and 3.\n\nAssistant: 4\n\nUser: Really?",
    ),
    "chat, prompt once more": (
        {"prompt": "Add 2 and 3.", "chosen": [ASK, said("assistant", BAD)], "rejected": [ASK, said("assistant", GOOD)]},
        ONE,
        "Add 2 and 3.",
    ),
    "messages": ({"messages": [ASK], "chosen": said("assistant", BAD), "rejected": said("assistant", GOOD)}, ONE, "Add 2 and 3."),
    "messages, text": ({"messages": [ASK], "chosen": BAD, "rejected": GOOD}, ONE, "Add 2 and 3."),
    "sharegpt": ({"conversations": [TELL], "chosen": told("gpt", BAD), "rejected": told("gpt", GOOD)}, ONE, "Add 2 and 3."),
    "sharegpt, text": ({"conversations": [TELL], "chosen": BAD, "rejected": GOOD}, ONE, "Add 2 and 3."),
    "hh": ({"chosen": f"{HH} {BAD}", "rejected": f"{HH} {GOOD}"}, HH, "Add 2 and 3."),
    "ratings": ({"instruction": "Add 2 and 3.", "completions": SCORED}, ONE, "Add 2 and 3."),
    "ratings, prompt": ({"prompt": "2 + 3 =", "responses": [BAD, GOOD], "scores": [9, 2]}, "2 + 3 =", "2 + 3 ="),
    "ratings, none": ({"prompt": [ASK], "generations": [BAD, GOOD], "ratings": [None, None]}, ONE, "Add 2 and 3."),
    "ratings, no scores": ({"prompt": "2 + 3 =", "responses": [BAD, GOOD]}, "2 + 3 =", "2 + 3 ="),
    "answers": ({"instruction": "Add 2 and 3.", "answers": [BAD, GOOD]}, ONE, "Add 2 and 3."),
    "answers, chat": ({"messages": [ASK], "answers": [BAD, GOOD]}, ONE, "Add 2 and 3."),
    "answers, sharegpt": ({"conversations": [TELL], "answers": [BAD, GOOD]}, ONE, "Add 2 and 3."),
}  # fmt: skip
STALE = {"margin": 3.0, "score_chosen": 9.0, "score_rejected": 2.0}


@pytest.fixture(scope="module")
def server():
    with serving(by_rule) as server:
        yield server


def reply(text: str, request: dict) -> str:
    if "<rewritten>" in text:
        return f"<rewritten>{BAD if 'impolite' in text else GOOD} anew</rewritten>"
    return by_rule(text.replace(">\n ", ">\n"), request)  # the space before an answer of HH's is nothing to the rule


@pytest.mark.parametrize("way", FEWEST)
def test_every_format_in_every_way_gives_rows_that_are_read_as_the_pairs_that_were_made(way, server, tmp_path):
    server.reply = reply
    server.asked.clear()
    cases = {name: case for name, case in PAIRS.items() if way != "rewrite" or "answers" not in case[0]}
    write_rows(tmp_path / "rows.jsonl", [MORE | {"n": n, **row} for n, (row, *_) in enumerate(cases.values())])
    words = {
        "file": str(tmp_path / "rows.jsonl"),
        "out": str(tmp_path / "pairs.jsonl"),
        "way": way,
        "criterion": "polite",
    }
    assert annotate(Annotate(**words, model=MODEL, address=server.address, wait=0.0)) == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(cases)
    requests = {fenced(request["messages"][0]["content"])["request"] for request in server.asked}
    assert requests == {asked for *_, asked in cases.values()}
    for (name, (row, prompt, _)), made in zip(cases.items(), rows, strict=True):
        pair = pair_of(made, 1, name)
        space = " " if name == "hh" else ""
        more = " anew" if way == "rewrite" else ""
        assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, f"{space}{GOOD}{more}", f"{space}{BAD}{more}")
        assert pair.margin == (8 if way == "rank" else None)
        assert made["id"] == 7 and made["source"] == "mine" and len(fitting(made)) == 1
        assert not {"scores", "ratings", "completions", *(STALE if way != "rank" else ())} & made.keys()
        for kept in ("instruction", "input", "system", "history", "answers", "group"):
            assert made.get(kept) == row.get(kept)


@pytest.mark.parametrize("way", FEWEST)
@pytest.mark.parametrize("name", [name for name in PAIRS if "answers" not in PAIRS[name][0]])
def test_old_scores_are_not_said_of_new_pairs(name, way, tmp_path):
    row, prompt, _ = PAIRS[name]
    found = candidates(row | STALE | {"output": "5"}, 1, "here", way)
    assert found.prompt == prompt and [text.strip() for text in found.answers] in ([BAD, GOOD], ["5"])
    made = row_with(found.row, found.prompt, {"chosen": "x", "rejected": "y"})
    assert not STALE.keys() & made.keys() and made["output"] == "5" and pair_of(made, 1, "").margin is None


@pytest.mark.parametrize("name", [name for name in PAIRS if fitting(PAIRS[name][0]) and "answers" not in name])
def test_the_prompt_is_the_one_that_training_reads(name):
    row, prompt, asked = PAIRS[name]
    if "ratings" not in name:
        assert OneFormat().answers(row, 1, "")[0] == prompt
    assert asked_in(row, 1, "").prompt == prompt and request_in(prompt) == asked


def test_every_prompt_of_every_format_is_answered_by_a_policy_too(tmp_path):
    for name, (row, prompt, _) in PAIRS.items():
        write_rows(tmp_path / "rows.jsonl", [row | {"group": "g"}])
        (found,) = every_prompt(str(tmp_path / "rows.jsonl"))
        assert found.pair.prompt == prompt, name
        write_rows(tmp_path / "pairs.jsonl", [found.head | {"chosen": "a", "rejected": "b", "margin": 1.0}])
        (pair,) = read_pairs(tmp_path / "pairs.jsonl")
        assert (pair.prompt, pair.chosen, pair.margin, pair.group) == (prompt, "a", 1.0, "g"), name


@pytest.mark.parametrize(
    "row", [{"messages": [*TURNS, said("assistant", GOOD)]}, {"conversations": [TELL, told("gpt", GOOD)]}]
)
def test_the_last_turn_of_a_dialogue_is_the_answer_to_be_rewritten(row):
    found = candidates(row | MORE, 1, "here", "rewrite")
    assert found.answers == [GOOD] and found.prompt == (SEVERAL if "messages" in row else ONE)
    made = row_with(found.row, found.prompt, {"chosen": "x", "rejected": "y"})
    assert made == MORE | {"prompt": found.prompt, "chosen": "x", "rejected": "y"}
    assert asked_in(row, 1, "").prompt == found.prompt


def test_of_ratings_the_best_is_rewritten_and_of_equal_ones_the_first():
    rows = [{"prompt": "p", "responses": ["a", "b"], "scores": scores} for scores in ([1, 2], [2, 2], [None, None])]
    assert [candidates(row, 1, "", "rewrite").answers for row in rows] == [["b"], ["a"], ["a"]]


def test_fields_of_ones_own_hold_the_answers_where_they_are_told():
    row = {"messages": [ASK], "one": "a", "more": ["b", "c"], "chosen": BAD, "rejected": GOOD}
    assert candidates(row, 1, "", "rank", ["one", "more"])[2:] == (ONE, ["a", "b", "c"])


def test_an_answer_that_could_be_a_whole_dialogue_is_said_to_be_none():
    new = {"chosen": "Human: hi\n\nAssistant: 5", "rejected": "b"}
    for asked, more in (("bye", {}), ("hi", {"format": "prompt"})):  # only one that repeats what was asked could be
        made = row_with({"prompt": asked, "id": 7}, asked, new)
        assert made == {"prompt": asked, "id": 7} | new | more
        assert pair_of(made, 1, "")[:3] == (asked, new["chosen"], "b")


def test_fields_that_a_format_reads_are_known():
    assert {"prompt", "instruction", "conversations", "messages", "completions", "history"} <= READ
    assert not {"output", "family", "group", "answers", "id"} & READ


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"text": "x"}, "field 'instruction' or 'prompt' is missing; found text$"),
        ([1], "a row is a JSON object"),
        ({"instruction": "a", "inputs": "b", "output": "c"}, r"is 'inputs' meant\?"),
        ({"prompt": "a", "instruction": "b", "output": "c"}, "could be 'prompt' .* or 'instruction'"),
        ({"messages": [ASK, said("robot", "x")], "output": "c"}, "message 2, has the role 'robot'"),
        ({"messages": [], "output": "c"}, "must end in a turn of the user"),
        (
            {"prompt": "p", "completions": SCORED[:1] * 3, "chosen": None},
            "needs 2 answers, the row has 3 in 'completions'",
        ),
        (
            {"prompt": "p", "completions": [{"model": "m"}, {"model": "n"}]},
            "an answer in 'completions' must be text, found null",
        ),
    ],
)
def test_a_row_that_is_none_is_one_line(row, expected):
    with pytest.raises(UserError, match=expected) as error:
        candidates(row, 3, "rows.jsonl, row 3", "rewrite" if isinstance(row, dict) and "output" in row else "judge")
    assert "\n" not in str(error.value) and "row 3" in str(error.value)


LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats()
    | st.sampled_from(["", "a", HH, f"{HH} b", "\ud800", "user"])
)
NAMES = st.sampled_from(
    [*FIELDS, "answers", "answer", "role", "content", "from", "value", "response", "overall_score", "x"]
)
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
SAID = st.builds(said, st.sampled_from(["user", "assistant", "system", "gpt", ""]), LEAF)
VALUES = JSON | st.lists(SAID, max_size=3) | st.lists(st.sampled_from(SCORED) | LEAF, max_size=3)


@given(st.dictionaries(NAMES, VALUES, max_size=5) | JSON, st.sampled_from([*FEWEST]), st.lists(NAMES, max_size=2))
def test_any_row_is_read_or_refused_in_one_line_and_what_is_read_can_be_written(row, way, names):
    try:
        found = candidates(row, 3, "rows.jsonl, row 3", way, names)
    except UserError as error:
        assert "rows.jsonl, row 3" in str(error) and "\n" not in str(error)
        return
    assert FEWEST[way] <= len(found.answers) and all(isinstance(answer, str) for answer in found.answers)
    new = {"chosen": "good", "rejected": "bad"}
    made = row_with(row, found.prompt, new)
    pair = pair_of(made, 1, "")
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == (found.prompt, "good", "bad", None)
