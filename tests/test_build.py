"""data/build.py as its users run it, from another folder; and its report, checked by counting."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from data.build import Rules, rules
from data.check import report
from data.pairs import Pair, instruction_prompt, read_pairs, split, write_rows
from data.rules import preference_rows, sft_rows
from data.tasks import FAMILIES, pick
from gpt.tokenizer import Tokenizer

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


def test_check_counts_what_is_known_of_the_real_rows(build, shared):
    done = build(
        "check",
        shared / "data" / "instruction-data-with-preference.json",
        "--model",
        "gpt2",
        TIKTOKEN_CACHE_DIR=str(shared / "tiktoken"),
    )
    assert re.search(r"^pairs +1,094$", done.stdout, re.MULTILINE)
    assert re.search(r"^dropped +chosen equal to rejected: 6 pairs", done.stdout, re.MULTILINE)
    assert re.search(r"; 25 pairs repeat a prompt", done.stdout)
    assert re.search(r"prompts on both sides: 0$", done.stdout, re.MULTILINE)


def test_check_takes_the_vocabulary_of_a_model_folder(build, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "model")
    write_rows(tmp_path / "pairs.jsonl", preference_rows(50))
    total = sum(len(tokenizer.encode(pair.prompt)) for pair in read_pairs(tmp_path / "pairs.jsonl"))
    done = build("check", "pairs.jsonl", "--model", "model")
    assert re.search(rf"^prompt tokens .* {total:,} in all$", done.stdout, re.MULTILINE)


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


# The report


def shown(text: str) -> dict[str, str]:
    """What the report says, by the name at the head of each line."""
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


def test_the_report_counts_lengths_repeats_and_splits_as_a_loop_does(tokenizer: Tokenizer):
    pairs = [
        Pair(f"Say {'very ' * (i % 7)}hello {i % 5}.", "Good morning!" * (1 + i % 2), "What?" * (1 + i % 3), i)
        for i in range(60)
    ]
    pairs += pairs[:4]
    lines = shown(report(pairs, {"an empty answer": [61]}, tokenizer, 0.3, 40))
    assert lines["pairs"] == "64" and lines["dropped"] == "an empty answer: 1 pair (row 61)"
    prompts = [pair.prompt for pair in pairs]
    repeats = sum(prompt in prompts[:i] for i, prompt in enumerate(prompts))
    # four were appended whole, others share a prompt and differ in an answer or in the row alone
    same = sum(pair[:3] in [other[:3] for other in pairs[:i]] for i, pair in enumerate(pairs))
    assert (
        lines["prompts"] == f"{len(set(prompts))} distinct; {repeats} pairs repeat a prompt, {same} a whole pair"
        and 0 < same < repeats
    )
    training, held_out = split(pairs, 0.3)
    assert lines["split"].startswith(f"{len(training)} to train on, {len(held_out)} held out")

    lengths = {
        side: [len(tokenizer.encode(text)) + end for text in texts]
        for side, end, texts in (
            ("prompt", 0, [p.prompt for p in pairs]),
            ("chosen", 1, [p.chosen for p in pairs]),
            ("rejected", 1, [p.rejected for p in pairs]),
        )
    }
    for side, found in lengths.items():
        assert lines[f"{side} tokens"].startswith(f"median {median(found):g}, ")
        assert lines[f"{side} tokens"].endswith(f"longest {max(found)}, {sum(found):,} in all")
        small = int(re.search(r"95 % at most (\d+)", lines[f"{side} tokens"])[1])
        assert sum(n <= small for n in found) >= 0.95 * (len(found) - 1)
    too_long = sum(p + max(c, r) > 40 for p, c, r in zip(*lengths.values()))
    assert too_long and lines["too long"].startswith(f"{too_long} pairs exceed 40 tokens")


def test_a_tie_of_lengths_counts_one_half_in_the_length_bias(tokenizer):
    pairs = [Pair("p", "aa", "a", 1), Pair("p", "a", "aa", 2), Pair("p", "a", "b", 3), Pair("p", "aaa", "a", 4)]
    lengths = [(len(tokenizer.encode(p.chosen)), len(tokenizer.encode(p.rejected))) for p in pairs]
    expected = sum(1 if c > r else 0.5 if c == r else 0 for c, r in lengths) / 4
    assert f"right for {expected:.0%} of the pairs" in report(pairs, {}, tokenizer, 0.1, 99)


def test_rows_with_one_answer_are_counted_and_have_no_rejected_tokens(tokenizer):
    lines = shown(report([Pair("p", "a", None, 1), Pair("q", "a", "b", 2)], {}, tokenizer, 0.1, 99))
    assert lines["pairs"] == "2, of them 1 with one answer" and "length bias" not in lines
    assert "rejected tokens" not in shown(report([Pair("p", "a", None, 1)], {}, tokenizer, 0.1, 99))


def test_without_a_vocabulary_no_tokens_are_counted():
    assert not [name for name in shown(report([Pair("p", "a", "b", 1)], {}, None, 0.1, 99)) if "token" in name]
