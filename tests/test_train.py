"""dpo/train.py as its users run it: real processes, real torchrun, real signals, a toy model."""

import json
import math
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from data.pairs import write_rows
from data.rules import preference_rows
from dpo.job import Job, memory_summary
from dpo.train import Flags
from gpt.command import UserError, parse
from gpt.model import GPT, GPTConfig
from gpt.weights import load_gpt
from tests.processes import ENVIRONMENT, ROOT, call, command

TRAIN = ROOT / "dpo" / "train.py"


def flags_for(toy: Path, *flags) -> list:
    return ["--init", toy / "model", "--pairs", toy / "pairs.jsonl", "--batch", 8, "--lr", 1e-3, *flags]


def train(toy: Path, *flags, processes: int = 0, code: int | None = 0) -> subprocess.CompletedProcess:
    return call(TRAIN, *flags_for(toy, *flags), processes=processes, code=code)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(a: list[dict], b: list[dict], tolerance: float = 1e-5) -> None:
    """Equal line by line but for speed, and for padding, which depends on what shares a micro-batch."""
    assert [(line["step"], line["split"]) for line in a] == [(line["step"], line["split"]) for line in b]
    for x, y in zip(a, b):
        for name in x.keys() - {"split", "pairs_per_second", "padding"}:
            assert x[name] == pytest.approx(y[name], rel=tolerance, abs=tolerance), (x["step"], x["split"], name)


@pytest.fixture(scope="module")
def one_process(toy) -> Path:
    """Two epochs in one process: 10 steps, the last of each epoch with a batch that is not full."""
    run = toy / "one"
    train(toy, "--epochs", 2, "--eval-every", 4, "--out", run)
    return run


def test_metrics_begin_before_any_update_at_ln_2_and_count_every_pair_once_an_epoch(one_process):
    lines = metrics(one_process)
    held_out = [line for line in lines if line["split"] == "held-out"]
    steps = [line for line in lines if line["split"] == "train"]
    assert lines[0]["split"] == "held-out" and lines[0]["step"] == 0
    for first in (lines[0], steps[0]):
        assert first["loss"] == pytest.approx(0.693147, abs=1e-4)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert [line["step"] for line in held_out] == [0, 4, 8, len(steps)]
    assert sum(line["pairs"] for line in steps) == 2 * (37 - held_out[0]["pairs"])
    assert steps[-1]["pairs"] < 8  # the last batch trains too
    assert steps[-1]["loss"] < 0.65 and steps[-1]["rewards/accuracies"] > 0.9


@pytest.mark.parametrize("processes, micro", [(2, 3), (3, 1)])
def test_processes_and_micro_batches_change_nothing(toy, one_process, processes, micro):
    # with batches of 8 and of 1, three processes have uneven shares and some have none
    run = toy / f"processes-{processes}"
    train(toy, "--epochs", 2, "--eval-every", 4, "--micro", micro, "--out", run, processes=processes)
    same(metrics(run), metrics(one_process))
    theirs, ours = load_file(run / "model/model.safetensors"), load_file(one_process / "model/model.safetensors")
    for name in ours:
        # Adam turns rounding into steps of up to the learning rate where a gradient is almost 0
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("loss", ["dpo + 0.5*sft", "sft", "ipo(beta=0.2)"])
def test_two_processes_equal_one_for_losses_per_pair_and_per_token(toy, loss):
    for processes in (0, 2):
        train(toy, "--loss", loss, "--steps", 3, "--out", toy / f"{loss}-{processes}", processes=processes)
    same(metrics(toy / f"{loss}-0"), metrics(toy / f"{loss}-2"))


def test_a_sum_logs_its_terms_and_sft_has_no_rewards(toy):
    both, alone = metrics(toy / "dpo + 0.5*sft-0")[-2], metrics(toy / "sft-0")[-2]
    assert both["loss"] == pytest.approx(both["loss/dpo"] + 0.5 * both["loss/sft"], abs=1e-5)
    assert both["loss/sft"] == pytest.approx(-both["logps/chosen"] / both["length/chosen"], abs=1e-5)
    assert not [name for name in alone if "reward" in name or "rejected" in name]


