"""dpo/step.py: one step's gradient and metrics, against the plain path, whatever the micro-batch or the number of processes."""

import json
import os
from collections import Counter
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid

from data.pairs import Pair
from dpo.examples import Examples, in_memory
from dpo.forward import ANY, Way
from dpo.losses import parse_loss
from dpo.order import Limit, micro_batches, pairs_of_step
from dpo.plain import compute_dpo_loss, compute_dpo_loss_batch, get_log_probs
from dpo.reference import AT_ONCE, Reference, no_reference, reference_logps
from dpo.rows import Ids
from dpo.step import Plan, add_gradients, check_unmoved, held_out_metrics
from dpo.train import EXAMPLE
from gpt.joining import join
from gpt.model import GPT
from gpt.optim import adamw, learning_rate, update
from gpt.parallel import World, replicate
from gpt.weights import fingerprint

ALONE = World(0, 1, torch.device("cpu"))
SPECS = ["dpo(beta=0.3)", "dpo_norm(beta=2)", "dpo(beta=0.3) + 0.5*sft"]


def examples_of(ids: list[Ids]) -> Examples:
    return in_memory([Pair("", "", "", row) for row in range(1, len(ids) + 1)], ids)


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    """No test reads what another one computed."""
    monkeypatch.setenv("GPT_DPO_CACHE", str(tmp_path / "cache"))


def plan_of(spec: str, micro: int, world: World = ALONE, precision: str = "fp32", tokens: int = ANY) -> Plan:
    return Plan(parse_loss(spec), Way(Limit(micro, tokens), precision, world))


def said_by(reference: GPT, ids: list[Ids], wanted=None, plan: Plan | None = None) -> Reference:
    """What the reference says of the pairs `wanted`, by default of all."""
    way = (plan or plan_of("dpo", 4)).way
    wanted = range(len(ids)) if wanted is None else wanted
    return reference_logps(reference, examples_of(ids), wanted, way, fingerprint(reference))


def step(policy: GPT, reference: GPT, ids: list[Ids], indices: list[int], plan: Plan) -> tuple[dict, dict]:
    """(gradients by name, metrics) of add_gradients, on this process of the plan's world."""
    said = said_by(reference, ids, plan=plan)
    model = replicate(policy.train(), plan.way.world, *EXAMPLE)
    totals, _ = add_gradients(model, examples_of(ids), said, indices, plan)
    return {name: p.grad.clone() for name, p in policy.named_parameters()}, totals.averages(plan.loss)


# The plain path


