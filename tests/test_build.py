"""data/build.py as its users run it, from another folder. The report has a file of its own, tests/test_check.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.build import Rules, rules
from data.pairs import instruction_prompt, write_rows
from data.rules import preference_rows, sft_rows
from data.tasks import FAMILIES, pick

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def build(tmp_path):
    """A function that runs the command in another folder than the repository's and returns the finished process."""

    def build(*words, code: int = 0, **environment) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, str(ROOT / "data" / "build.py"), *map(str, words)],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        return done

    return build


# The commands


def test_rules_writes_the_same_bytes_every_time_and_they_are_the_embedded_rows(build, tmp_path):
    for name, hash_seed in (("one.jsonl", "1"), ("two.jsonl", "2")):
        build("rules", "--count", 150, "--seed", 3, "--out", name, PYTHONHASHSEED=hash_seed)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()] == preference_rows(150, 3)


def test_rules_sft_writes_one_answer_a_row_and_the_text_to_learn_a_vocabulary_from(build, tmp_path):
    build("rules", "--sft", "--plain", 0.3, "--count", 120, "--out", "new/sft.jsonl", "--text", "text.txt")
    rows = sft_rows(120, plain=0.3)
    assert [json.loads(line) for line in (tmp_path / "new" / "sft.jsonl").read_text().splitlines()] == rows
    text = "".join(instruction_prompt(row["instruction"], row["input"]) + row["chosen"] for row in rows)
    assert squeezed((tmp_path / "text.txt").read_text()) == squeezed(text)


def squeezed(text: str) -> str:
    """Without white space, which may be set between digits so that a vocabulary learns no token of several."""
    return "".join(text.split())


def test_rules_out_dash_writes_nothing_and_shows_the_summary(build, tmp_path):
    assert re.search(r"^pairs +80$", build("rules", "--count", 80, "--out", "-").stdout, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_rules_says_so_where_the_tasks_are_fewer_than_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(
        "data.tasks.FAMILIES", {"count": FAMILIES["count"]._replace(make=lambda rng: (pick(rng, "abc"), "1"))}
    )
    rules(Rules(out="-", count=99))
    prompts = 3 * len(FAMILIES["count"].wordings)
    said = capsys.readouterr().out
    assert f"the tasks have {prompts} distinct prompts at this seed, fewer than the 99 asked for" in said
    assert re.search(rf"^pairs +{prompts}$", said, re.MULTILINE)


BAD = [
    ("no command", [], "no command given"),
    ("another command", ["rule"], "'rule'"),
    ("another flag", ["rules", "--out", "-", "--cuont", 3], "--count"),
    ("no out", ["rules"], "--out"),
    ("no number", ["rules", "--out", "-", "--count", "many"], "--count"),
    ("no rows", ["rules", "--out", "-", "--count", 0], "--count"),
    ("more than all", ["rules", "--out", "-", "--sft", "--plain", 1.5], "--plain"),
    ("not a number", ["rules", "--out", "-", "--sft", "--plain", "nan"], "--plain"),
    ("no file", ["check"], "file"),
    ("absent file", ["check", "absent.json"], "absent.json"),
    ("absent model", ["check", "good.jsonl", "--model", "absent"], "absent"),
    ("bad row", ["check", "bad.jsonl"], "row 2"),
    ("out is a folder", ["rules", "--count", 9, "--out", "folder"], "folder"),
    ("out is this folder", ["rules", "--count", 9, "--out", "."], "error: "),
    ("out is below a file", ["rules", "--count", 9, "--out", "good.jsonl/new.jsonl"], "good.jsonl"),
    ("text is the pairs' file", ["rules", "--count", 9, "--out", "x.jsonl", "--text", "./x.jsonl"], "--out writes"),
    ("text is below a file", ["rules", "--count", 9, "--out", "-", "--text", "good.jsonl/text.txt"], "text.txt"),
    ("held out more than all", ["check", "good.jsonl", "--held-out", 3], "--held-out"),
    ("no length", ["check", "good.jsonl", "--max-length", -1], "--max-length"),
]


@pytest.mark.parametrize("words, expected", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_one_line_and_code_2_and_leaves_every_file_as_it_was(build, tmp_path, words, expected):
    write_rows(tmp_path / "good.jsonl", preference_rows(20))
    write_rows(
        tmp_path / "bad.jsonl",
        [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejectd": "c"}],
    )
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = build(*words, code=2)
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and expected in done.stderr
    assert done.stdout == "" and sorted(tmp_path.rglob("*")) == before
