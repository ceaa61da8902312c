"""dpo/compare.py and dpo/kl.py: the divergence computed in other ways, the table from real runs, and the one in the docs."""

import json
import signal
import subprocess
import time
from itertools import product
from pathlib import Path

import pytest
import torch

from data.pairs import write_rows
from data.rules import preference_rows
from dpo import compare as command
from dpo.forward import Way
from dpo.kl import log_ratios, sampled, sampled_kl
from dpo.loss_table import table
from dpo.order import Limit
from gpt.command import UserError
from gpt.parallel import World
from gpt.stopping import StopSignal
from tests.processes import ENVIRONMENT, ROOT, call
from tests.processes import command as words

ONE = World(0, 1, torch.device("cpu"))
WAY = Way(Limit(3, 60), "fp32", ONE)


def step_by_step(model, prompt: list[int], answer: list[int]) -> float:
    """log p of an answer, a pass for each of its tokens."""
    total = 0.0
    for number, token in enumerate(answer):
        tokens = torch.tensor([prompt + answer[:number]])
        last = model.hidden(tokens, torch.arange(tokens.shape[1]), None)[0, -1]
        total += float(model.lm_head(last).log_softmax(-1)[token])
    return total


@torch.no_grad()
def test_the_log_ratio_of_an_answer_is_that_of_its_tokens_one_by_one(make_gpt, random_ids):
    policy, reference = make_gpt(1).eval(), make_gpt(2).eval()
    answers = [ids._replace(rejected=[]) for ids in random_ids(11)]
    expected = [
        step_by_step(policy, ids.prompt, ids.chosen) - step_by_step(reference, ids.prompt, ids.chosen)
        for ids in answers
    ]
    assert log_ratios(policy, reference, answers, WAY).tolist() == pytest.approx(expected, abs=2e-4)


@torch.no_grad()
def test_the_divergence_is_that_of_all_answers_weighed_by_how_likely_they_are(make_gpt):
    """A vocabulary of 4, of which 0 ends an answer, and at most two tokens: 13 answers, summed over in full."""
    policy, reference = (make_gpt(seed, vocab_size=4).eval() for seed in (1, 2))
    prompt, exact, sure = [1, 2, 3], 0.0, 0.0
    for answer in [[0], *map(list, product((1, 2, 3), range(4)))]:
        here = step_by_step(policy, prompt, answer)
        sure += torch.tensor(here).exp()
        exact += torch.tensor(here).exp() * (here - step_by_step(reference, prompt, answer))
    assert float(sure) == pytest.approx(1, abs=1e-5) and exact > 0.1
    found = sampled_kl(policy, reference, [prompt] * 4000, 2, 0, Way(Limit(500, 10_000), "fp32", ONE))
    assert abs(found.mean - float(exact)) < 4 * found.error < 0.2 * float(exact)


def test_a_model_does_not_diverge_from_itself(make_gpt, random_ids):
    model = make_gpt()
    prompts = [ids.prompt for ids in random_ids(5)]
    assert sampled_kl(model, model, prompts, 8, 0, WAY) == (0.0, 0.0)


def test_one_answer_alone_has_no_standard_error(make_gpt, random_ids):
    (ids,) = random_ids(1)
    assert sampled_kl(make_gpt(1), make_gpt(2), [ids.prompt], 8, 0, WAY).error is None
    one = {"stopped": 1.0, "length": 2.0, "accuracy": 0.5, "kl": 0.25, "kl standard error": None, "chosen": -1.5}
    assert "| 0.500 | 0.25 |" in table({"the start": one})[-1]


def test_answers_are_drawn_to_each_prompt_by_its_place_and_the_seed(make_gpt, random_ids):
    model, prompts = make_gpt(), [ids.prompt for ids in random_ids(5)]
    first = sampled(model, prompts, 8, 0, seed=1)
    assert [ids.prompt for ids in first] == prompts and first == sampled(model, prompts, 8, 0, seed=1)
    assert first != sampled(model, prompts, 8, 0, seed=2)
    assert all(0 not in ids.chosen[:-1] and 1 <= len(ids.chosen) <= 8 for ids in first)
    (long,) = sampled(model, [list(range(1, 40)) * 2], 8, 0, seed=1)
    assert long.prompt == (list(range(1, 40)) * 2)[-56:]  # 64 positions, 8 of them for the answer


def compare(*flags, code: int = 0, **how) -> subprocess.CompletedProcess:
    return call(ROOT / "dpo/compare.py", *flags, code=code, **how)


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[Path, list]:
    """Two losses and a rate of its own, three steps each, and the flags."""
    folder = tmp_path_factory.mktemp("compare")
    write_rows(folder / "pairs.jsonl", preference_rows(150))
    flags = ["--pairs", folder / "pairs.jsonl", "--losses", "dpo(beta=0.3); sft @ 3e-3", "--steps", 3, "--batch", 8]
    flags += ["--out", folder / "out", "--device", "cpu"]
    compare(*flags)
    return folder, flags


def found_in(folder: Path) -> dict:
    return json.loads((folder / "out/compare.json").read_text(encoding="utf-8"))["rows"]


