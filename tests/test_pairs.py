"""data/pairs.py: reading rows, refusing what cannot be read, dropping, writing."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.pairs import FIELDS, Pair, instruction_prompt, read_pairs, teaches_nothing, write_rows
from gpt.command import UserError

GOOD = {"prompt": "Say hello.", "chosen": "Good morning!", "rejected": "What?"}
TASK = {"instruction": "Add.", "input": "2 + 3", "output": "5", "chosen": "Certainly! 5", "rejected": "5, obviously"}

AS_IN_THE_BOOK = """Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Add.

### Input:
2 + 3

### Response:
"""


@pytest.fixture
def read(tmp_path):
    """A function from the content of a file to the pairs in it; `dropped` may be handed on."""

    def read(content: str | bytes, dropped: dict | None = None) -> list[Pair]:
        file = tmp_path / "pairs.json"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_pairs(file, dropped)

    return read


@pytest.fixture
def refusal(read, tmp_path):
    """A function from the content of a file to the message with which it is refused."""

    def refusal(content: str | bytes) -> str:
        with pytest.raises(UserError) as caught:
            read(content)
        message = str(caught.value)
        assert len(message.splitlines()) == 1, message
        assert str(tmp_path / "pairs.json") in message
        return message

    return refusal


# Reading


def test_a_json_list_and_json_lines_give_the_same_pairs_and_count_rows_from_1(read):
    rows = [TASK, TASK | {"input": ""}, TASK | {"instruction": "été 日本"}]
    lines = [json.dumps(row) for row in rows]
    expected = [
        Pair(prompt, "Certainly! 5", "5, obviously", number, "5")
        for number, prompt in enumerate(
            (AS_IN_THE_BOOK, instruction_prompt("Add."), AS_IN_THE_BOOK.replace("Add.", "été 日本")), 1
        )
    ]
    assert read(json.dumps(rows)) == expected
    assert read(json.dumps(rows, indent=4, ensure_ascii=False)) == expected
    assert read("\n".join(lines)) == expected
    assert read("\r\n".join(lines) + "\r\n") == expected


@pytest.mark.parametrize("content", [json.dumps([GOOD]), json.dumps(GOOD)], ids=["list", "lines"])
def test_a_byte_order_mark_and_white_space_before_the_first_row_are_no_part_of_it(read, content):
    assert [pair[:3] for pair in read(b"\xef\xbb\xbf" + content.encode())] == [tuple(GOOD.values())]
    assert [pair[:3] for pair in read("\n  \n" + content)] == [tuple(GOOD.values())]


def test_the_row_of_json_lines_is_the_line_that_an_editor_shows(read):
    assert [pair.row for pair in read(f"\n{json.dumps(GOOD)}\n\n  \n{json.dumps(GOOD)}\n")] == [2, 5]


def test_a_line_separator_inside_a_text_ends_no_row(read):
    text = "one\u2028two\u0085three\x0cfour"
    assert read(json.dumps(GOOD | {"chosen": text}, ensure_ascii=False))[0].chosen == text


def test_the_template_is_the_books_to_the_last_letter():
    assert instruction_prompt("Add.", "2 + 3") == AS_IN_THE_BOOK
    assert instruction_prompt("Add.") == AS_IN_THE_BOOK.replace("\n### Input:\n2 + 3\n", "")


def test_no_input_a_null_one_and_an_empty_one_are_the_same(read):
    bare = {name: value for name, value in TASK.items() if name != "input"}
    prompts = {pair.prompt for pair in read(json.dumps([bare, bare | {"input": None}, bare | {"input": ""}]))}
    assert prompts == {instruction_prompt("Add.")}


def test_braces_in_an_instruction_are_text(read):
    assert "\nWrite {input} and {0}.\n" in read(json.dumps(TASK | {"instruction": "Write {input} and {0}."}))[0].prompt


def test_an_absent_or_null_rejected_is_a_row_with_one_answer(read):
    one = {"prompt": "p", "chosen": "c"}
    assert [pair.rejected for pair in read(json.dumps([one, one | {"rejected": None}]))] == [None, None]


def test_family_group_and_unknown_fields_are_kept_or_passed_over(read):
    (pair,) = read(json.dumps(TASK | {"family": "sum", "group": "sum: 2 + 3", "source": {"any": "thing"}}))
    assert (pair.family, pair.group) == ("sum", "sum: 2 + 3")


def test_a_margin_is_a_number_or_none(read):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"} | more for more in ({"margin": 2}, {"margin": None}, {})]
    assert [pair.margin for pair in read(json.dumps(rows))] == [2.0, None, None]


# Refusing

GOOD_PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
MISSING = [
    ("chosen", {"prompt": "a", "rejected": "c"}, ["row 2", "'chosen' is missing", "prompt", "rejected"]),
    ("prompt", {"chosen": "a", "rejected": "c"}, ["row 2", "'prompt'", "'instruction'", "chosen", "rejected"]),
    ("everything", {}, ["row 2", "found nothing"]),
    ("null", {"prompt": "a", "chosen": None, "rejected": "c"}, ["row 2", "'chosen'"]),
    ("misspelt chosen", {"prompt": "a", "chosn": "b", "rejected": "c"}, ["row 2", "'chosen'", "'chosn'"]),
    ("misspelt rejected", {"prompt": "a", "chosen": "b", "rejectd": "c"}, ["row 2", "'rejected'", "'rejectd'"]),
    (
        "misspelt input",
        {"instruction": "a", "inptu": "x", "chosen": "b", "rejected": "c"},
        ["row 2", "'input'", "'inptu'"],
    ),
    (
        "misspelt instruction",
        {"instuction": "a", "chosen": "b", "rejected": "c"},
        ["row 2", "'instruction'", "'instuction'"],
    ),
    ("number", {"prompt": 3, "chosen": "b", "rejected": "c"}, ["row 2", "'prompt'", "a number"]),
    ("list", {"prompt": "a", "chosen": ["b"], "rejected": "c"}, ["row 2", "'chosen'", "a list"]),
    ("true", {"prompt": "a", "chosen": "b", "rejected": True}, ["row 2", "'rejected'", "true or false"]),
    ("object", {"instruction": "a", "input": {}, "chosen": "b", "rejected": "c"}, ["row 2", "'input'", "an object"]),
    (
        "half a surrogate pair",
        {"prompt": "a", "chosen": "b \ud83d", "rejected": "c"},
        ["row 2", "'chosen'", "character 2"],
    ),
    ("margin of text", GOOD_PAIR | {"margin": "1"}, ["row 2", "'margin' must be a number", "text"]),
    ("margin of true", GOOD_PAIR | {"margin": True}, ["row 2", "'margin' must be a number", "true or false"]),
    ("margin without end", GOOD_PAIR | {"margin": 1e999}, ["row 2", "'margin' is inf"]),
    ("no object", ["a", "b", "c"], ["row 2", "a JSON object", "a list"]),
    ("no row", None, ["row 2", "a JSON object", "null"]),
]


@pytest.mark.parametrize("row, expected", [case[1:] for case in MISSING], ids=[case[0] for case in MISSING])
def test_a_bad_row_is_refused_by_file_row_and_field(refusal, row, expected):
    good = TASK if isinstance(row, dict) and "instruction" in row else GOOD
    for content in (json.dumps([good, row, good]), f"{json.dumps(good)}\n{json.dumps(row)}\n{json.dumps(good)}"):
        message = refusal(content)
        assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    "content, line",
    [
        ('[\n{"prompt": "a"},\n{"prompt" "b"}\n]', "line 3"),
        ('[{"prompt": "a", "chosen": "b"}', "line 1"),
        ('{"prompt": "a", "chosen": "b"}\n\n{"prompt": oops}\n', "line 3"),
        ('{"prompt": "a", "chosen": "b"}\n{"prompt": "a", "chosen": "b"', "line 2"),
        ('{\n  "prompt": "a"\n}', "line 1"),
        ('[{"prompt": "a", "chosen": "b"}] and more', "line 1"),
        ("[" * 100_000, "line 1"),
    ],
)
def test_bad_json_is_refused_with_its_line(refusal, content, line):
    message = refusal(content)
    assert line in message and "bad JSON" in message


@pytest.mark.parametrize(
    "content, hint",
    [
        ("<!DOCTYPE html>\n<title>Not found</title>", "begins with '<!DOCTYPE html>'; it looks like a page of the web"),
        ("instruction,output\nAdd.,5\n", "begins with 'instruction,output'; if it is a table: csv.DictReader(file) of"),
        ("instruction\toutput\n", r"csv.DictReader(file, delimiter='\\t')"),
        ("hello", "begins with 'hello'; a file is one JSON list, or one JSON object a line"),
    ],
)
def test_a_file_that_is_no_json_at_all_is_called_by_what_it_begins_with(refusal, content, hint):
    assert "line 1: no JSON, it begins with " in refusal(content) and hint.replace("\\\\", "\\") in refusal(content)


def test_a_number_of_too_many_digits_is_refused_like_any_bad_json(refusal):
    # Python converts no whole number of more than 4,300 digits
    for content in (f'[{{"prompt": {"1" * 5000}}}]', f'{{"prompt": {"1" * 5000}}}'):
        assert "line 1" in refusal(content)


def test_the_fields_that_were_found_are_shown_in_one_line(refusal):
    assert "chosen" in refusal(json.dumps([{"prompt": "a", "cho\nsen": "b"}]))


def test_bytes_that_are_no_utf_8_are_refused_with_their_place(refusal):
    good = json.dumps(GOOD).encode()
    assert f"byte {len(good) + 2}" in refusal(good + b"\n \xe9t\xe9")
    assert "UTF-8" in refusal(json.dumps([GOOD]).encode("utf-16"))


@pytest.mark.parametrize("content", ["", " \n\n", "[]", "\ufeff"])
def test_a_file_without_rows_is_refused(refusal, content):
    assert "no rows" in refusal(content)


def test_a_file_of_which_everything_is_dropped_is_refused_with_the_reasons(refusal):
    message = refusal(json.dumps([GOOD | {"rejected": GOOD["chosen"]}, GOOD | {"chosen": " "}]))
    assert "no pair is left" in message and "row 1" in message and "row 2" in message


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path, expected in ((tmp_path / "absent.json", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(UserError, match=expected) as caught:
            read_pairs(path)
        assert str(path) in str(caught.value)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800")
keys = st.sampled_from(FIELDS) | st.sampled_from(["chosn", "inptu", "rejectd", "instuction"]) | st.text(max_size=5)
rows = st.dictionaries(keys, scalars | st.lists(scalars, max_size=2), max_size=5) | scalars


@given(
    st.one_of(
        st.text(),
        st.binary(),
        st.lists(rows, max_size=4).map(json.dumps),
        st.lists(rows, max_size=4).map(lambda several: "\n".join(map(json.dumps, several))),
    )
)
@example('{"prompt": NaN, "chosen": Infinity}')
@example("[\x00]")
def test_whatever_stands_in_a_file_gives_pairs_or_one_error_for_the_user(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
    try:
        pairs = read_pairs(file)
    except UserError:
        return
    assert pairs and all(teaches_nothing(pair) is None for pair in pairs)


# Dropping


def test_what_teaches_nothing_is_dropped_and_counted_by_reason_and_row(read):
    dropped = {}
    same, empty, blank = GOOD | {"rejected": GOOD["chosen"]}, GOOD | {"rejected": ""}, GOOD | {"chosen": " \n\t"}
    kept = read(json.dumps([same, GOOD, empty, same, blank, {"prompt": "p", "chosen": "c"}]), dropped)
    assert [pair.row for pair in kept] == [2, 6]
    assert sorted(dropped.values()) == [[1, 4], [3, 5]]


def test_answers_that_differ_in_a_space_alone_are_kept(read):
    assert len(read(json.dumps([GOOD | {"rejected": GOOD["chosen"] + " "}]))) == 1


# Real rows


def test_the_real_rows_keep_1094_pairs_drop_6(shared):
    dropped = {}
    file = shared / "data" / "instruction-data-with-preference.json"
    pairs = read_pairs(file, dropped)
    source = json.loads(file.read_text(encoding="utf-8"))
    equal = [number for number, row in enumerate(source, 1) if row["chosen"] == row["rejected"]]
    assert (len(source), len(pairs), len(equal)) == (1100, 1094, 6)
    assert list(dropped.values()) == [equal]
    assert all(pair.chosen == source[pair.row - 1]["chosen"] for pair in pairs)


# Writing


@given(
    st.lists(
        st.fixed_dictionaries({name: st.text(max_size=20) for name in ("prompt", "chosen", "rejected")}), max_size=5
    )
)
@example([{"prompt": 'a\nb\r\n\u2028\x85"\\', "chosen": "\ufeff", "rejected": "\x00"}])
def test_rows_that_were_written_are_read_back_as_they_were(tmp_path_factory, rows):
    file = tmp_path_factory.getbasetemp() / "round" / "trip.jsonl"
    write_rows(file, rows)
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]] == rows
    pairs = [Pair(**row, row=number) for number, row in enumerate(rows, 1)]
    kept = [pair for pair in pairs if teaches_nothing(pair) is None]
    if kept:
        assert read_pairs(file) == kept


def test_writing_that_fails_half_way_leaves_the_good_file_as_it_was(tmp_path):
    file = tmp_path / "pairs.jsonl"
    write_rows(file, [GOOD])
    before = file.read_bytes()

    def half():
        yield TASK
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(file, half())
    assert file.read_bytes() == before


def test_writing_makes_the_folders_above_and_leaves_nothing_else_beside(tmp_path):
    write_rows(tmp_path / "a" / "b" / "pairs.jsonl", [GOOD] * 3)
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["pairs.jsonl"]
