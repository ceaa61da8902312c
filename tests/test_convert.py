"""data/convert.py: what is written is read as the same pairs, whatever the format; what is said of it, counted otherwise."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.convert import LONG, PIECES, Convert, convert, pieces, row_of
from data.formats import FORMATS, OneFormat
from data.pairs import Pair, checked, read_pairs, write_rows
from data.reading import stream_rows
from dpo.examples import open_examples
from gpt.command import UserError, parse
from gpt.tokenizer import Tokenizer
from tests.preferences import (
    FORMAT,
    SAME,
    Preference,
    as_hh,
    chat_apart,
    chat_inside,
    instruction,
    plain,
    preferences,
    sharegpt,
    sharegpt_system,
)
from tests.processes import ENVIRONMENT, ROOT, call
from tests.shaping import shape

HELLO = Preference("", [], "Say hello.", "Good morning!", "What?")
BUILD = ROOT / "data" / "build.py"


def texts(pairs: list[Pair]) -> list[tuple]:
    """What of a pair does not depend on where it stood."""
    return [pair._replace(row=0) for pair in pairs]


@given(
    st.lists(preferences, min_size=1, max_size=4), st.sampled_from([*SAME, as_hh, plain, instruction]), st.booleans()
)
@example([Preference("", [], "a", "Human: a\n\nAssistant: b", "c")], plain, False)  # may be a whole dialogue
@example([Preference("", [], "", "Human: a\n\nAssistant: b", "c")], instruction, False)
@example([Preference("", [], "Human: a\n\nAssistant:", "Human: a\n\nAssistant: b", "c")], sharegpt_system, False)
@example([Preference("", [], "Quote.", "Human: a\n\nAssistant: b", "c")], plain, False)  # can not
@example([Preference("", [], "a", "Human: a\n\nAssistant: b", "c")], chat_apart, False)
def test_what_was_converted_is_read_as_the_pairs_of_the_file(tmp_path_factory, several, write, packed):
    folder = tmp_path_factory.mktemp("convert")
    more = {"family": "f", "output": "o"}
    write_rows(folder / "in.jsonl", [write(one) | more | {"group": one.asked} for one in several])
    (folder / "in.gz").write_bytes(gzip.compress((folder / "in.jsonl").read_bytes()))
    name = FORMAT.get(write.__name__, "chat")
    found = checked(stream_rows(folder / "in.jsonl"), "in.jsonl", None, OneFormat(name))
    pairs = [pair for _, pair, _ in found if pair]
    file, out = str(folder / ("in.gz" if packed else "in.jsonl")), folder / "out.jsonl"
    try:
        assert texts(read_pairs(folder / "in.jsonl")) == texts(pairs)
        said = ""
    except UserError as error:
        if pairs:  # each row that is refused may be two things, and is none with --format
            assert f"'{name}' (" in str(error) and "or 'hh' (" in str(error)
        said = name
    if not pairs:
        with pytest.raises(UserError, match="no pair is left"):
            convert(Convert(files=[file], out=str(out), format=said))
        assert not out.exists()
        return
    convert(Convert(files=[file], out=str(out), format=said))
    assert texts(read_pairs(out)) == texts(pairs)
    convert(Convert(files=[str(out)], out=str(folder / "again.jsonl")))
    assert (folder / "again.jsonl").read_bytes() == out.read_bytes()
    shape(folder, "sample", out, "--count", 9, "--out", "sample.jsonl")
    shape(folder, "dedupe", "sample.jsonl", "--out", "-")


def test_a_row_says_what_it_is_where_it_could_be_two_alone(tmp_path):
    rows = [{"prompt": asked, "chosen": "Human: a\n\nAssistant: b", "rejected": "c"} for asked in ("a", "x")]
    write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(UserError, match="row 1 could be 'prompt' .* or 'hh'"):
        read_pairs(tmp_path / "in.jsonl")
    convert(Convert(files=[str(tmp_path / "in.jsonl")], out=str(tmp_path / "out.jsonl"), format="prompt"))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [rows[0] | {"format": "prompt"}, rows[1]]


@given(
    st.builds(
        Pair, *[st.text(max_size=5)] * 2, st.none() | st.text(max_size=5), margin=st.none() | st.floats(-1e5, 1e5)
    )
)
def test_a_row_has_what_a_pair_has_and_no_more(pair):
    row = row_of(pair)
    assert Pair(**{"rejected": None, **row}) == pair._replace(row=0) and None not in row.values()


@pytest.mark.parametrize("write", [*SAME, as_hh, plain, instruction], ids=lambda write: write.__name__)
def test_the_trainer_makes_the_same_tokens_of_a_file_and_of_what_it_became(tmp_path, tokenizer, write):
    several = [Preference("Be kind.", [("a", "b")] * (i % 3), f"{i}?", f"yes {i} 😀", f"no {i}") for i in range(40)]
    write_rows(tmp_path / "in.jsonl", map(write, several))
    convert(Convert(files=[str(tmp_path / "in.jsonl")], out=str(tmp_path / "out.jsonl")))
    both = [open_examples(str(tmp_path / name), tokenizer, 512, 0.3, None, {}) for name in ("in.jsonl", "out.jsonl")]
    for side, other in zip(*both):
        assert len(side.ids) > 3 and list(side.ids) == list(other.ids) and list(side.pairs) == list(other.pairs)
        assert np.array_equal(side.margins, other.margins, equal_nan=True)


# The command


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder with a file in each of three formats, two rows of which give no pair."""
    chat = [
        chat_inside(HELLO._replace(chosen=f"Hello {i}")) | {"score_chosen": 9, "score_rejected": i} for i in range(5)
    ]
    chat[2] = chat_inside(HELLO._replace(chosen=""))
    chat[3] = chat_inside(HELLO._replace(chosen="What?"))
    write_rows(tmp_path / "chat.jsonl", chat)
    longer = {"chosen": as_hh(HELLO)["chosen"] + "\n\nHuman: a\n\nAssistant: b", "rejected": as_hh(HELLO)["rejected"]}
    (tmp_path / "hh.jsonl.gz").write_bytes(
        gzip.compress(f"{json.dumps(as_hh(HELLO))}\n{json.dumps(longer)}\n".encode())
    )
    (tmp_path / "share.json").write_text(json.dumps([sharegpt(HELLO._replace(rejected="<|endoftext|>"))] * 7, indent=1))
    return tmp_path


