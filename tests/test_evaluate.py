"""dpo/evaluate.py: rates counted again by hand, and the command on a run of a toy model."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from data.pairs import Pair, read_pairs, split, write_rows
from data.rules import COURTEOUS, RUDE, preference_rows
from dpo import evaluate as command
from dpo.answers import Answer, answer, differences, rates
from dpo.job import Job
from dpo.start import TINY, open_model
from dpo.train import Flags as TrainFlags
from gpt.command import UserError, parse
from gpt.parallel import World
from gpt.weights import fingerprint
from tests.processes import ROOT, call


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


def evaluate(*flags, code: int = 0, **how) -> subprocess.CompletedProcess:
    return call(ROOT / "dpo/evaluate.py", *flags, code=code, **how)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three steps of the embedded model, whose right answers a rule knows."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_rows(folder / "pairs.jsonl", preference_rows(200))
    flags = ["--batch", 16, "--steps", 3, "--eval-every", 0, "--beta", 0.3, "--out", folder / "run"]
    call(ROOT / "dpo/train.py", "--pairs", folder / "pairs.jsonl", *flags)
    return folder / "run"


def test_the_command_writes_before_and_after_of_a_run(run):
    done = evaluate("--policy", run, "--show", 2)
    report = json.loads((run / "evaluation.json").read_text())
    before, after = report["before"], report["after"]
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-4) and before["margin"] == pytest.approx(0, abs=1e-4)
    assert before.keys() == after.keys()
    assert before.keys() >= {"courteous", "rude", "correct", "stopped", "length", "loss", "accuracy", "margin"}
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["split"] == "held-out"
    for short, name in (("loss", "loss"), ("accuracy", "rewards/accuracies"), ("margin", "rewards/margins")):
        assert after[short] == pytest.approx(last[name], abs=1e-4)  # two programs, one figure
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == after["prompts"]
    assert samples[0].keys() == {
        "prompt",
        "before",
        "after",
        "chosen",
        "rejected",
        "stopped",
        "length",
        "expected",
        "correct",
    }
    assert all(sample["expected"] in sample["chosen"] for sample in samples)
    for when in ("before", "after"):  # answer by answer what the figures say of all
        for name in ("stopped", "length", "correct"):
            mean = sum(sample[name][when] for sample in samples) / len(samples)
            assert mean == pytest.approx(report[when][name]), (when, name)
    assert done.stdout.count("  before") >= 3  # the head of the table and two samples
    assert done.stdout.splitlines()[-1] == f"report   {run / 'report.html'}"
    assert "Answers, before and after" in (run / "report.html").read_text(encoding="utf-8")


def test_what_training_left_out_of_the_report_is_added_and_what_it_wrote_stays(run, here, tmp_path):
    written = (run / "tokens.jsonl").read_bytes()
    plain = tmp_path / "run"
    shutil.copytree(run, plain, ignore=shutil.ignore_patterns("tokens.jsonl", "checkpoints"))
    for folder in (run, plain):
        here("--policy", folder, "--prompts", 1, "--max-new", 4)
    assert (run / "tokens.jsonl").read_bytes() == written
    ours, theirs = (
        map(json.loads, file.read_text().splitlines()) for file in (plain / "tokens.jsonl", run / "tokens.jsonl")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one["logps/chosen"] == pytest.approx(other["logps/chosen"], abs=1e-3)
        assert one["rewards/margins"] == pytest.approx(other["rewards/margins"], abs=1e-3)
    assert "Where training acted" in (plain / "report.html").read_text(encoding="utf-8")


STARTS = {
    "the embedded model": ["--seed", 5],
    "a folder": ["--init", "./tiny"],
    "random weights": ["--init", "random:tiny", "--seed", 5],
    "a reference": ["--init", "random:tiny", "--reference", "./tiny"],
    "a random reference": ["--reference", "random:tiny"],
    "a random reference and a seed": ["--reference", "random:tiny", "--seed", 5],
    "a reference that sft does not need": ["--reference", "./tiny", "--loss", "sft"],
}


@pytest.mark.parametrize("name", STARTS)
def test_what_a_run_was_compared_with_is_found_again_from_any_folder(name, run, tmp_path, monkeypatch):
    monkeypatch.chdir(TINY.parent)
    job = Job(parse(TrainFlags, ["--pairs", str(run.parent / "pairs.jsonl"), *map(str, STARTS[name])]))
    record = {"flags": job.record(), "settings": job.settings(World(0, 1, torch.device("cpu")), {})}
    monkeypatch.chdir(tmp_path)
    _, reference, _ = command.open_both(parse(command.Flags, ["--policy", str(TINY)]), record)
    assert fingerprint(reference) == fingerprint(job.reference or job.policy)


# scoring the pairs of a file


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Pairs that no run has met, one that is left out, and one with one answer."""
    rows = preference_rows(9, seed=5)
    rows[3]["rejected"] = rows[3]["chosen"]
    del rows[5]["rejected"]
    path = tmp_path_factory.mktemp("file") / "other.jsonl"
    write_rows(path, rows)
    return path


