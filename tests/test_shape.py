"""The commands of data/shape.py as their users run them, from another folder; what they refuse; how much memory they need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.pairs import write_rows
from data.rules import preference_rows
from data.shape import SHAPE
from gpt.command import UserError, parse
from tests.processes import ENVIRONMENT, ROOT, call
from tests.shaping import read, shape, write

BUILD = ROOT / "data" / "build.py"


def test_each_command_runs_from_another_folder_and_says_what_it_did(tmp_path):
    rows = [row | {"id": i} for i, row in enumerate(preference_rows(60))]
    write_rows(tmp_path / "in.jsonl", rows + rows[:5])
    write_rows(tmp_path / "test.jsonl", rows[:3])
    started = {
        name: subprocess.Popen(
            [sys.executable, str(BUILD), *words.split()],
            cwd=tmp_path,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, words in {
            "split": "split in.jsonl --out halves --held-out 0.3",
            "dedupe": "dedupe in.jsonl --out dedupe.jsonl",
            "decontaminate": "decontaminate in.jsonl --ngram 0 --against test.jsonl --out decontaminate.jsonl",
            "mix": "mix in.jsonl:0.9 test.jsonl:0.1 --out mix.jsonl",
            "sample": "sample in.jsonl --count 7 --out sample.jsonl",
        }.items()
    }
    assert set(started) == set(SHAPE)
    for name, process in started.items():
        out, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, ""), name
        assert name == "split" or f" to {name}.jsonl" in out.splitlines()[-1]
    assert len(read(tmp_path / "halves" / "train.jsonl")) + len(read(tmp_path / "halves" / "held-out.jsonl")) == 65
    assert read(tmp_path / "dedupe.jsonl") == rows
    assert read(tmp_path / "decontaminate.jsonl") == rows[3:] + rows[3:5]
    assert len(read(tmp_path / "mix.jsonl")) == 30 and len(read(tmp_path / "sample.jsonl")) == 7


BAD = [
    ("absent file", "split absent.jsonl --out new", "absent.jsonl does not exist"),
    ("no out", "dedupe in.jsonl", "--out"),
    ("no fraction", "split in.jsonl --out new --held-out 2", "--held-out is 2.0"),
    ("all on one side", "split in.jsonl --out new --held-out 0", "all 3 rows (3 prompts) would be kept to train on"),
    ("out is a file", "split in.jsonl --out in.jsonl", "--out in.jsonl is a file; two are written, so name a folder"),
    ("out is a folder", "dedupe in.jsonl --out folder", "folder is a folder"),
    ("written over what is read", "dedupe in.jsonl --out ./in.jsonl", "--out ./in.jsonl is in.jsonl, which is read"),
    (
        "written over a test",
        "decontaminate in.jsonl --against other.jsonl --out other.jsonl",
        "other.jsonl, which is read",
    ),
    ("written over a source", "mix in.jsonl:1 --out in.jsonl", "which is read"),
    ("split over what is read", "split halves/train.jsonl --out halves", "which is read"),
    ("empty file", "dedupe empty.jsonl --out new", "the file has no rows"),
    (
        "empty file to split",
        "split empty.jsonl --out new",
        "empty.jsonl: no pair is left to learn from: the file has no rows",
    ),
    ("empty file to mix", "mix in.jsonl:1 empty.jsonl:1 --out new", "empty.jsonl has no rows"),
    ("empty file to sample", "sample empty.jsonl --count 3 --out new", "empty.jsonl has no rows"),
    ("empty test", "decontaminate in.jsonl --against empty.jsonl --out new", "empty.jsonl: there is no text"),
    ("nothing left", "decontaminate in.jsonl --against copy.jsonl --out new", "no row is left"),
    ("bad row", "dedupe bad.jsonl --out new", "bad.jsonl, row 2: field 'chosen' is missing"),
    ("bad JSON", "sample broken.jsonl --count 1 --out new", "broken.jsonl, line 2"),
    ("no object", "mix list.jsonl:1 --out new", "list.jsonl, row 1: a row is a JSON object"),
    ("no weight", "mix in.jsonl --out new", "'in.jsonl' is no FILE:WEIGHT"),
    ("weight of no number", "mix in.jsonl:much --out new", "'in.jsonl:much' is no FILE:WEIGHT"),
    ("weight nan", "mix in.jsonl:nan --out new", "'in.jsonl:nan' is no FILE:WEIGHT"),
    ("weight zero", "mix in.jsonl:0 --out new", "with a weight above 0"),
    ("weight below zero", "mix in.jsonl:-1 other.jsonl:2 --out new", "'in.jsonl:-1'"),
    ("weight without end", "mix in.jsonl:1e999 --out new", "'in.jsonl:1e999'"),
    ("file twice", "mix in.jsonl:1 in.jsonl:2 --out new", "in.jsonl is named twice"),
    (
        "file twice by another name",
        "mix in.jsonl:1 ./in.jsonl:2 --out new",
        "./in.jsonl is in.jsonl; name each file once",
    ),
    ("a mix of nothing", "mix in.jsonl:1 other.jsonl:1 --out new --count 0", "--count is 0"),
    ("no count", "sample in.jsonl --count 0 --out new", "--count is 0"),
    ("no way to compare", "dedupe in.jsonl --by answer --out new", "--by"),
    ("too short", "decontaminate in.jsonl --against other.jsonl --ngram -1 --out new", "--ngram is -1"),
    ("common to none", "decontaminate in.jsonl --against other.jsonl --common 0 --out new", "--common is 0"),
    ("no test", "decontaminate in.jsonl --out new", "--against"),
    ("a pipe", "dedupe pipe --out new", "pipe is no regular file"),
]


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in "pqr"]
    for name, some in {
        "in": rows,
        "copy": rows,
        "other": [{"x": "y"}],
        "one": rows[:1],
        "empty": [],
    }.items():
        write(tmp_path / f"{name}.jsonl", some)
    write(tmp_path / "bad.jsonl", [rows[0], {"prompt": "p"}])
    write(tmp_path / "list.jsonl", [[1]])
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a"\n')
    for name in ("folder", "halves"):
        (tmp_path / name).mkdir()
    write(tmp_path / "halves" / "train.jsonl", rows)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("words, expected", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_one_line_and_leaves_every_file_as_it_was(folder, capsys, words, expected):
    def state() -> dict:
        return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if path.name != "new"}

    before = state()
    with pytest.raises(UserError) as caught:
        shape(folder, *words.split())
    assert expected in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert state() == before and capsys.readouterr().out == ""
    assert not (folder / "new").exists() or not list((folder / "new").iterdir())


def test_a_refusal_is_one_line_on_stderr_and_code_2(folder):
    done = call(BUILD, "mix", "in.jsonl:some", "--out", "new", cwd=folder, code=2)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: 'in.jsonl:some'")


DASH = {
    "split": ["in.jsonl", "--held-out", 0.5],
    "dedupe": ["in.jsonl"],
    "decontaminate": ["in.jsonl", "--against", "other.jsonl"],
    "mix": ["in.jsonl:1"],
    "sample": ["in.jsonl", "--count", 1],
}


@pytest.mark.parametrize("name", SHAPE)
def test_out_dash_shows_the_report_and_writes_nothing_as_help_says(folder, name, capsys):
    with pytest.raises(SystemExit):
        parse(SHAPE[name][1], ["--help"], "build.py")
    assert "- for none, to see the report only" in " ".join(capsys.readouterr().out.split())
    write(folder / "-", [{"a": 1}])  # a file of that name stays as it is
    before = {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    said = shape(folder, name, *DASH[name], "--out", "-")
    assert said.count("nowhere (--out -)") == (2 if name == "split" else 1)
    assert {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")} == before


PEAK = """
import sys
from pathlib import Path
from data.shape import SHAPE
from gpt.command import parse
main, cls = SHAPE[sys.argv[1]]
main(parse(cls, sys.argv[2:], "build.py"))
# not what getrusage says, which begins with the memory of the process that started this one
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of a process")
@pytest.mark.parametrize("name", SHAPE)
def test_memory_grows_by_some_numbers_a_row_not_by_the_row(tmp_path, name):
    sizes, peaks = (2_000, 42_000), []
    write(tmp_path / "test.jsonl", [{"prompt": "t", "chosen": "a", "rejected": "b"}])
    for size in sizes:
        file = tmp_path / f"{size}.jsonl"
        write_rows(
            file,
            ({"prompt": f"{i} " * 50, "chosen": f"{i} yes " * 50, "rejected": f"{i} no " * 50} for i in range(size)),
        )
        words = {
            "split": ["--out", tmp_path / "halves"],
            "decontaminate": ["--against", tmp_path / "test.jsonl", "--out", tmp_path / "out.jsonl"],
            "sample": ["--count", 1000, "--out", tmp_path / "out.jsonl"],
        }.get(name, ["--out", tmp_path / "out.jsonl"])
        named = f"{file}:1" if name == "mix" else file
        done = call("-c", PEAK, name, named, *words, cwd=ROOT)
        peaks.append(1024 * int(done.stdout.split()[-1]))
    grown = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    assert grown < 200 < file.stat().st_size / size
