"""data/reading.py against reading all of a file at once: the same rows, places and errors, wherever blocks end."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.pairs import Pair, pair_at, placed_pairs, read_pairs, stream_pairs, write_rows
from data.reading import BLOCK, stream_rows
from gpt.command import UserError
from tests.processes import ENVIRONMENT, ROOT

blocks = st.integers(1, 7) | st.sampled_from([16, 50, BLOCK])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(['\n\\"', "é😀", "\u2028"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
spaces = st.text(" \t\n\r", max_size=4)


@st.composite
def files(draw) -> str:
    """A JSON list or JSONL of any values, with white space wherever it may stand."""
    written = [json.dumps(v, ensure_ascii=draw(st.booleans())) for v in draw(st.lists(values, max_size=5))]
    if draw(st.booleans()):
        return "\n".join(written)
    inside = ",".join(draw(spaces) + one + draw(spaces) for one in written)
    return f"{draw(spaces)}[{inside or draw(spaces)}]{draw(spaces)}"


@st.composite
def damaged(draw) -> str:
    """One of `files` with a few characters taken out or put in."""
    text = draw(files())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        text = (
            text[:place] + draw(st.text('[]{},:"\\u\n\r1e.-x ', max_size=2)) + text[place + draw(st.integers(0, 3)) :]
        )
    return text


def all_at_once(file: Path) -> list[tuple]:
    """(number, value) of each row, by the standard library; a JSONDecodeError has its line and column in the file."""
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        return list(enumerate(json.loads(text), 1))
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            found += [(number, json.loads(line))] if line.strip() else []
        except json.JSONDecodeError as error:
            error.lineno = number
            raise
    return found


def check(file: Path, block: int) -> None:
    try:
        expected = all_at_once(file)
    except json.JSONDecodeError as error:
        with pytest.raises(UserError) as caught:
            list(stream_rows(file, block))
        # a line of JSONL that only opens an object, and as it was parsed alone stands in error.doc, is called by what it is
        message = "an object of several lines" if error.doc.strip() == "{" else error.msg
        if error.lineno == 1 and error.doc[error.pos :] == error.doc.lstrip():  # not even its beginning is JSON
            assert ", line 1: no JSON, it begins with " in str(caught.value)
        elif (
            "trailing comma before end of array" not in message
        ):  # of Python 3.13; here it is an element that is missing
            assert f", line {error.lineno}, column {error.colno}: bad JSON: {message};" in str(caught.value)
        return
    found = list(stream_rows(file, block))
    assert repr([row[:2] for row in found]) == repr(expected)  # NaN is not equal to itself
    content = file.read_bytes()
    assert repr([json.loads(content[row.start : row.start + row.size]) for row in found]) == repr(
        [value for _, value in expected]
    )


@given(files() | damaged(), blocks, st.booleans())
@example('[{"a": 1}\r\n,\r\r{"b" 2}]', 3, True)
@example("[1e5, 1.5, -2, 12345]", 1, False)
@example('["\\ud83d\\ude00", NaN, -Infinity]', 1, False)
@example("[1,]", 2, False)
@example("{\r[]", 1, False)
@example(":[]", 1, True)
@example("[\n1 2]", 2, False)
@example('{"a": 1}\r{"b": 2}\r\n\n {"c": 3}', 2, False)
@example(" \u00a0[1]", 1, False)
def test_a_stream_gives_the_rows_places_and_errors_of_reading_all_at_once(tmp_path_factory, content, block, mark):
    file = tmp_path_factory.getbasetemp() / "stream.json"
    file.write_bytes(("\ufeff" * mark + content).encode())
    check(file, block)


@given(blocks, st.integers(0, 3), st.booleans(), st.booleans())
def test_a_byte_that_is_no_utf_8_is_named_by_its_place_in_the_file(tmp_path_factory, block, before, mark, as_list):
    file = tmp_path_factory.getbasetemp() / "bytes.json"
    good = ("\ufeff" * mark + "[" * as_list + ('"é😀",' if as_list else '"é😀"\n') * before).encode()
    file.write_bytes(good + b'"\xe9"' + b"]" * as_list)
    with pytest.raises(UserError, match=f"byte {len(good) + 1} cannot"):
        list(stream_rows(file, block))


@pytest.mark.parametrize("block", [1, 2, 5, BLOCK])
def test_a_character_that_the_file_ends_in_is_named_too(tmp_path, block):
    for content in (b'[{"a": "\xf0\x9f', b'{"a": 1}\n{"a": "\xf0\x9f'):
        (tmp_path / "cut.json").write_bytes(content)
        with pytest.raises(UserError, match=f"byte {len(content) - 2} cannot"):
            list(stream_rows(tmp_path / "cut.json", block))


def test_bad_json_after_a_bad_row_is_said_first(tmp_path):
    (tmp_path / "pairs.json").write_text('[{"prompt": "a"}, {"prompt": "b"')
    with pytest.raises(UserError, match="line 1, column 33: bad JSON"):
        list(stream_pairs(tmp_path / "pairs.json", {}))


texts = st.text(max_size=12)
pairs = st.lists(st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts}), min_size=1, max_size=6)


@given(pairs, blocks, st.booleans(), st.booleans())
def test_each_pair_is_found_again_at_its_place(tmp_path_factory, rows, block, lines, escaped):
    file = tmp_path_factory.getbasetemp() / "placed.json"
    written = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    file.write_text("\n\n".join(written) if lines else f"[{' , '.join(written)}]", encoding="utf-8", newline="")
    dropped, again = {}, {}
    found = list(placed_pairs(file, dropped, None, block))
    assert [pair_at(file, start, size, pair.row) for pair, start, size in found] == [pair for pair, _, _ in found]
    assert [pair for pair, _, _ in found] == list(stream_pairs(file, again, None, block)) and dropped == again
    if found:
        assert read_pairs(file) == [pair for pair, _, _ in found]


def test_a_place_in_a_file_that_changed_is_one_line(tmp_path):
    file = tmp_path / "pairs.jsonl"
    write_rows(file, [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    ((pair, start, size),) = placed_pairs(file, {}, None)
    assert pair == Pair("p", "c", "r", 1)
    for content in (b"", b"[" * size, b"\xff" * size, b"1" + b" " * size):
        file.write_bytes(content)
        with pytest.raises(UserError, match="row 1: the file has changed"):
            pair_at(file, start, size, 1)


PEAK = """
import sys
from pathlib import Path
from data.pairs import stream_pairs
count = sum(1 for _ in stream_pairs(sys.argv[1], {}))
# not what getrusage says, which begins with the memory of the process that started this one
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(count, 1024 * int(peak))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of a process")
@pytest.mark.parametrize("as_list", [False, True])
def test_the_memory_of_a_stream_does_not_grow_with_the_file(tmp_path, as_list):
    peaks = []
    for count in (5_000, 50_000):
        rng, file = Random(0), tmp_path / f"{count}.json"
        rows = (
            json.dumps({"prompt": f"{i} " * 20, "chosen": f"{rng.random()} " * 20, "rejected": f"{i} no " * 20})
            for i in range(count)
        )
        with open(file, "w") as out:  # without line ends: nothing but the blocks cuts it
            out.write("[" * as_list + ("," if as_list else "\n").join(rows) + "]" * as_list)
        words = [sys.executable, "-c", PEAK, str(file)]
        done = subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=True)
        found, peak = map(int, done.stdout.split())
        assert found == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 10e6 < file.stat().st_size