def lines_of(out: str) -> list[dict]:
    """Every line of standard output, each of which must be a JSON object with a row."""
    lines = [json.loads(line) for line in out.splitlines()]
    assert all(isinstance(line["row"], int) for line in lines)
    return lines


@pytest.fixture
def here(capsys):
    """A function that runs the command in this process: what it wrote to standard output, and to standard error."""

    def run(*flags) -> tuple[str, str]:
        command.main(parse(command.Flags, [str(word) for word in flags]))
        return capsys.readouterr()

    return run


@pytest.mark.slow
def test_scoring_prints_a_line_a_pair_once_under_torchrun_too_and_says_the_rest_elsewhere(run, file):
    flags = ["--policy", run, "--reference", TINY, "--pairs", file]
    alone, together = evaluate(*flags), evaluate(*flags, processes=2)
    lines = lines_of(alone.stdout)
    assert [line["row"] for line in lines] == [1, 2, 3, 5, 6, 7, 8, 9]
    assert ["wins" in line for line in lines] == [line["row"] != 6 for line in lines]
    for one, other in zip(lines, lines_of(together.stdout), strict=True):
        assert one.keys() == other.keys()
        assert all(one[name] == pytest.approx(other[name], abs=1e-4) for name in one if name != "wins")
    for done in (alone, together):
        assert done.stderr.count("7 pairs, chosen wins ") == 1
        assert done.stderr.count("chosen equal to rejected: 1 pair (row 4)") == 1
    assert not (run / "scores.jsonl").exists() and not (run.parent / "scores.jsonl").exists()


@pytest.mark.parametrize("loss, beta", [([], 0.3), (["--loss", "dpo(beta=0.7)"], 0.7), (["--loss", "ipo(beta=2)"], 2)])
def test_rewards_have_the_beta_of_the_run_unless_another_is_given(run, file, here, loss, beta):
    lines = lines_of(here("--policy", run, "--reference", TINY, "--pairs", file, *loss)[0])
    for line in lines:
        gained = line["logps/chosen"] - line["reference_logps/chosen"]
        assert line["rewards/chosen"] == pytest.approx(beta * gained, abs=1e-5)
    assert max(abs(line["rewards/chosen"]) for line in lines) > 1e-3


def test_a_run_scores_its_own_pairs_against_its_own_start(run, here):
    out, said = here("--policy", run, "--no-compare")
    lines = lines_of(out)
    assert [line["row"] for line in lines] == list(range(1, 201))  # those it was trained on, and those held out
    given = here("--policy", run, "--reference", TINY, "--pairs", run.parent / "pairs.jsonl")
    assert (out, said.splitlines()[-1]) == (given[0], given[1].splitlines()[-1])
    # the held-out ones among them have the figures that the run logged
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    _, held_out = split(read_pairs(run.parent / "pairs.jsonl"), 0.1)
    found = [lines[pair.row - 1] for pair in held_out]
    assert len(found) == metrics["pairs"]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "length/rejected"):
        assert sum(line[name] for line in found) / len(found) == pytest.approx(metrics[name], abs=1e-4)


def test_compare_answers_prompts_although_all_three_are_named(run, file, here, tmp_path):
    flags = ["--policy", run, "--reference", TINY, "--held-out", 1, "--prompts", 3, "--max-new", 8, "--compare"]
    with pytest.raises(UserError, match="row 6: field 'rejected' is missing"):  # dpo's loss needs both answers
        here(*flags, "--pairs", file)
    write_rows(tmp_path / "whole.jsonl", preference_rows(9, seed=5))
    out, _ = here(*flags, "--pairs", tmp_path / "whole.jsonl", "--out", tmp_path / "compared")
    assert "3 held-out prompts, greedy" in out
    assert json.loads((tmp_path / "compared/evaluation.json").read_text())["after"]["prompts"] == 3
    assert not (tmp_path / "compared/scores.jsonl").exists()