def test_each_loss_is_trained_as_a_run_of_its_own_on_the_same_pairs_in_the_same_order(compared):
    folder, _ = compared
    runs = [folder / "out" / name for name in ("dpo-beta=0.3", "sft@0.003")]
    flags = [json.loads((run / "run.json").read_text())["flags"] for run in runs]
    assert [(one["loss"], one["lr"]) for one in flags] == [("dpo(beta=0.3)", 1e-4), ("sft", 3e-3)]
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    of_steps = [[(line["step"], line["length/chosen"]) for line in one if line["split"] == "train"] for one in lines]
    assert of_steps[0] == of_steps[1] and len(of_steps[0]) == 3
    assert [line["length/chosen"] for line in lines[0]].count(of_steps[0][0][1]) == 1  # the steps differ


def test_the_figures_are_those_of_evaluate_and_of_the_run(compared):
    folder, _ = compared
    rows = found_in(folder)
    assert list(rows) == ["the start", "dpo(beta=0.3)", "sft @ 0.003"]
    call(ROOT / "dpo/evaluate.py", "--policy", folder / "out/dpo-beta=0.3", "--show", 0)
    report = json.loads((folder / "out/dpo-beta=0.3/evaluation.json").read_text())
    for row, side in (("the start", "before"), ("dpo(beta=0.3)", "after")):
        for name in ("courteous", "rude", "correct", "stopped", "length", "accuracy"):
            assert rows[row][name] == pytest.approx(report[side][name]), (row, name)
    for row, run in (("dpo(beta=0.3)", "dpo-beta=0.3"), ("sft @ 0.003", "sft@0.003")):
        lines = map(json.loads, (folder / "out" / run / "metrics.jsonl").read_text().splitlines())
        before, after = (line["logps/chosen"] for line in lines if line["split"] == "held-out")
        assert rows[row]["chosen"] == pytest.approx(after - before, abs=1e-4) and abs(after - before) > 1e-3
    assert (rows["the start"]["kl"], rows["the start"]["chosen"]) == (0, pytest.approx(0, abs=1e-5))
    assert rows["sft @ 0.003"]["kl"] > 3 * rows["sft @ 0.003"]["kl standard error"] > 0


def test_the_table_has_a_row_for_each_and_says_what_it_is_of(compared):
    folder, _ = compared
    text = (folder / "out/compare.md").read_text(encoding="utf-8")
    found = json.loads((folder / "out/compare.json").read_text(encoding="utf-8"))
    assert text == "\n".join([found["caption"], "", *table(found["rows"]), ""])
    assert text.startswith("3 steps of 8 pairs with each loss, from the same start")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| the start", "| `dpo(beta=0.3)`", "| `sft @ 0.003`"]
    assert {len(row) for row in rows} == {9}
    assert rows[0][1:4] == ["courteous", "rude", "correct"]
    assert rows[3][3] == f"{found_in(folder)['dpo(beta=0.3)']['correct']:.3f}"


def test_what_is_finished_is_not_trained_again(compared):
    folder, flags = compared
    runs = sorted((folder / "out").glob("*/m*"))  # metrics.jsonl and model/ of both
    before, text = [run.stat().st_mtime_ns for run in runs], (folder / "out/compare.md").read_text()
    done = compare(*flags)
    assert [run.stat().st_mtime_ns for run in runs] == before and len(runs) == 4
    assert (folder / "out/compare.md").read_text() == text and "| `sft @ 0.003` |" in done.stdout


def test_a_run_with_other_settings_is_not_taken_for_this_one(compared):
    _, flags = compared
    done = compare(*flags, "--steps", 4, code=2)
    assert done.stderr.splitlines()[-1].startswith("error: dpo(beta=0.3):") and "steps" in done.stderr


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"losses": "dpo; dqo"}, "there is no loss 'dqo'"),
        ({"losses": "dpo @ fast"}, "the rate of dpo is a number, found 'fast'"),
        ({"losses": "dpo @ -1"}, "the rate of dpo is -1"),
        ({"losses": "dpo; ipo; dpo"}, "dpo stands twice"),
        ({"steps": 0}, "--steps is 0"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_trained(flags, expected, tmp_path):
    with pytest.raises(UserError) as error:
        command.main(command.Flags(out=str(tmp_path / "out"), **flags))
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_rows_without_known_answers_have_no_rates_of_manner():
    one = {"stopped": 1.0, "length": 2.0, "accuracy": 0.5, "kl": 0.25, "kl standard error": 0.125, "chosen": -1.5}
    assert table({"the start": one}) == [
        "|  | stopped | length | accuracy | KL, nats | chosen, nats |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| the start | 1.000 | 2.00 | 0.500 | 0.25 ± 0.12 | \N{MINUS SIGN}1.50 |",
    ]


def test_under_torchrun_it_says_how_it_is_started():
    environment = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    done = call(ROOT / "dpo/compare.py", code=2, **environment)
    assert done.stderr.count("\n") == 1 and "runs alone" in done.stderr


def test_what_training_does_with_signals_is_over_with_it(signals):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with command.signals_as_before():
        StopSignal(ONE)
        assert all(signal.getsignal(number) != was for number, was in zip(numbers, before))
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.slow
def test_a_signal_stops_it_and_the_same_command_goes_on(tmp_path):
    flags = ["--losses", "dpo; ipo", "--steps", 40, "--batch", 8, "--prompts", 8, "--out", tmp_path / "out"]
    job = subprocess.Popen(
        words(ROOT / "dpo/compare.py", *flags), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "out/ipo/metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143 and not (tmp_path / "out/compare.md").exists()
    compare(*flags)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [0, *range(1, 41), 40]
    assert (tmp_path / "out/compare.md").exists()