def said(out: str) -> list[dict[str, str]]:
    """The lines on each file, by the name at their head."""
    parts = re.split(r"^(?=file  )", out.partition("\n\n")[0], flags=re.MULTILINE)[1:]
    return [{line[:10].strip(): line[10:] for line in part.splitlines()} for part in parts]


def test_several_files_of_several_formats_become_one(files):
    names = ["chat.jsonl", "hh.jsonl.gz", "share.json"]
    done = call(BUILD, "convert", *names, "--out", "new/out.jsonl", cwd=files)
    chat, hh, share = said(done.stdout)
    assert chat["file"] == "chat.jsonl" and chat["format"].startswith("chat, by row 1: ")
    assert chat["rows"] == "5 read, 3 pairs, 3 with a margin"
    assert chat["dropped"] == "an empty answer: 1 pair (row 3); chosen equal to rejected: 1 pair (row 4)"
    assert chat["not used"] == "prompt_id (3)"
    assert hh["format"].startswith("hh, ") and hh["rows"] == "2 read, 2 pairs" and hh["dropped"] == "none"
    assert hh["noted"].startswith("an answer goes on with more turns") and hh["noted"].endswith(": 1 pair (row 2)")
    assert share["format"].startswith("sharegpt, ") and share["rows"] == "7 read, 7 pairs"
    assert share["noted"].endswith("in the text, read as its letters: 7 pairs (rows 1, 2, 3, 4, 5, 6, 7)")
    assert done.stdout.count("as it will be tokenized") == 2 and done.stdout.endswith(
        "\n12 pairs written to new/out.jsonl\n"
    )
    pairs = read_pairs(files / "new" / "out.jsonl")
    assert [pair.chosen for pair in pairs[:4]] == ["Hello 0", "Hello 1", "Hello 4", " Good morning!"]
    assert pairs[4].chosen == " Good morning!\n\nHuman: a\n\nAssistant: b"
    assert [pair.margin for pair in pairs[:4]] == [9.0, 8.0, 5.0, None]


def test_out_dash_writes_nothing_and_limit_reads_no_further(files):
    with open(files / "chat.jsonl", "a") as file:
        file.write("oops\n")
    before = sorted(files.rglob("*"))
    done = call(BUILD, "convert", "chat.jsonl", "share.json", "--out", "-", "--limit", 2, cwd=files)
    assert [part["rows"].partition(",")[0] for part in said(done.stdout)] == ["2 read", "2 read"]
    assert done.stdout.endswith("\n4 pairs\n") and sorted(files.rglob("*")) == before


def test_a_format_that_is_said_reads_what_could_be_two(tmp_path):
    write_rows(tmp_path / "two.jsonl", [{"prompt": "raw", "instruction": "i", "chosen": "a", "rejected": "b"}])
    done = call(BUILD, "convert", "two.jsonl", "--out", "o.jsonl", code=2, cwd=tmp_path)
    assert "row 1 could be 'prompt' (" in done.stderr and "--format" in done.stderr
    done = call(BUILD, "convert", "two.jsonl", "--out", "o.jsonl", "--format", "prompt", cwd=tmp_path)
    assert (
        said(done.stdout)[0]["format"] == "prompt, as --format says"
        and read_pairs(tmp_path / "o.jsonl")[0].prompt == "raw"
    )
    assert said(done.stdout)[0]["not used"] == "instruction (1)"


