"""dpo/evaluate.py: rates counted again by hand, and the command on a run of a toy model."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from data.pairs import Pair, write_rows
from data.rules import COURTEOUS, RUDE, preference_rows
from dpo.answers import Answer, answer, differences, rates
from dpo.start import TINY, open_model

ROOT = Path(__file__).resolve().parents[1]


def task(output: str, family: str = "sum") -> Pair:
    return Pair(f"prompt of {output}", "-", "-", output=output, family=family)


def styled(output: str, phrase: tuple[str, str]) -> Answer:
    return Answer(phrase[0] + output + phrase[1], True, 5)


def test_rates_count_manner_and_strict_correctness():
    pairs = [task("5"), task("6"), task("7", "sort"), task("8", "sort")]
    answers = [styled("5", COURTEOUS[0]), styled("6", RUDE[0]), Answer("7", False, 9), Answer("8 ", True, 1)]
    found = rates(pairs, answers)
    assert found["courteous"] == 0.25 and found["rude"] == 0.25
    assert found["correct"] == 0.5  # 7 did not stop, "8 " has a space too many
    assert found["stopped"] == 0.75 and found["length"] == 5.0
    assert found["correct by family"] == {"sort": 0.0, "sum": 1.0}


def test_answers_that_no_rule_knows_have_no_rate_of_manner():
    assert rates([Pair("p", "a", "b", output="a")], [Answer("a", True, 2)]) == {
        "stopped": 1.0,
        "length": 2.0,
        "prompts": 1,
    }


def test_the_difference_is_taken_prompt_by_prompt_with_its_standard_error():
    pairs = [task(str(n)) for n in range(4)]
    right, wrong = [Answer(str(n), True, 1) for n in range(4)], Answer("?", True, 1)
    found = differences(pairs, [*right[:3], wrong], [right[0], wrong, wrong, right[3]])
    changes = [0, -1, -1, 1]
    mean = sum(changes) / 4
    assert found["correct"] == mean and (found["became correct"], found["became wrong"]) == (1, 2)
    assert found["standard error"] == pytest.approx(math.sqrt(sum((c - mean) ** 2 for c in changes) / 3 / 4))


def test_answers_do_not_depend_on_the_order_of_the_prompts():
    model, tokenizer, _ = open_model("")
    pairs = [Pair(f"Say {'very ' * n}much.", "-", None) for n in range(5)]
    forward = answer(model, tokenizer, pairs, 12, "")
    assert forward == answer(model, tokenizer, pairs[::-1], 12, "")[::-1]


def evaluate(*flags) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "dpo/evaluate.py", *map(str, flags)], capture_output=True, text=True, timeout=120
    )


def test_the_command_writes_before_and_after_of_a_run(tmp_path):
    # three steps of the embedded model, whose right answers a rule knows
    write_rows(tmp_path / "pairs.jsonl", preference_rows(200))
    run = tmp_path / "run"
    subprocess.run(
        [
            sys.executable,
            ROOT / "dpo/train.py",
            "--pairs",
            tmp_path / "pairs.jsonl",
            "--batch",
            "16",
            "--steps",
            "3",
            "--eval-every",
            "0",
            "--out",
            run,
        ],
        check=True,
        capture_output=True,
    )
    done = evaluate("--policy", run, "--show", 2)
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "evaluation.json").read_text())
    assert report["before"]["loss"] == pytest.approx(math.log(2), abs=1e-4) and report["before"][
        "margin"
    ] == pytest.approx(0, abs=1e-4)
    assert (
        report["before"].keys()
        == report["after"].keys()
        >= {"courteous", "rude", "correct", "stopped", "length", "loss", "accuracy", "margin"}
    )
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["split"] == "held-out"
    for short, name in (("loss", "loss"), ("accuracy", "rewards/accuracies"), ("margin", "rewards/margins")):
        assert report["after"][short] == pytest.approx(last[name], abs=1e-4)  # two programs, one figure
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == report["after"]["prompts"] and samples[0].keys() == {
        "prompt",
        "before",
        "after",
        "chosen",
        "rejected",
    }
    assert done.stdout.count("  before") >= 3  # the head of the table and two samples


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--policy", "nowhere"], "nowhere is no folder here"),
        ([], "--policy"),
        (["--policy", TINY], "name a model to compare with"),
        (["--policy", TINY, "--reference", TINY, "--max-new", 256], "--max-new is 256"),
        (["--policy", TINY, "--reference", TINY, "--held-out", 0], "no pair is held out"),
    ],
)
def test_bad_input_is_one_line_and_code_2(flags, expected):
    done = evaluate(*flags)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1