def padded(ids: list[Ids], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, mask of the answer) of sequences of their own, as the book pads them."""
    whole = [pair.prompt + getattr(pair, side) for pair in ids]
    tokens = torch.zeros(len(ids), max(map(len, whole)), dtype=torch.long)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (pair, text) in enumerate(zip(ids, whole)):
        tokens[row, : len(text)] = torch.tensor(text)
        mask[row, len(pair.prompt) : len(text)] = True
    return tokens, mask


def summed(model, ids: list[Ids], side: str) -> torch.Tensor:
    tokens, mask = padded(ids, side)
    return get_log_probs(model(tokens), tokens.where(mask, -100))


def plain_loss(spec: str, policy: GPT, reference: GPT, ids: list[Ids]) -> torch.Tensor:
    """The loss of a spec with nothing but dpo/plain.py and four padded forward passes."""
    if spec == "dpo_norm(beta=2)":
        batch = {}
        for side in ("chosen", "rejected"):
            batch[side], batch[side + "_mask"] = padded(ids, side)
        return compute_dpo_loss_batch(batch, policy, reference, 2.0)[0]
    policy_said = [summed(policy, ids, side) for side in ("chosen", "rejected")]
    with torch.no_grad():
        reference_said = [summed(reference, ids, side) for side in ("chosen", "rejected")]
    loss = compute_dpo_loss(*policy_said, *reference_said, beta=0.3)[0]
    tokens = sum(len(pair.chosen) for pair in ids)
    return loss - 0.5 * policy_said[0].sum() / tokens if "sft" in spec else loss


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> bool:
    """Equal to `tolerance` of the largest entry of all."""
    scale = max(float(value.abs().max()) for value in expected.values())
    assert found.keys() == expected.keys() and scale > 1e-4
    return all(float((found[name] - expected[name]).abs().max()) <= tolerance * scale for name in expected)


def test_the_lengths_that_a_step_is_cut_by_are_those_of_the_rows(random_ids):
    ids = [*random_ids(10), Ids([1, 2], [3, 0], [])]
    assert examples_of(ids).row_lengths.tolist() == [pair.length for pair in ids]


INDICES = [3, 8, 1, 6, 0, 5, 7]  # of ten pairs, so that some take no part


@pytest.mark.parametrize("spec", SPECS)
def test_loss_and_gradient_are_those_of_the_plain_path_for_any_micro_batch(make_gpt, random_ids, spec):
    # a model in double precision: all that rounds is the float32 of log p
    ids = random_ids(10, seed=1)
    policy, reference = make_gpt(1, double=True), make_gpt(2, double=True)
    loss = plain_loss(spec, policy, reference, [ids[i] for i in INDICES])
    loss.backward()
    expected = {name: p.grad for name, p in policy.named_parameters()}
    for micro, tokens in ((1, ANY), (3, ANY), (7, ANY), (50, ANY), (50, 25), (50, 1)):
        gradient, line = step(make_gpt(1, double=True), reference, ids, INDICES, plan_of(spec, micro, tokens=tokens))
        assert close(gradient, expected, 3e-6)
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_metrics_are_those_of_the_plain_path_for_any_micro_batch(make_gpt, random_ids, spec):
    ids = random_ids(10, seed=1)
    policy, reference = make_gpt(1), make_gpt(2)
    picked = [ids[i] for i in INDICES]
    with torch.no_grad():
        (c, r), (C, R) = (
            [summed(model, picked, side) for side in ("chosen", "rejected")] for model in (policy, reference)
        )
    beta = parse_loss(spec).beta
    margins = ((c - C) - (r - R)).tolist()
    expected = {
        "loss": plain_loss(spec, policy, reference, picked).item(),
        "rewards/chosen": beta * (c - C).mean().item(),
        "rewards/rejected": beta * (r - R).mean().item(),
        "rewards/margins": beta * sum(margins) / 7,
        "rewards/accuracies": sum(margin > 0 for margin in margins) / 7,
        "logps/chosen": c.mean().item(),
        "logps/rejected": r.mean().item(),
        "length/chosen": sum(len(p.chosen) for p in picked) / 7,
        "length/rejected": sum(len(p.rejected) for p in picked) / 7,
        "pairs": 7,
        "tokens": sum(len(p.prompt) - 1 + len(p.chosen) + len(p.rejected) for p in picked),
    }
    if "sft" in spec:
        expected |= {
            "loss/dpo": -logsigmoid(beta * torch.tensor(margins)).mean().item(),
            "loss/sft": -c.sum().item() / sum(len(p.chosen) for p in picked),
        }
    expected["padding"] = 0  # rows stand one behind the other
    for micro in (1, 3, 7):
        line = step(make_gpt(1), reference, ids, INDICES, plan_of(spec, micro))[1]
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert line.keys() == expected.keys()


def test_prompts_that_begin_alike_are_read_once_and_the_gradient_is_still_that_of_the_plain_path(make_gpt, random_ids):
    ids = [pair._replace(prompt=[5, 3, 9, 1, 1, *pair.prompt]) for pair in random_ids(10, seed=1)]
    policy, reference = make_gpt(1, double=True), make_gpt(2, double=True)
    plain_loss("dpo(beta=0.3)", policy, reference, [ids[i] for i in INDICES]).backward()
    for micro in (2, 7):
        gradient, line = step(make_gpt(1, double=True), reference, ids, INDICES, plan_of("dpo(beta=0.3)", micro))
        assert close(gradient, {name: p.grad for name, p in policy.named_parameters()}, 3e-6)
        assert line["tokens"] == sum(ids[i].length for i in INDICES)  # of each row by itself


def test_the_step_is_independent_of_the_order_of_its_pairs(make_gpt, random_ids):
    ids = random_ids(10, seed=1)
    reference = make_gpt(2)
    there, back = (
        step(make_gpt(1), reference, ids, indices, plan_of("dpo", 3))[0] for indices in (INDICES, INDICES[::-1])
    )
    assert close(there, back, 1e-5)


def test_gradients_are_added_to_what_the_parameters_hold(make_gpt, random_ids):
    ids, policy, reference = random_ids(6, seed=3), make_gpt(1), make_gpt(2)
    once = step(policy, reference, ids, [0, 1, 2], plan_of("dpo", 2))[0]
    twice = step(policy, reference, ids, [0, 1, 2], plan_of("dpo", 2))[0]
    assert close(twice, {name: 2 * value for name, value in once.items()}, 1e-6)


def test_sft_is_the_mean_over_answer_tokens_and_asks_for_one_branch_alone(make_gpt, random_ids):
    ids = [pair._replace(rejected=[]) for pair in random_ids(6, seed=3)]
    policy = make_gpt(1, double=True)
    loss = -summed(policy, ids, "chosen").sum() / sum(len(pair.chosen) for pair in ids)
    loss.backward()
    model = make_gpt(1, double=True)
    plan = plan_of("sft", 2)
    totals, _ = add_gradients(model, examples_of(ids), no_reference(examples_of(ids)), list(range(6)), plan)
    line = totals.averages(plan.loss)
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5) and "rewards/margins" not in line
    assert close(
        {n: p.grad for n, p in model.named_parameters()}, {n: p.grad for n, p in policy.named_parameters()}, 3e-6
    )


# Before the first update


def test_where_the_reference_is_the_policy_the_loss_is_ln_2_every_margin_0_and_the_gradient_is_not(
    make_gpt, random_ids
):
    ids, model = random_ids(9, seed=4), make_gpt(1)
    for micro in (1, 2, 9):  # the reference is asked in other batches than the policy
        said, plan = said_by(make_gpt(1), ids), plan_of("dpo", micro)
        model.zero_grad()
        totals, largest = add_gradients(model, examples_of(ids), said, list(range(9)), plan)
        line = totals.averages(plan.loss)
        assert line["loss"] == pytest.approx(0.6931472, abs=1e-5) and line["rewards/margins"] == pytest.approx(
            0, abs=1e-5
        )
        assert line["rewards/accuracies"] == 0.5  # nothing but ties
        assert max(float(p.grad.abs().max()) for p in model.parameters()) > 1e-3
        assert float(largest) < 1e-3
        check_unmoved(float(largest), "fp32")


def test_in_bfloat16_too_the_loss_is_ln_2_before_the_first_update(make_gpt, random_ids):
    ids = random_ids(9, seed=4)
    for micro in (1, 2, 9):
        plan = plan_of("dpo", micro, precision="bf16")
        said = said_by(make_gpt(1), ids, plan=plan)
        totals, largest = add_gradients(make_gpt(1), examples_of(ids), said, list(range(9)), plan)
        assert totals.averages(plan.loss)["loss"] == pytest.approx(0.6931472, abs=1e-3)
        check_unmoved(float(largest), "bf16")
    in_float32 = said_by(make_gpt(1), ids)
    assert not torch.equal(said.logps, in_float32.logps)  # which is another file


def test_where_the_reference_is_another_model_the_largest_log_ratio_is_told_and_refused(make_gpt, random_ids):
    ids = random_ids(6)
    said = said_by(make_gpt(2), ids)
    policy, plan = make_gpt(1), plan_of("dpo", 2)
    with torch.no_grad():
        (c, r), (C, R) = (
            [summed(model, ids[:5], side) for side in ("chosen", "rejected")] for model in (policy, make_gpt(2))
        )
    _, largest = add_gradients(policy, examples_of(ids), said, [0, 1, 2, 3, 4], plan)
    assert float(largest) == pytest.approx(float(((c - C) - (r - R)).abs().max()), rel=1e-4)
    for numbers in ("fp32", "bf16"):
        with pytest.raises(RuntimeError, match="before the first update"):
            check_unmoved(float(largest), numbers)
    with pytest.raises(RuntimeError, match="nan"):
        check_unmoved(float("nan"), "fp32")


# Held-out pairs


@pytest.mark.parametrize("micro", [1, 2, 50])
def test_held_out_metrics_count_every_pair_once_in_eval_mode_without_a_gradient(make_gpt, random_ids, micro):
    ids, reference = random_ids(7, seed=5), make_gpt(2)
    said = said_by(reference, ids)
    expected = step(make_gpt(1), reference, ids, list(range(7)), plan_of("dpo + 0.5*sft", 7))[1]
    policy = make_gpt(1, dropout=0.5).train()
    line = held_out_metrics(policy, examples_of(ids), said, plan_of("dpo + 0.5*sft", micro))
    assert line["pairs"] == 7 and line == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert not policy.training and all(p.grad is None for p in policy.parameters())


# Two processes

# (spec, pairs of the step, micro): 5 pairs by ones give the second process an empty micro-batch, 1 pair gives it nothing else
CASES = [
    ("dpo(beta=0.3)", [4, 2, 0, 1, 3], 1),
    ("dpo(beta=0.3) + 0.5*sft", [4, 2, 0, 1, 3, 6], 2),
    ("dpo_norm(beta=2)", [5, 2, 1], 1),
    ("dpo(beta=0.3)", [4], 3),
]


def one_of_two(rank: int, port: int, folder: str, start: GPT, reference: GPT, ids: list[Ids]) -> None:
    """What each of the two processes does: every case on its share, gradients and metrics to files."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GPT_DPO_CACHE": f"{folder}/cache",  # nothing is known that these two did not compute
    }
    torch.set_num_threads(1)
    AT_ONCE["cpu"] = Limit(1, ANY)  # so that the reference too is asked unevenly often
    with join("cpu") as world:
        lines = []
        for number, (spec, indices, micro) in enumerate(CASES):
            gradient, line = step(deepcopy(start), reference, ids, indices, plan_of(spec, micro, world))
            save_file(gradient, f"{folder}/{number}-{rank}.safetensors")
            lines.append(line)
        plan = plan_of("dpo(beta=0.3)", 1, world)
        others = make_other(ids)  # which no case above has asked for
        said = [said_by(reference, others, wanted, plan) for wanted in ([0, 3, 6], [6, 0], [1, 6], [])]
        everything = said_by(reference, ids[:5], plan=plan)
        lines.append(held_out_metrics(start, examples_of(ids[:5]), everything, plan))
        nothing = said_by(reference, [], plan=plan)  # no pair is held out
        lines.append([one.computed for one in (*said, everything, nothing)])
        save_file({str(i): one.logps for i, one in enumerate(said)}, f"{folder}/said-{rank}.safetensors")
        with open(f"{folder}/{rank}.json", "w") as file:
            json.dump(lines, file)