BAD = [
    ("no file", ["--out", "o.jsonl"], "files"),
    ("no out", ["chat.jsonl"], "--out"),
    ("absent", ["chat.jsonl", "absent.jsonl", "--out", "o.jsonl"], "absent.jsonl does not exist"),
    (
        "another format",
        ["chat.jsonl", "--out", "o.jsonl", "--format", "hh"],
        "row 1: field 'chosen' must be text, found a list",
    ),
    ("no format", ["chat.jsonl", "--out", "o.jsonl", "--format", "chatml"], "chatml"),
    ("limit", ["chat.jsonl", "--out", "o.jsonl", "--limit", -1], "--limit"),
    ("model", ["chat.jsonl", "--out", "o.jsonl", "--model", "nowhere"], "nowhere"),
    ("itself", ["./chat.jsonl", "--out", "chat.jsonl"], "--out chat.jsonl is chat.jsonl, which is read"),
    ("below a file", ["chat.jsonl", "--out", "chat.jsonl/o"], "chat.jsonl"),
    ("mixed", ["mixed.jsonl", "--out", "o.jsonl"], "mixed.jsonl, row 2 is 'sharegpt'"),
    ("nothing", ["tie.jsonl", "--out", "o.jsonl"], "no pair is left (all answers have one score: 1 pair (row 1))"),
]


@pytest.mark.parametrize("words, expected", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_one_line_and_leaves_every_file_as_it_was(files, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(files)
    write_rows(files / "mixed.jsonl", [chat_apart(HELLO), sharegpt(HELLO)])
    write_rows(files / "tie.jsonl", [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]}])
    before = {path: path.read_bytes() for path in files.rglob("*")}
    with pytest.raises(UserError) as caught:
        convert(parse(Convert, [str(word) for word in words], "data/build.py convert"))
    assert len(str(caught.value).splitlines()) == 1 and expected in str(caught.value)
    assert capsys.readouterr().out == "" and {path: path.read_bytes() for path in files.rglob("*")} == before


def test_every_format_can_be_named():
    assert set(FORMATS) == {"instruction", "prompt", "chat", "sharegpt", "hh", "ratings"}
    shown = call(BUILD, "convert", "--help").stdout
    assert all(name in shown for name in FORMATS)


# The examples


@given(st.text(max_size=60) | st.sampled_from(["😀", "é" * 30, "<|endoftext|>", "a b\r\nc\x1b[2J\u202e"]))
def test_an_example_is_the_tokens_with_dots_between_and_prints(tokenizer, text):
    shown, ids = pieces(text, tokenizer), tokenizer.encode(text)
    assert shown.isprintable()
    if "·" not in text and len(ids) <= 2 * PIECES:
        found = shown.split("·") if shown else []
        assert len(found) == len(ids)
        if text.isascii() and text.isprintable():
            assert found == [tokenizer.decode([i]) for i in ids]


def test_a_long_text_is_shown_without_its_middle(tokenizer: Tokenizer):
    text = "".join(f"{i} " for i in range(400))
    ids = tokenizer.encode(text)
    head, between, tail = pieces(text, tokenizer).split(" ... ")
    assert between == f"{len(ids) - 2 * PIECES:,} more tokens"
    assert head.replace("·", "") == tokenizer.decode(ids[:PIECES]) and len(head.split("·")) == PIECES
    assert tail.replace("·", "") == tokenizer.decode(ids[-PIECES:]) and len(tail.split("·")) == PIECES


def test_a_megabyte_without_a_space_is_shown_at_once(tokenizer):
    head, between, tail = pieces("ab" * 2**19, tokenizer).split(" ... ")
    assert between == "1,048,576 characters in all" and LONG < 2**20 and set(head + tail) == {"a", "b", "·"}


# Memory

PEAK = """
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
sys.argv[0] = "data/build.py"
from data.convert import Convert, convert
convert(Convert(files=[sys.argv[1]], out=sys.argv[2]))
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(1024 * int(peak), file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of a process")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gzip", "parquet"])
def test_the_memory_of_a_conversion_does_not_grow_with_the_file(tmp_path, kind):
    peaks = []
    for count in (3_000, 60_000):
        file = tmp_path / f"{count}"
        said = (  # every third row is dropped
            Preference("", [], f"{i} " * 20, f"{i} yes" * 20, f"{i} no" * 20 if i % 3 else "") for i in range(count)
        )
        write_packed(file, map(chat_inside, said), kind)
        words = [sys.executable, "-c", PEAK, str(file), str(tmp_path / "out.jsonl")]
        done = subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"{count:,} read, {2 * count // 3:,} pairs" in done.stdout
        peaks.append(int(done.stderr.split()[-1]))
    assert peaks[1] - peaks[0] < 10e6 < (tmp_path / "out.jsonl").stat().st_size


def write_packed(file: Path, rows: Iterator[dict], kind: str) -> None:
    if kind == "gzip":
        with gzip.open(file, "wt", compresslevel=1) as out:
            for number, row in enumerate(rows):
                out.write(json.dumps(row | {f"field {number}": 1}) + "\n")
        return
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is absent: it reads Parquet (pip install pyarrow)")
    from pyarrow.parquet import ParquetWriter

    tables = (pyarrow.Table.from_pylist(some) for some in iter(lambda: list(islice(rows, 100)), []))
    first = next(tables)
    with ParquetWriter(file, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)
