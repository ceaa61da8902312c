"""dpo/watch.py: the numbers of several steps, read together, are those that are read one by one."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.pairs import Pair, write_rows
from data.rules import preference_rows
from dpo.examples import Examples, in_memory
from dpo.losses import parse_loss
from dpo.metrics import Totals
from dpo.rows import Ids
from dpo.watch import Done, Watch
from gpt.checkpoint import latest_checkpoint
from gpt.command import UserError
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import train_bpe
from gpt.weights import save_gpt
from tests.processes import ROOT, call

LOSS = parse_loss("dpo")


def examples() -> Examples:
    """Ten pairs from the rows 11, 12, ... of a file."""
    return in_memory([Pair("", "", "", 11 + i) for i in range(10)], [Ids([1], [2], [3])] * 10)


def done(number: int, indices: list[int], loss: float = 0.5, norm: float = 2.0) -> Done:
    sums = {"loss/dpo": loss * len(indices), "pairs": len(indices), "tokens": 7, "answer_tokens": 3, "places": 8}
    sums |= {"empty": 1, "logps/chosen": -4.0 * len(indices)}
    totals = Totals(list(sums), torch.tensor([float(value) for value in sums.values()]))
    return Done(number, indices, totals, torch.tensor(norm), 1e-3 * number)


def test_each_waiting_step_has_a_line_and_is_read_once():
    watch = Watch(LOSS, examples())
    watch.waiting += [done(4, [1, 2]), done(5, [3], loss=0.25, norm=0.5)]
    time.sleep(0.01)
    first, second = list(watch.lines())
    speed = first.pop("pairs_per_second")
    assert second.pop("pairs_per_second") == speed and 0 < speed < 3 / 0.01  # of all three pairs
    assert first == {
        "step": 4,
        "split": "train",
        "loss": 0.5,
        "logps/chosen": -4.0,
        "pairs": 2,
        "tokens": 7,
        "padding": 1 / 8,
        "grad_norm": 2.0,
        "learning_rate": 4e-3,
    }
    assert second == first | {"step": 5, "loss": 0.25, "pairs": 1, "grad_norm": 0.5, "learning_rate": 5e-3}
    assert list(watch.lines()) == [] and watch.waiting == []


def test_time_before_a_restart_does_not_count():
    watch = Watch(LOSS, examples())
    time.sleep(0.2)
    watch.restart()
    watch.waiting.append(done(1, [0] * 10))
    assert list(watch.lines())[0]["pairs_per_second"] > 10 / 0.15


@pytest.mark.parametrize(
    "fault", [dict(loss=float("nan")), dict(loss=float("inf")), dict(norm=float("nan")), dict(norm=float("inf"))]
)
def test_what_is_not_finite_is_an_error_that_names_the_first_such_step_and_its_rows(fault):
    watch = Watch(LOSS, examples())
    watch.waiting += [done(6, [0]), done(7, [9, 4], **fault), done(8, [5], **fault)]
    with pytest.raises(UserError, match=r"step 7: .*nothing was updated.*rows 20, 15$") as caught:
        list(watch.lines())
    assert str(next(iter(fault.values()))) in str(caught.value) and "\n" not in str(caught.value)


# The whole command


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with a toy model and 30 pairs."""
    folder = tmp_path_factory.mktemp("watch")
    rows = preference_rows(30)
    tokenizer = train_bpe([f"{r['instruction']} {r['input']} {r['chosen']} {r['rejected']}" for r in rows], 320)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=16, n_layer=1, n_head=2))
    save_gpt(folder / "model", model, tokenizer)
    write_rows(folder / "pairs.jsonl", rows)
    return folder


# With a rate of 1e30 in one step there are no finite numbers in the next: the only way to have that happen where we want.
SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from dpo import train
from gpt.command import run
explodes = int(sys.argv.pop(1))
rate = train.learning_rate
train.learning_rate = lambda step, *rest: 1e30 if step == explodes else rate(step, *rest)
run(train.main, train.Flags)
"""


def trained(toy: Path, log_every: int, explodes: int = 0, code: int = 0, **flags) -> tuple[Path, str]:
    """The run folder, and what was said on standard error."""
    run = toy / f"{log_every}-{explodes}"
    words = ["--init", toy / "model", "--pairs", toy / "pairs.jsonl", "--lr", 1e-3, "--batch", 4, "--out", run]
    flags = {"steps": 13, "eval_every": 4, "save_every": 3, "log_every": log_every} | flags
    words += [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    return run, call("-c", SCRIPT, explodes, *words, code=code).stderr


def lines_of(run: Path) -> list[dict]:
    """The metrics but for the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("pairs_per_second", 1) > 0 for line in lines)
    return lines


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def test_looking_every_five_steps_writes_the_lines_of_looking_at_each(toy):
    (each, _), (five, _) = trained(toy, 1), trained(toy, 5)
    assert lines_of(five) == lines_of(each)
    steps = [(line["step"], line["split"]) for line in lines_of(each)]
    assert [step for step, split in steps if split == "train"] == list(range(1, 14))
    assert [step for step, split in steps if split == "held-out"] == [0, 4, 8, 12, 13]
    assert (each / "model/model.safetensors").read_bytes() == (five / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(toy) -> Path:
    return trained(toy, 2, eval_every=0)[0]


@pytest.fixture(scope="module")
def exploded(toy) -> dict[int, tuple[Path, str]]:
    """Runs whose step 7 leaves weights that are not finite, by how often they look: at 1, 2, ... or at 3, 5, 6, 9."""
    return {log_every: trained(toy, log_every, explodes=7, code=2, eval_every=0) for log_every in (1, 5)}


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_number_that_is_not_finite_between_two_looks_is_told_of_its_step_and_leaves_lines_and_checkpoint(
    undisturbed, exploded, log_every
):
    run, said = exploded[log_every]
    error = said.strip().splitlines()[-1]
    assert "step 8: " in error and "nothing was updated" in error and re.search(r"rows \d+(, \d+)*$", error)
    assert "Traceback" not in said and not (run / "model").exists()
    # the last checkpoint is of a step before, whole, and the same whoever looked when
    path, kept = latest_checkpoint(run / "checkpoints")
    assert kept["step"] == 6 and path.name.endswith("6")
    other = weights(latest_checkpoint(exploded[6 - log_every][0] / "checkpoints")[0])
    assert all(value.isfinite().all() and torch.equal(value, other[name]) for name, value in weights(path).items())
    # every step before has its line, also those that nobody had looked at yet
    found = [line for line in lines_of(run) if line["split"] == "train"]
    assert found[:6] == [line for line in lines_of(undisturbed) if line["split"] == "train"][:6]
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6, 7]