def test_the_run_folder_holds_the_trained_model_its_flags_and_its_hashes(toy, one_process):
    assert load_gpt(one_process).config == load_gpt(toy / "model").config
    saved = load_file(one_process / "model/model.safetensors")["transformer.wte.weight"]
    newest = sorted((one_process / "checkpoints").iterdir())[-1]
    assert torch.equal(saved, load_file(newest / "model.safetensors")["transformer.wte.weight"])
    run = json.loads((one_process / "run.json").read_text())
    assert (
        run["flags"]["epochs"] == 2
        and run["settings"]["steps"] == metrics(one_process)[-1]["step"]
        and run["versions"]["torch"] == torch.__version__
    )
    assert all(re.fullmatch("[0-9a-f]{64}", run["settings"][name]) for name in ("init_sha256", "pairs_sha256"))


def test_a_learning_rate_of_0_changes_no_weight_and_no_held_out_set_writes_no_line(toy):
    train(toy, "--lr", 0, "--held-out", 0, "--steps", 2, "--warmup", 0, "--out", toy / "still")
    before, after = (load_file(folder / "model.safetensors") for folder in (toy / "model", toy / "still/model"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [line["split"] for line in metrics(toy / "still")] == ["train", "train"]


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_cut_off_and_resumed_ends_with_the_same_bits(toy, processes):
    whole, cut = toy / f"whole-{processes}", toy / f"cut-{processes}"
    for run in (whole, cut):
        train(toy, "--steps", 6, "--save-every", 2, "--eval-every", 2, "--out", run, processes=processes)
    # as if it had died while step 6 was being written: a torn checkpoint, a torn line, no model
    (cut / "checkpoints/step-000006/manifest.json").unlink()
    with open(cut / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "spl')
    (cut / "model/model.safetensors").unlink()
    done = train(toy, "--steps", 6, "--save-every", 2, "--eval-every", 2, "--out", cut, "--resume", processes=processes)
    assert done.stdout.count("damaged or unfinished") == 1
    assert (cut / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    same(metrics(cut), metrics(whole), tolerance=0)


def test_a_run_resumes_under_another_number_of_processes(toy, one_process):
    run, flags = toy / "moved", ["--epochs", 2, "--eval-every", 4, "--save-every", 3]
    train(toy, *flags, "--out", run)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)  # the one before is of step 9
    train(toy, *flags, "--out", run, "--resume", processes=2)
    same(metrics(run), metrics(one_process))


def test_a_finished_run_resumes_to_its_export_and_other_flags_are_refused_by_name(toy, one_process):
    assert "is finished" in train(toy, "--epochs", 2, "--out", one_process, "--resume").stdout
    before = (one_process / "model/model.safetensors").read_bytes()
    shutil.rmtree(one_process / "model")  # cut off between the last checkpoint and the export
    train(toy, "--epochs", 2, "--out", one_process, "--resume")
    assert (one_process / "model/model.safetensors").read_bytes() == before
    done = train(toy, "--epochs", 3, "--seed", 1, "--out", one_process, "--resume", code=2)
    assert (
        "started with other flags: --steps 15 (it was 10), --seed 1 (it was 0);" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_sigterm_saves_the_last_step_and_leaves_with_143(toy):
    run, flags = toy / "stopped", ["--steps", 400, "--eval-every", 0, "--save-every", 0, "--out", toy / "stopped"]
    process = subprocess.Popen(
        command(TRAIN, *flags_for(toy, *flags)),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    process.send_signal(
        signal.SIGTERM
    )  # torchrun passes its own on to a worker that a group signal has reached already
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143 and "stopped by a signal" in out
    (saved,) = (run / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) == metrics(run)[-1]["step"] and not (run / "model").exists()


# The pass before which a process sends itself a signal, counted in the module that asks: the only way to have it there.
KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from dpo import reference, step, train
from dpo.order import Limit
from gpt.command import run

reference.AT_ONCE["cpu"] = Limit(1, 10_000)
module, at = {{"reference": reference, "step": step}}[sys.argv.pop(1)], int(sys.argv.pop(1))
passes, ask, main = iter(range(1, 10_000)), module.ask, int(os.environ.get("RANK", 0)) == 0

def ask_after_a_signal(*given, **more):
    if next(passes) == at and main == ("RANK" not in os.environ):
        os.kill(os.getpid(), signal.SIGTERM)
    return ask(*given, **more)

module.ask = ask_after_a_signal
run(train.main, train.Flags)
"""


def killed(toy: Path, module: str, at: int, run: Path, *flags, processes: int = 0, code: int | None = 0) -> str:
    """What a run said that is sent a signal before pass `at` (0: never), with a cache of its own."""
    (toy / "killed.py").write_text(KILLED)
    words = flags_for(toy, "--steps", 20, "--micro", 2, "--eval-every", 10, "--log-every", 1000, "--out", run, *flags)
    cache = {"GPT_DPO_CACHE": str(run) + "-cache"}
    return call(toy / "killed.py", module, at, *words, processes=processes, code=code, **cache).stdout


@pytest.mark.parametrize("processes, at", [(0, 1), (0, 29), (2, 12)])
def test_a_signal_stops_in_the_midst_of_an_evaluation_or_a_step_and_the_run_resumes_to_the_same_bits(
    toy, processes, at
):
    whole, cut = toy / f"undisturbed-{processes}-{at}", toy / f"signalled-{processes}-{at}"
    killed(toy, "step", 0, whole, processes=processes)
    said = killed(toy, "step", at, cut, processes=processes, code=1 if processes else 143)
    (saved,) = (cut / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    # main says so once, whoever heard the signal; for a process alone pass 29 is in step 8, of 2 | 4 4 4 4 1 4 4 4
    assert (
        said.count("stopped by a signal") == said.count(f"\nstopped by a signal after step {step}; continue with") == 1
    )
    assert step == {1: 0, 29: 7}[at] if not processes else 0 < step < 20
    lines = metrics(cut) if at > 1 else []
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, step + 1))[: len(lines)]
    killed(toy, "step", 0, cut, "--resume", processes=processes)
    assert_same_bits(cut, whole)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_signal_stops_the_reference_pass_and_the_next_run_goes_on_from_there_to_the_same_bits(toy, processes):
    whole, cut = toy / f"asked-at-once-{processes}", toy / f"asked-in-two-{processes}"
    killed(toy, "reference", 0, whole, processes=processes)
    said = killed(toy, "reference", 2 if processes else 5, cut, processes=processes, code=1 if processes else 143)
    assert said.count("stopped by a signal in the reference pass") == 1 and "after step" not in said
    assert [path.name for path in cut.iterdir()] == ["lock"]
    said = killed(toy, "reference", 0, cut, processes=processes)
    asked, known = map(int, re.search(r"reference asked about (\d+) pairs in [\d.]+ s, (\d+) known", said).groups())
    assert asked + known == 34 and (known == 4 if not processes else 0 < known < 34)
    assert_same_bits(cut, whole)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows(toy):
    run = toy / "exploded"
    done = train(
        toy,
        "--lr",
        1e30,
        "--warmup",
        0,
        "--grad-clip",
        0,
        "--save-every",
        1,
        "--steps",
        20,
        "--eval-every",
        0,
        "--out",
        run,
        code=2,
    )
    line = done.stderr.strip().splitlines()[-1]
    assert "nothing was updated" in line and re.search(r"rows \d+, \d+", line)
    assert not (run / "model").exists()


BAD_PAIRS = {
    "missing": (None, "does not exist"),
    "bad json": ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", ', "line 2"),
    "misspelt": (
        '{"prompt": "a", "chosn": "b", "rejected": "c"}',
        "row 1: field 'chosen' is missing; found prompt, chosn",
    ),
    "number": ('{"prompt": "a", "chosen": 3, "rejected": "c"}', "row 1: field 'chosen' must be text, found a number"),
    "nothing left": ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "chosen equal to rejected: 1 pair (row 1)"),
    "one answer": (
        '{"prompt": "a", "chosen": "b"}\n{"prompt": "q", "chosen": "b", "rejected": "c"}',
        "row 1: field 'rejected' is missing",
    ),
}


def refused(toy: Path, *flags) -> str:
    """The line with which a job refuses its flags, without starting Python anew for each."""
    with pytest.raises(UserError) as caught:
        Job(parse(Flags, [str(word) for word in flags_for(toy, *flags)]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_a_bad_pairs_file_is_one_line_and_nothing_is_written(toy, tmp_path, case):
    text, expected = BAD_PAIRS[case]
    if text is not None:
        (tmp_path / "pairs.jsonl").write_text(text)
    line = refused(toy, "--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "run")
    assert expected in line and str(tmp_path / "pairs.jsonl") in line
    assert not (tmp_path / "run").exists()


def test_the_command_prints_the_line_to_stderr_and_leaves_with_2(toy, tmp_path):
    done = train(toy, "--pairs", tmp_path / "none.jsonl", "--out", tmp_path / "run", code=2)
    assert done.stderr == f"error: {tmp_path / 'none.jsonl'} does not exist\n" and done.stdout == ""
    assert not (tmp_path / "run").exists()


BAD_FLAGS = {
    "beta": (["--beta", 0], "--beta is 0"),
    "loss": (["--loss", "dpoo"], "did you mean dpo?"),
    "rate": (["--lr", "nan"], "--lr is nan, it must be a finite number of at least 0"),
    "keyword": (["--loss", "dpo(gamma=1)"], "no keyword 'gamma'"),
    "unknown flag": (["--learning-rate", 1], "unrecognized arguments: --learning-rate"),
    "not a number": (["--batch", "many"], "--batch"),
    "batch": (["--batch", 0], "--batch is 0"),
    "held out": (["--held-out", 1], "--held-out is 1"),
    "model": (["--init", "no/such/model"], "no/such/model does not exist"),
    "size": (["--init", "random:huge"], "random:huge"),
    "length": (["--max-length", 100000], "the model's context is 256"),
    "resume": (["--resume"], "--resume needs --out"),
    "alpha alone": (["--lora-alpha", 8], "--lora-alpha needs --lora"),
    "alpha below 0": (["--lora", 4, "--lora-alpha", -1], "--lora-alpha is -1"),
    "rank below 0": (["--lora", -1], "--lora is -1"),
    "rank of the width": (["--lora", 32], "--lora 32: the rank must be below the model's width, 32"),
    "dropout": (["--dropout", 1], "--dropout is 1.0, it must be at least 0 and below 1"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_a_bad_flag_is_refused_in_one_line(toy, case):
    flags, expected = BAD_FLAGS[case]
    assert expected in refused(toy, *flags)


def test_a_folder_that_holds_another_run_is_refused_and_left_as_it_was(toy, one_process):
    before = {file: file.stat().st_mtime_ns for file in one_process.rglob("*")}
    assert "holds another run" in refused(toy, "--out", one_process)
    assert before == {file: file.stat().st_mtime_ns for file in one_process.rglob("*")}


def test_under_bare_torchrun_the_line_stands_once_before_torchruns_own_summary(toy):
    done = train(toy, "--beta", 0, processes=2, code=1)
    assert done.stderr.count("error: --beta is 0") == 1
    assert done.stderr.index("error: --beta is 0") < done.stderr.index("ChildFailedError")


@pytest.fixture(scope="module")
def margins(toy) -> Path:
    """The pairs, each with a margin."""
    write_rows(toy / "margins.jsonl", [row | {"margin": i % 4 / 2} for i, row in enumerate(preference_rows(37))])
    return toy / "margins.jsonl"


@pytest.mark.parametrize("processes", [0, 2])
def test_a_loss_with_margins_asks_each_pair_for_its_own(toy, margins, processes):
    flags = ["--loss", "dpo(margin=true)", "--steps", 3, "--held-out", 0, "--batch", 37, "--micro", 5]
    run = toy / f"margins-{processes}"
    train(toy, *flags, "--pairs", margins, "--out", run, processes=processes)
    wanted = sum(math.log1p(math.exp(i % 4 / 2)) for i in range(37)) / 37  # -log sigmoid(0 - margin)
    assert metrics(run)[0]["loss"] == pytest.approx(wanted, abs=1e-5)
    assert metrics(run)[2]["loss"] < wanted


def test_a_row_without_the_margin_that_the_loss_asks_for_is_named(toy, margins):
    rows = margins.read_text().splitlines()
    row = json.loads(rows[4])
    del row["margin"]
    (toy / "one-missing.jsonl").write_text("\n".join([*rows[:4], json.dumps(row), *rows[5:]]) + "\n")
    flags = ["--loss", "2*dpo(margin=true) + sft", "--pairs", toy / "one-missing.jsonl"]
    assert "one-missing.jsonl, row 5: field 'margin' is missing" in refused(toy, *flags)
    assert "row 1: field 'margin' is missing" in refused(toy, "--loss", "hinge(margin=true)")


def test_a_resumed_run_must_have_the_margins_that_it_began_with(toy, margins):
    flags = ["--loss", "dpo(margin=true)", "--steps", 4, "--save-every", 2, "--out", toy / "other-margins"]
    train(toy, *flags, "--pairs", margins)
    (toy / "margins2.jsonl").write_text(margins.read_text().replace('"margin": 0.5', '"margin": 0.75'))
    done = train(toy, *flags, "--pairs", toy / "margins2.jsonl", "--resume", code=2)
    assert "other flags: --pairs (other margins);" in done.stderr


def test_fewer_pairs_than_processes_is_refused(toy, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    done = train(toy, "--pairs", tmp_path / "pairs.jsonl", "--held-out", 0, processes=2, code=1)
    # once for both, and where torchrun's own summary names the cause of each
    said = [line for line in done.stderr.splitlines() if "1 pairs to train on, fewer than the 2 processes" in line]
    assert [line.startswith("error: ") for line in said].count(True) == 1


def test_it_works_from_any_folder_and_names_its_own_run_folder(toy, tmp_path):
    done = subprocess.run(
        command(TRAIN, *flags_for(toy, "--steps", 1, "--held-out", 0)),
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("dpo-") and (run / "model/model.safetensors").exists()


# adapters and dropout

LORA = ["--steps", 6, "--save-every", 2, "--eval-every", 2, "--lora", 4]


@pytest.fixture(scope="module")
def adapted(toy) -> tuple[Path, str]:
    """A run of adapters in one process, and what it printed."""
    return toy / "adapted", train(toy, *LORA, "--out", toy / "adapted").stdout


def resumed(run: Path, flags: list, processes: int) -> Path:
    """A copy of the run, cut off while its last step was being saved, and resumed to its end."""
    cut = run.with_name(f"{run.name}-cut")
    shutil.copytree(run, cut)
    newest = sorted((cut / "checkpoints").iterdir())[-1]
    (newest / "manifest.json").unlink()
    for made in ("model", "adapter"):
        shutil.rmtree(cut / made, ignore_errors=True)
    train(run.parent, *flags, "--out", cut, "--resume", processes=processes)
    return cut


def assert_same_bits(run: Path, other: Path) -> None:
    same(metrics(run), metrics(other), tolerance=0)
    files = [
        "model/model.safetensors",
        *(["adapter/adapter_model.safetensors"] if (other / "adapter").exists() else []),
    ]
    assert all((run / name).read_bytes() == (other / name).read_bytes() for name in files)


def test_adapters_begin_at_ln_2_and_learn(adapted):
    lines = metrics(adapted[0])
    for first in (lines[0], lines[1]):  # held out, and the first step
        assert first["loss"] == pytest.approx(0.693147, abs=1e-6)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["loss"] < 0.69 and lines[-1]["rewards/accuracies"] > 0.5


def test_a_run_of_adapters_cut_off_and_resumed_ends_with_the_same_bits(adapted):
    assert_same_bits(resumed(adapted[0], LORA, 0), adapted[0])


@pytest.mark.slow
def test_adapters_in_two_processes_give_the_metrics_of_one_and_resume_to_the_same_bits(toy, adapted):
    run = toy / "adapted-2"
    train(toy, *LORA, "--out", run, processes=2)
    same(metrics(run), metrics(adapted[0]))
    assert_same_bits(resumed(run, LORA, 2), run)


def test_the_model_of_a_run_of_adapters_is_its_start_with_the_adapter_added_by_hand(toy, adapted):
    run, _ = adapted
    start, model = (load_file(folder / "model.safetensors") for folder in (toy / "model", run / "model"))
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(toy / "model")
    assert (config["r"], config["lora_alpha"]) == (4, 8) and start.keys() == model.keys()
    touched = 0
    for name, before in start.items():
        A, B = (adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight") for part in "AB")
        if A is None:
            assert torch.equal(model[name], before), name
            continue
        touched += 1
        expected = before + 8 / 4 * (B.double() @ A.double()).t()  # Hugging Face keeps the matrix transposed
        torch.testing.assert_close(model[name].double(), expected, rtol=0, atol=1e-7)
        assert not torch.equal(model[name], before)
    assert touched == 8 and len(adapter) == 16
    assert load_gpt(run).config == load_gpt(toy / "model").config
    saved = load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors")
    assert len(saved) == 16 and all(torch.equal(p, adapter[f"base_model.model.{n}.weight"]) for n, p in saved.items())


def test_the_model_is_exported_last_since_a_run_that_has_it_counts_as_finished(adapted):
    # cut off between the two, a run that had its model alone would never get its adapter
    run, _ = adapted
    assert (run / "adapter").stat().st_mtime_ns <= (run / "model").stat().st_mtime_ns


def test_what_is_printed_of_adapters_and_of_memory_is_what_a_count_by_hand_gives(toy, adapted):
    run, printed = adapted
    whole = sum(value.numel() for value in load_file(toy / "model/model.safetensors").values())
    own = sum(value.numel() for value in load_file(run / "adapter/adapter_model.safetensors").values())
    assert own == 2 * 4 * 32 * (4 + 2 + 5 + 5)  # layers, rank, width; in + out of the four matrices, in widths
    said = dict(line.split(maxsplit=1) for line in printed.splitlines() if line[:1].isalpha())
    assert said["model"].endswith(f"{whole:,} parameters, 256 positions")
    assert said["lora"] == f"rank 4, alpha 8: 4,096 parameters train, {own / (whole + own):.2%} of all"
    mib = [4 * count / 2**20 for count in (whole + own, own, 2 * own)]
    numbers = [float(number) for number in re.findall(r"([\d.]+) MiB", said["memory"])]
    assert numbers == [pytest.approx(number, rel=5e-3) for number in mib]


@pytest.mark.parametrize("parameters", [2**18 * 1001, 2**18 * 1023, 2**28, 2**27, 5 * 2**28, 25 * 2**10])
def test_a_size_is_printed_in_digits_whatever_it_is(parameters):
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=1, n_positions=1, n_embd=2, n_layer=1, n_head=1))
        model.more = torch.nn.Parameter(torch.empty(parameters - model.parameter_count))
    weights = memory_summary(model).split(" of weights")[0]
    number, unit = weights.split()
    assert re.fullmatch(r"[\d.]+", number), weights
    assert float(number) * {"MiB": 2**20, "GiB": 2**30}[unit] == pytest.approx(4 * parameters, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "sft"])
def test_with_dropout_the_start_is_still_ln_2_and_a_run_cut_off_resumes_to_the_same_bits(toy, loss):
    run, flags = toy / f"dropout-{loss}", ["--loss", loss, "--dropout", 0.1, "--steps", 4, "--save-every", 2]
    train(toy, *flags, "--out", run)
    start, first, *_, last = metrics(run)
    assert AutoConfig.from_pretrained(run / "model").resid_pdrop == 0.1
    if loss == "sft":
        assert last["loss"] < start["loss"]
        return
    assert start["loss"] == pytest.approx(0.693147, abs=1e-6)  # evaluated without
    assert abs(first["loss"] - 0.693147) > 1e-6  # trained with: the policy is not what the reference was asked as
    assert_same_bits(resumed(run, flags, 0), run)


# where a run says it started

COMMIT = "0123456789" * 4


def hub_cache(cache: Path, model: Path) -> dict[str, str]:
    """A cache of the Hub with the model me/toy, laid by hand; the variables of a process that has it and no network."""
    repository = cache / "models--me--toy"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def test_a_run_records_where_it_started_by_an_absolute_path(toy, one_process, monkeypatch):
    monkeypatch.chdir(toy)
    for name, expected in (("model", toy / "model"), ("one", toy / "one/model"), ("", ""), ("random:tiny",) * 2):
        flags = ["--init", name, "--pairs", "pairs.jsonl", "--reference", "model" if name in ("model", "one") else ""]
        record = Job(parse(Flags, flags)).record()
        assert record["init"] == str(expected) and record["pairs"] == str(toy / "pairs.jsonl")
        assert record["reference"] == (str(toy / "model") if name in ("model", "one") else "")
    assert json.loads((one_process / "run.json").read_text())["flags"]["init"] == str(toy / "model")


@pytest.fixture(scope="module")
def from_hub(toy) -> tuple[Path, dict[str, str]]:
    """A run of adapters from a name on the Hub, and the variables of the cache that has it."""
    here = hub_cache(toy / "cache", toy / "model")
    flags = ["--steps", 1, "--lora", 2, "--init", "me/toy", "--out", toy / "from-hub"]
    assert "model    me/toy, " in call(TRAIN, *flags_for(toy, *flags), **here).stdout
    return toy / "from-hub", here


@pytest.mark.slow
def test_a_run_from_the_hub_records_name_and_commit_and_is_compared_with_that_commit(from_hub):
    run, here = from_hub
    assert json.loads((run / "run.json").read_text())["flags"]["init"] == f"me/toy@{COMMIT}"
    # the branch moves on, to a commit that is not there; the run asks for its own
    (Path(here["HF_HUB_CACHE"]) / "models--me--toy/refs/main").write_text("f" * 40)
    found = call(ROOT / "dpo/evaluate.py", "--policy", run, "--prompts", 1, "--max-new", 4, **here)
    assert "1 held-out prompts" in found.stdout


@pytest.mark.slow
def test_an_adapter_names_its_base_on_the_hub_as_peft_reads_it(from_hub):
    # peft takes a name and a revision apart, and refuses a name with an @ in it
    config = json.loads((from_hub[0] / "adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config.get("revision")) == ("me/toy", COMMIT)
