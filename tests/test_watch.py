"""dpo/watch.py and dpo/suspects.py: numbers of several steps read together; the pairs that are not finite, by their rows."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.pairs import Pair, write_rows
from dpo.examples import Examples, in_memory
from dpo.forward import ANY, Way
from dpo.losses import parse_loss
from dpo.metrics import Totals
from dpo.order import Limit, pairs_of_step
from dpo.reference import Reference, no_reference, reference_logps
from dpo.rows import Ids
from dpo.step import Plan, add_gradients
from dpo.suspects import not_finite
from dpo.watch import Done, Watch, rows_listed
from gpt.checkpoint import latest_checkpoint
from gpt.command import UserError
from gpt.model import GPT, GPTConfig
from gpt.parallel import World
from gpt.tokenizer import Tokenizer
from gpt.weights import fingerprint, save_gpt
from tests.processes import ROOT, call

ALONE = World(0, 1, torch.device("cpu"))


def examples() -> Examples:
    """Ten pairs from the rows 11, 12, ... of a file."""
    return in_memory([Pair("", "", "", 11 + i) for i in range(10)], [Ids([1], [2], [3])] * 10)


def plan_of(spec: str, micro: int = 4) -> Plan:
    return Plan(parse_loss(spec), Way(Limit(micro, ANY), "fp32", ALONE))


@pytest.fixture
def watch(make_gpt) -> Watch:
    """Over the ten pairs, with a toy model that is its own reference."""
    return Watch(make_gpt(vocab_size=8), examples(), no_reference(examples()), plan_of("dpo"), "some.jsonl")


def done(number: int, indices: list[int], loss: float = 0.5, norm: float = 2.0) -> Done:
    sums = {"loss/dpo": loss * len(indices), "pairs": len(indices), "tokens": 7, "answer_tokens": 3, "places": 8}
    sums |= {"empty": 1, "logps/chosen": -4.0 * len(indices)}
    totals = Totals(list(sums), torch.tensor([float(value) for value in sums.values()]))
    return Done(number, indices, totals, torch.tensor(norm), 1e-3 * number)


def test_each_waiting_step_has_a_line_and_is_read_once(watch):
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


def test_time_before_a_restart_does_not_count(watch):
    time.sleep(0.2)
    watch.restart()
    watch.waiting.append(done(1, [0] * 10))
    assert list(watch.lines())[0]["pairs_per_second"] > 10 / 0.15


@pytest.mark.parametrize(
    "fault", [dict(loss=float("nan")), dict(loss=float("inf")), dict(norm=float("nan")), dict(norm=float("inf"))]
)
def test_what_is_not_finite_is_an_error_that_names_the_first_such_step_and_its_rows(fault, watch):
    watch.waiting += [done(6, [0]), done(7, [9, 4], **fault), done(8, [5], **fault)]
    with pytest.raises(
        UserError, match=r"step 7: .*nothing was updated.*alone is finite: some.jsonl, rows 20, 15$"
    ) as caught:
        list(watch.lines())
    assert str(next(iter(fault.values()))) in str(caught.value) and "\n" not in str(caught.value)


# Which pairs it was


def spoilt(model: GPT, token: int) -> GPT:
    """The model with a NaN where it looks up one token; the head, which has weights of its own, is sound."""
    with torch.no_grad():
        model.transformer["wte"].weight[token, 0] = float("nan")
    return model


RARE = 39  # a token that two pairs have, one in the prompt and one in an answer


@pytest.fixture
def some(random_ids) -> Examples:
    """Twelve pairs, in the rows 1 to 12; RARE stands in those of rows 5 and 8."""
    ids = random_ids(12, vocabulary=RARE)
    ids[4] = Ids([3, RARE, 2], [5, 1, 0], [7, 0])
    ids[7] = Ids([3, 2], [5, 1, 0], [RARE, 9, 0])
    return in_memory([Pair("", "", "", row) for row in range(1, 13)], ids)


@pytest.mark.parametrize("spec", ["simpo", "sft", "cpo + 0.1*sft", "dpo", "kto", "aot", "dpo(wpo=true, ld_alpha=0.5)"])
def test_a_pair_that_is_not_finite_is_found_among_those_it_has_spoilt(spec, some, make_gpt):
    head = dict(tie_word_embeddings=False)
    plan = plan_of(spec)
    if plan.loss.needs_reference:
        reference = reference_logps(make_gpt(2, **head), some, range(12), plan.way, fingerprint(make_gpt(2, **head)))
    else:
        reference = no_reference(some)
    policy = spoilt(make_gpt(**head), RARE)
    step = [11, 4, 0, 7, 3, 2, 9, 1]
    totals, _ = add_gradients(policy, some, reference, step, plan)
    assert not totals.sound  # in micro-batches of four, whose pairs share a row: all are NaN there
    assert not_finite(policy, some, reference, [11, 0], plan) == []
    assert not_finite(policy, some, reference, step, plan) == [4, 7]
    watch = Watch(policy, some, reference, plan, "some.jsonl")
    watch.waiting.append(Done(3, step, totals, torch.tensor(float("nan")), 1e-3))
    rows = "comes from 2 of the step's 8 pairs: some.jsonl, rows 5, 8; look there"
    with pytest.raises(UserError, match=f"^step 3: the loss is nan.*nothing was updated.*{rows}$"):
        list(watch.lines())


@pytest.mark.parametrize("spec", ["aot(beta=1e38)", "dpo(beta=1e38)", "ipo(beta=1e-30)"])
def test_a_loss_that_overflows_though_all_that_is_said_is_finite_is_found_too(spec, some, make_gpt):
    plan, model, other = plan_of(spec), make_gpt(), make_gpt(1)
    said = reference_logps(other, some, range(12), plan.way, fingerprint(other))
    totals, _ = add_gradients(model, some, said, list(range(12)), plan)
    assert not totals.sound
    found = not_finite(model, some, said, list(range(12)), plan)
    assert found == list(range(12)) if spec.startswith("ipo") else 0 < len(found) < 12
    assert not_finite(model, some, said, [i for i in range(12) if i not in found] or [0], plan_of("dpo")) == []


def test_the_rows_of_a_reference_that_is_not_finite_are_found(some, make_gpt):
    plan, model = plan_of("dpo"), make_gpt()
    said = reference_logps(model, some, range(12), plan.way, fingerprint(model))
    logps = said.logps.clone()
    logps[said.starts[6]] = float("inf")
    assert not_finite(model, some, Reference(logps, said.starts), [2, 6, 4], plan) == [6]


def test_of_many_rows_ten_are_listed_and_the_others_counted():
    assert rows_listed([7]) == "row 7" and rows_listed([7, 3]) == "rows 7, 3"
    assert rows_listed(list(range(1, 11))) == "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    assert rows_listed(list(range(33))).endswith(" 8, 9 and 23 more")


# The whole command


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
    toy, undisturbed, exploded, log_every
):
    run, said = exploded[log_every]
    error = said.strip().splitlines()[-1]
    assert "step 8: " in error and "nothing was updated" in error
    assert re.search(rf"{toy / 'pairs.jsonl'}, rows? \d+(, \d+)*$", error)
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


# Two processes, of which one alone meets the pair


def with_a_rare_token(folder: Path, tokenizer, rows: list[dict], row: int) -> list[str]:
    """A model that is sound but for one token, which the answer in `row` has; a loss that asks no reference."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False
    )
    (rare,) = tokenizer.encode("~")
    save_gpt(folder / "spoilt", spoilt(GPT(config), rare), tokenizer)
    rows[row - 1]["chosen"] += " ~"
    return ["--init", folder / "spoilt", "--loss", "simpo"]


