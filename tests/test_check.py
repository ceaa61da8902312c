"""data/check.py: `python data/build.py check FILE` as its users run it, and the report as text."""

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from data.check import WIDTH, Check, _drawing, as_text, check, report
from data.findings import Line
from data.pairs import Pair, read_pairs, write_rows
from data.rules import preference_rows, row_pairs
from gpt.command import UserError, parse
from gpt.tokenizer import Tokenizer
from tests.processes import ROOT, call

BUILD = ROOT / "data/build.py"
REAL = "instruction-data-with-preference.json"


def said(text: str) -> dict[str, str]:
    """What a report says, by the name at the head of each line; lines that go on below are joined, marks left out."""
    lines, name = {}, ""
    for line in text.splitlines():
        head = line[:16].strip()
        if head == "!":
            name = ""
        elif head:
            assert head not in lines
            name, lines[head] = head, line[16:]
        elif name:
            lines[name] += " " + line[16:]
    return lines


# The real rows


def test_the_real_rows_have_6_identical_pairs_and_25_repeated_prompts(shared, tmp_path, monkeypatch):
    """Counted here from the JSON itself."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))  # for the lengths that are counted here
    rows = json.loads((shared / "data" / REAL).read_text(encoding="utf-8"))
    same = [number for number, row in enumerate(rows, 1) if row["chosen"] == row["rejected"]]
    kept = [row for row in rows if row["chosen"] != row["rejected"]]
    prompts = Counter((row["instruction"], row["input"]) for row in kept)
    assert (len(rows), len(same), len(kept) - len(prompts)) == (1100, 6, 25)

    done = call(BUILD, "check", shared / "data" / REAL, "--model", "gpt2", "--json", tmp_path / "new/check.json",
                TIKTOKEN_CACHE_DIR=str(shared / "tiktoken"))  # fmt: skip
    lines, figures = said(done.stdout), json.loads((tmp_path / "new/check.json").read_text())
    assert lines["pairs"] == f"{len(kept):,}" == "1,094"
    assert lines["dropped"].startswith("chosen equal to rejected: 6 pairs (rows ")
    assert figures["dropped"]["chosen equal to rejected"] == {"pairs": 6, "rows": same}
    assert lines["prompts"] == f"{len(prompts):,} distinct, 25 repeated; one has {max(prompts.values())} pairs"
    assert figures["prompts"]["repeated"] == 25
    words = sum(len(row[side].split()) == 1 for row in kept for side in ("chosen", "rejected"))
    assert figures["short chosen"]["pairs"] + figures["short rejected"]["pairs"] == words
    assert figures["output"] == {s: sum(row[s] == row["output"] for row in kept) for s in ("chosen", "rejected")} | {
        "marks": []
    }
    tokenizer = Tokenizer.gpt2()
    lengths = [[len(tokenizer.encode(row[side])) for side in ("chosen", "rejected")] for row in kept]
    bias = sum((c > r) + (c == r) / 2 for c, r in lengths) / len(kept)
    assert figures["length bias"]["accuracy"] == pytest.approx(bias)
    low, high = figures["separable"]["interval"]
    assert 0.6 < low < figures["separable"]["accuracy"] < high < 0.85  # polite words; length says nothing (51 %)
    alike = [[re.sub(r"\W+", "", row[side]).casefold() for side in ("chosen", "rejected")] for row in rows]
    alike = [n for n, (one, other) in enumerate(alike, 1) if one == other and n not in same]
    assert figures["alike"]["rows"] == alike and len(alike) == 3
    assert lines["in all"] == f"2 of {len(lines) - 1} lines are marked with !"


# The command


@pytest.fixture
def pairs(tmp_path) -> Path:
    write_rows(tmp_path / "pairs.jsonl", preference_rows(120))
    return tmp_path / "pairs.jsonl"


def test_the_vocabulary_is_that_of_a_model_folder_and_the_context_its_own(pairs, tmp_path, tokenizer, capsys):
    tokenizer.save(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(
        json.dumps(
            {
                "model_type": "gpt2",
                "vocab_size": tokenizer.vocab_size,
                "n_positions": 77,
                "n_embd": 8,
                "n_layer": 1,
                "n_head": 1,
            }
        )
    )
    check(Check(str(pairs), model=str(tmp_path / "model")))
    lines = said(capsys.readouterr().out)
    total = sum(len(tokenizer.encode(pair.prompt)) for pair in read_pairs(pairs))
    assert lines["prompt tokens"].endswith(f" {total:,} in all") and "of more than 77 tokens" in lines["too long"]


def test_the_command_says_what_the_function_says(pairs, tokenizer, tmp_path, capsys):
    tokenizer.save(tmp_path / "model")
    check(Check(str(pairs), model=str(tmp_path / "model"), held_out=0.25, max_length=60))
    assert capsys.readouterr().out == report(iter(read_pairs(pairs)), {}, tokenizer, 0.25, 60) + "\n"


def test_a_sample_is_announced_and_json_has_the_figures_of_every_line(pairs, tmp_path, capsys):
    check(Check(str(pairs), sample=30, json=str(tmp_path / "check.json")))
    lines, figures = said(capsys.readouterr().out), json.loads((tmp_path / "check.json").read_text())
    assert lines["sample"].startswith("tokens, what is told of them, and 'separable' are of 30 pairs, chosen by a hash")
    assert list(figures) == [name for name in lines if name != "in all"]
    assert figures["pairs"]["count"] == 120 and figures["sample"] == {"pairs": 30, "marks": []}
    assert all("marks" in line for line in figures.values())


def test_a_picture_is_written_whole(pairs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for kind, begins in ((".png", b"\x89PNG"), (".SVG", b"<?xml")):
        check(Check(str(pairs), picture=str(tmp_path / f"lengths{kind}")))
        assert (tmp_path / f"lengths{kind}").read_bytes().startswith(begins)
    assert not list(tmp_path.glob("*.part"))


def test_without_matplotlib_the_error_says_what_to_install_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "data.length_sheet", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        check(Check(str(tmp_path / "absent.jsonl"), picture=str(tmp_path / "lengths.png")))
    assert _drawing("") is None and not list(tmp_path.iterdir())


def test_without_a_vocabulary_no_tokens_are_counted():
    lines = said(report([Pair("p", "a", "b", 1)], {}, None, 0.1, 99))
    assert not [name for name in lines if "token" in name] and not {"too long", "length bias", "sample"} & set(lines)


def row(prompt: str = "p", chosen: str = "a", rejected: str = "b", **more) -> str:
    return json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected} | more)


# name: (the file or None, words, what the error names)
BAD = {
    "absent": (None, [], "odd.jsonl does not exist"),
    "empty": ("", [], "the file has no rows"),
    "nothing left": (row(rejected="a") + "\n" + row(chosen=" "), [], "no pair is left to learn from (chosen equal"),
    "no JSON": (row() + "\nwhat?", [], "line 2"),
    "no pair": (row() + "\n[1]", [], "row 2"),
    "half a surrogate": ('{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', [], "surrogate"),
    "a sample below none": (row(), ["--sample", "-1"], "--sample is -1"),
    "a sample of a half": (row(), ["--sample", "0.5"], "--sample"),
    "held out by nobody": (row(), ["--held-out", "nan"], "--held-out"),
    "a picture of no kind": (
        row(),
        ["--picture", "lengths.jpeg"],
        "--picture lengths.jpeg must end in .png, .svg or .pdf",
    ),
    "a picture that is a folder": (row(), ["--picture", "folder.png"], "folder.png is a folder"),
    "json that is a folder": (row(), ["--json", "folder.png"], "folder.png is a folder"),
    "json below a file": (row(), ["--json", "odd.jsonl/check.json"], "check.json cannot be written"),
    "json over the pairs": (row(), ["--json", "./odd.jsonl"], "--json ./odd.jsonl is odd.jsonl, which is read"),
    "a picture over json": (
        row(),
        ["--json", "a.png", "--picture", "a.png"],
        "--picture a.png is a.png, which --json writes",
    ),
    "a vocabulary that is not there": (row(), ["--model", "absent"], "absent"),
}


@pytest.mark.parametrize("name", BAD)
def test_odd_input_is_one_line_and_leaves_every_file_as_it_was(name, tmp_path, monkeypatch):
    """In this process; that such an error is code 2 and no traceback is tested once below, and of every command."""
    content, words, expected = BAD[name]
    if content is not None:
        (tmp_path / "odd.jsonl").write_text(content)
    (tmp_path / "folder.png").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        check(parse(Check, ["odd.jsonl", *words]))
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_bad_row_is_code_2_and_one_line_on_the_terminal(tmp_path):
    (tmp_path / "odd.jsonl").write_text(row() + "\n" + row(chosen="") + '\n{"prompt": 5}')
    done = call(BUILD, "check", "odd.jsonl", "--json", "check.json", cwd=tmp_path, code=2)
    assert done.stderr == "error: odd.jsonl, row 3: field 'prompt' must be text, found a number\n" and not done.stdout
    assert os.listdir(tmp_path) == ["odd.jsonl"]


ODD = {
    "one pair": row(),
    "one answer": json.dumps({"prompt": "p", "chosen": "a"}),
    "an answer of 1 MB": row(chosen="wide sea " * 120_000),
    "an answer of 1 MB without a space": row(chosen="x" * 2**20),
    "an answer of empty lines": row(chosen=f"a{chr(10) * 200_000}b"),
    "an answer of brackets": row(chosen="<|[" * 100_000, rejected="### " * 100_000),
    "nothing but signs": row("?", "!" * 50, "\u200b\ufeff"),
    "emoji": row("🌊", "👩\u200d🚀", "🏳️\u200d🌈"),
    "windows": "\ufeff" + row("p", "a\r\nb", "c") + "\r\n" + row() + "\r\n",
    "an empty prompt": row(""),
    "one prompt in two groups": row(group="a") + "\n" + row(group="b"),
    "an empty group": row(group="") + "\n" + row(),
    "every margin 0": row(margin=0) + "\n" + row(margin=-0.0),
    "terminal codes": row("\x1b[31m", "\x1b[0m", "<|\x1b|>", family="\x1b[1m\r\n"),
    "a thousand of one": "\n".join([row()] * 1000),
    "all the other way round": "\n".join([row(), row(chosen="b", rejected="a")] * 50),
}


@pytest.mark.parametrize("name", ODD)
def test_of_odd_pairs_there_is_a_report_all_the_same(name, tmp_path, capsys):
    (tmp_path / "odd.jsonl").write_text(ODD[name], encoding="utf-8", newline="")
    picture = str(tmp_path / "lengths.png") if name in ("one pair", "an answer of 1 MB") else ""
    check(Check(str(tmp_path / "odd.jsonl"), json=str(tmp_path / "check.json"), picture=picture))
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "check.json").read_text(), parse_constant=pytest.fail)
    assert out.isprintable() or all(line.isprintable() for line in out.splitlines())
    assert figures["pairs"]["count"] == len(read_pairs(tmp_path / "odd.jsonl")) and "in all" in said(out)


# The text


def test_long_lines_go_on_below_and_marks_stand_under_what_they_are_of():
    text = as_text(
        [Line("name", "word " * 40, {}, ["mark " * 30, "again"]), Line("other", "it is well-made, --max-length 5", {})]
    )
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH and all(line[15] == " " for line in lines)
    assert [line[:16].strip() for line in lines] == ["name", "", "!", "", "!", "other", "in all"]
    assert lines[-1] == "in all          1 of 2 lines are marked with !"
    assert as_text([Line("a", "b", {})]).endswith("nothing stands out")


def test_the_report_reads_pairs_that_come_one_by_one(tokenizer):
    pairs = row_pairs(preference_rows(50))
    assert report(iter(pairs), {}, tokenizer, 0.1, 99) == report(pairs, {}, tokenizer, 0.1, 99)
    assert re.search(r"^pairs +50$", report(pairs, {}, tokenizer, 0.1, 99), re.MULTILINE)