def make_other(ids: list[Ids]) -> list[Ids]:
    return [pair._replace(prompt=[1, *pair.prompt]) for pair in ids]


@pytest.fixture(scope="module")
def two_processes(make_gpt, random_ids, tmp_path_factory):
    """(gradients, metrics, reference scores) of each of two real processes over gloo, case by case."""
    folder = tmp_path_factory.mktemp("two")
    # a store as torchrun's agent keeps one: its port is surely free
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (store.port, str(folder), make_gpt(1), make_gpt(2), random_ids(7, seed=6))
    mp.start_processes(one_of_two, arguments, nprocs=2, start_method="spawn")
    return [
        (
            [load_file(folder / f"{number}-{rank}.safetensors") for number in range(len(CASES))],
            json.loads((folder / f"{rank}.json").read_text()),
            load_file(folder / f"said-{rank}.safetensors"),
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_hold_the_gradient_and_the_metrics_that_one_has(make_gpt, random_ids, two_processes, number):
    (spec, indices, _), ids = CASES[number], random_ids(7, seed=6)
    gradient, line = step(make_gpt(1), make_gpt(2), ids, indices, plan_of(spec, len(indices)))
    for gradients, lines, _ in two_processes:
        assert close(gradients[number], gradient, 1e-5)
        assert lines[number] == pytest.approx(line, rel=1e-5, abs=3e-5)  # rewards are differences of sums near -100
    assert all(
        torch.equal(value, two_processes[1][0][number][name]) for name, value in two_processes[0][0][number].items()
    )


def test_some_of_these_steps_leave_a_process_without_a_pair(random_ids):
    ids = random_ids(7, seed=6)
    empty = Counter(
        not some
        for _, indices, micro in CASES
        for some in micro_batches(indices, examples_of(ids), Limit(micro, ANY), World(1, 2, ALONE.device))
    )
    assert empty[True] >= 2
    # so do the reference and the evaluation
    assert micro_batches(list(range(5)), examples_of(ids), Limit(1, ANY), World(1, 2, ALONE.device))[-1] == []


def test_two_processes_know_the_same_reference_and_held_out_metrics_as_one(make_gpt, random_ids, two_processes):
    ids, reference = random_ids(7, seed=6), make_gpt(2)
    expected = said_by(reference, make_other(ids), [0, 1, 3, 6])
    line = held_out_metrics(make_gpt(1), examples_of(ids[:5]), said_by(reference, ids[:5]), plan_of("dpo(beta=0.3)", 5))
    for _, lines, found in two_processes:
        *_, metrics, computed = lines
        assert metrics == pytest.approx(line, rel=1e-5, abs=1e-6)
        assert computed == [3, 0, 1, 0, 5, 0]  # what was known was read, on both
        for number, known in enumerate(([0, 3, 6], [0, 3, 6], [0, 1, 3, 6], [0, 1, 3, 6])):
            logps = found[str(number)]
            for i in range(7):
                of = slice(expected.starts[i], expected.starts[i + 1])
                if i in known:
                    assert torch.allclose(logps[of], expected.logps[of], atol=1e-5)
                else:
                    assert logps[of].isnan().all()
        assert torch.equal(found["2"].view(torch.int32), found["3"].view(torch.int32))  # a NaN is the same as itself
    bits = [[found[str(number)].view(torch.int32) for number in range(4)] for _, _, found in two_processes]
    assert all(torch.equal(a, b) for a, b in zip(*bits))


# Many steps


def trained_plainly(policy: GPT, reference: GPT, ids: list[Ids], steps: int, precision: str) -> list[float]:
    """Losses of a loop with nothing of ours but dpo/plain.py, the order of pairs and the rate: four padded passes a step."""
    groups = [{"params": [p for p in policy.parameters() if p.dim() >= 2], "weight_decay": 0.1}]
    groups += [{"params": [p for p in policy.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), fused=False, foreach=False)
    losses = []
    for number in range(1, steps + 1):
        some = [ids[i] for i in pairs_of_step(number, len(ids), 8, 0)]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = plain_loss("dpo(beta=0.3)", policy, reference, some)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, steps, 1e-3, 0.1)
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(policy: GPT, reference: GPT, ids: list[Ids], steps: int, plan: Plan) -> list[float]:
    """Losses of as many steps as dpo/train.py does them."""
    said, optimizer, losses = said_by(reference, ids, plan=plan), adamw(policy, 0.1), []
    for number in range(1, steps + 1):
        indices = pairs_of_step(number, len(ids), 8, 0)
        totals, _ = add_gradients(policy.train(), examples_of(ids), said, indices, plan)
        update(optimizer, learning_rate(number, steps, 1e-3, 0.1), 1.0, totals.sound)
        losses.append(totals.averages(plan.loss)["loss"])
    return losses


@pytest.mark.parametrize("micro, tokens", [(8, ANY), (3, ANY), (8, 40)])
def test_the_losses_of_20_steps_are_those_of_a_plain_loop(make_gpt, random_ids, micro, tokens):
    ids = random_ids(20, seed=3)
    expected = trained_plainly(make_gpt(1), make_gpt(1), ids, 20, "fp32")
    found = trained(make_gpt(1), make_gpt(1), ids, 20, plan_of("dpo(beta=0.3)", micro, tokens=tokens))
    assert expected[0] == pytest.approx(0.6931472, abs=1e-5) and expected[-1] < 0.3
    assert found == pytest.approx(expected, rel=1e-5)


def test_in_bfloat16_20_steps_stay_as_near_to_float32_as_a_plain_loop_in_bfloat16(make_gpt, random_ids):
    ids = random_ids(20, seed=3)
    exact = trained_plainly(make_gpt(1), make_gpt(1), ids, 20, "fp32")
    plain = trained_plainly(make_gpt(1), make_gpt(1), ids, 20, "bf16")
    found = trained(make_gpt(1), make_gpt(1), ids, 20, plan_of("dpo(beta=0.3)", 3, precision="bf16"))
    noise = max(abs(a - b) for a, b in zip(plain, exact))
    assert max(abs(a - b) for a, b in zip(found, exact)) < max(2 * noise, 0.02) < 0.2