def with_a_large_margin(folder: Path, tokenizer, rows: list[dict], row: int) -> list[str]:
    """A sound model, and a margin that divided by beta is more than float32 holds."""
    for number, one in enumerate(rows, 1):
        one["margin"] = 999_999.0 if number == row else 1.0
    return ["--init", folder / "model", "--loss", "dpo(margin=true, beta=1e-35)"]


def with_a_large_margin_in_a_coupled_sum(folder: Path, tokenizer, rows: list[dict], row: int) -> list[str]:
    """The same beside a loss that sees the whole step at once."""
    flags = with_a_large_margin(folder, tokenizer, rows, row)
    return [*flags[:-1], "dpo(margin=true, beta=1e-35) + kto"]


SLOW = [pytest.param(one, marks=pytest.mark.slow) for one in (with_a_rare_token, with_a_large_margin_in_a_coupled_sum)]


@pytest.mark.parametrize("spoil", [with_a_large_margin, *SLOW])
def test_one_pair_on_one_of_two_processes_ends_both_is_named_and_leaves_the_last_checkpoint(toy, tmp_path, spoil):
    good = [json.loads(line) for line in (toy / "pairs.jsonl").read_text().splitlines()]
    rows = [dict(row) for row in good]
    bad = pairs_of_step(3, len(rows), 8, seed=0)[2] + 1
    tokenizer = Tokenizer.load(toy / "model")
    words = spoil(tmp_path, tokenizer, rows, bad)
    words = [toy / "model" if word == tmp_path / "model" else word for word in words]
    flags = ["--lr", 1e-3, "--batch", 8, "--held-out", 0, "--eval-every", 0, "--save-every", 2, "--keep", 9]
    write_rows(tmp_path / "bad.jsonl", rows)
    out = tmp_path / "run"
    said = call(
        "dpo/train.py",
        *words,
        *flags,
        "--pairs",
        tmp_path / "bad.jsonl",
        "--out",
        out,
        processes=2,
        code=None,
        cwd=ROOT,
    )
    assert said.returncode
    place = rf"It comes from 1 of the step's 8 pairs: {tmp_path / 'bad.jsonl'}, row {bad}; look there"
    lines = re.findall(rf"error: step 3: the loss is .*nothing was updated\. {place}", said.stderr)
    assert len(lines) == 1 and not re.search("error: (?!step 3)", said.stderr), said.stderr
    path, kept = latest_checkpoint(out / "checkpoints")
    assert kept["step"] == 2 and not (out / "model").exists()
    # bit by bit what two steps give where no pair is bad
    for one, sound in zip(rows, good):
        one["chosen"] = sound["chosen"]
        if "margin" in one:
            one["margin"] = 1.0
    write_rows(tmp_path / "good.jsonl", rows)
    other = tmp_path / "other"
    call("dpo/train.py", *words, *flags, "--pairs", tmp_path / "good.jsonl", "--out", other, processes=2, cwd=ROOT)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (path / name).read_bytes() == (other / "checkpoints" / path.name / name).read_bytes()