def test_without_a_file_or_a_reference_of_ones_own_the_default_is_to_compare(run, here, tmp_path):
    short = ["--prompts", 1, "--max-new", 4, "--held-out", 0.5, "--out", tmp_path]
    for flags in (["--policy", run], ["--policy", run, "--reference", TINY]):
        assert "1 held-out prompts, greedy" in here(*flags, *short)[0]


def test_prompts_without_answers_are_answered_and_nothing_is_said_of_pairs(run, here, tmp_path):
    rows = [{name: row[name] for name in ("instruction", "input")} for row in preference_rows(7, seed=5)]
    rows.append({"prompt": "Once upon a time"})
    write_rows(tmp_path / "prompts.jsonl", [*rows, rows[0]])
    flags = [
        "--policy",
        run,
        "--pairs",
        tmp_path / "prompts.jsonl",
        "--held-out",
        1,
        "--out",
        tmp_path / "out",
        "--show",
        0,
    ]
    out, _ = here(*flags)
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert report["after"].keys() == report["before"].keys() == {"stopped", "length", "prompts"}
    assert report["after"]["prompts"] == 8 and report["difference"] == {}  # one of them stands there twice
    assert "8 held-out prompts, greedy" in out and "margin" not in out
    assert not (tmp_path / "out/tokens.jsonl").exists()
    asked = [json.loads(line)["prompt"] for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert asked[-1] == "Once upon a time" and len(asked) == 8


RATED = {"instruction": "Hi", "completions": [{"text": "Good day", "score": 7}, {"text": "Go away", "score": 2}]}


@pytest.mark.parametrize(
    "first", [RATED, {"prompt": "Hi", "chosen": "", "rejected": "Go away"}], ids=["rated", "empty"]
)
def test_pairs_are_told_from_prompts_by_what_a_pair_can_be_read_of(run, here, tmp_path, first):
    """The first of these rows has its answers in fields that a row of a prompt may have too, or it is left out for its answer."""
    kept = [{"prompt": f"Say {i}", "chosen": f"{i}!", "rejected": "no"} for i in range(3)]
    rated = [{**RATED, "instruction": f"Say {i}"} for i in range(3)]
    write_rows(tmp_path / "pairs.jsonl", [first, *(rated if first is RATED else kept)])
    flags = [
        "--policy",
        run,
        "--pairs",
        tmp_path / "pairs.jsonl",
        "--held-out",
        1,
        "--max-new",
        4,
        "--out",
        tmp_path / "out",
    ]
    assert "margin" in here(*flags)[0] and (tmp_path / "out/tokens.jsonl").exists()


def test_a_row_among_prompts_that_has_none_is_the_one_that_is_named(run, tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}, {"promt": "Ho"}])
    done = call(ROOT / "dpo/evaluate.py", "--policy", run, "--pairs", tmp_path / "prompts.jsonl", code=2)
    assert done.stderr.count("\n") == 1 and "prompts.jsonl, row 2" in done.stderr and "promt" in done.stderr


def test_what_is_measured_on_other_data_leaves_the_runs_own_evaluation_alone(run, here, tmp_path):
    write_rows(tmp_path / "other.jsonl", preference_rows(9, seed=5))
    short = ["--policy", run, "--prompts", 1, "--max-new", 4]
    here(*short)
    own = (run / "evaluation.json").read_bytes()
    others = (["--pairs", tmp_path / "other.jsonl", "--held-out", 1], ["--reference", TINY], ["--loss", "ipo"])
    for other in others:
        assert "written to" not in here(*short, *other)[0] and (run / "evaluation.json").read_bytes() == own


# bad input


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--policy", "nowhere"], "nowhere is no folder here"),
        ([], "--policy"),
        (["--policy", TINY], "name a model to compare with"),
        (["--policy", TINY, "--reference", TINY, "--max-new", 256], "--max-new is 256"),
        (["--policy", TINY, "--reference", TINY, "--held-out", 0], "no pair is held out"),
        (["--policy", TINY, "--no-compare"], "name a model to compare with"),
        (["--policy", TINY, "--reference", TINY, "--pairs", "none.jsonl"], "none.jsonl does not exist"),
    ],
)
def test_bad_input_is_refused_in_one_line(flags, expected, here):
    with pytest.raises(UserError) as caught:
        here(*flags)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_prints_the_line_to_stderr_and_leaves_with_2():
    done = evaluate("--policy", TINY, code=2)
    assert done.stderr.startswith("error: --policy") and done.stderr.count("\n") == 1 and done.stdout == ""
