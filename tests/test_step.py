"""dpo/step.py: one step's gradient and metrics, against the plain path, whatever the micro-batch or the number of processes."""

import json
import os
from collections import Counter
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid

from data.pairs import Pair
from dpo.examples import Examples, in_memory
from dpo.losses import parse_loss
from dpo.order import micro_batches
from dpo.plain import compute_dpo_loss, compute_dpo_loss_batch, get_log_probs
from dpo.reference import reference_scores
from dpo.rows import Ids
from dpo.step import Plan, add_gradients, held_out_metrics
from gpt.model import GPT
from gpt.parallel import World, join, replicate

ALONE = World(0, 1, torch.device("cpu"))
SPECS = ["dpo(beta=0.3)", "dpo_norm(beta=2)", "dpo(beta=0.3) + 0.5*sft"]


def examples_of(ids: list[Ids]) -> Examples:
    return in_memory([Pair("", "", "", row) for row in range(1, len(ids) + 1)], ids)


def plan_of(spec: str, micro: int, world: World = ALONE) -> Plan:
    return Plan(parse_loss(spec), micro, nullcontext, world)


def step(policy: GPT, reference: GPT, ids: list[Ids], indices: list[int], plan: Plan) -> tuple[dict, dict]:
    """(gradients by name, metrics) of add_gradients, on this process of the plan's world."""
    said = reference_scores(reference, ids, list(range(len(ids))), plan.micro, nullcontext, plan.world)
    line = add_gradients(replicate(policy.train(), plan.world), examples_of(ids), said, indices, plan, zero=None)
    return {name: p.grad.clone() for name, p in policy.named_parameters()}, line


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


INDICES = [3, 8, 1, 6, 0, 5, 7]  # of ten pairs, so that some take no part


@pytest.mark.parametrize("spec", SPECS)
def test_loss_and_gradient_are_those_of_the_plain_path_for_any_micro_batch(make_gpt, random_ids, spec):
    # a model in double precision: all that rounds is the float32 of log p
    ids = random_ids(10, seed=1)
    policy, reference = make_gpt(1, double=True), make_gpt(2, double=True)
    loss = plain_loss(spec, policy, reference, [ids[i] for i in INDICES])
    loss.backward()
    expected = {name: p.grad for name, p in policy.named_parameters()}
    for micro in (1, 3, 7, 50):
        gradient, line = step(make_gpt(1, double=True), reference, ids, INDICES, plan_of(spec, micro))
        assert close(gradient, expected, 3e-6)
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_metrics_are_those_of_the_plain_path_and_only_padding_knows_the_micro_batch(make_gpt, random_ids, spec):
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
    by_length = sorted(pair.length for pair in picked)
    for micro in (1, 3, 7):
        places = sum(
            len(some) * max(some) for some in (by_length[start : start + micro] for start in range(0, 7, micro))
        )
        line = step(make_gpt(1), reference, ids, INDICES, plan_of(spec, micro))[1]
        assert line == pytest.approx(expected | {"padding": 1 - expected["tokens"] / places}, rel=1e-4, abs=1e-5)
        assert line.keys() == expected.keys() | {"padding"}


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
    line = add_gradients(model, examples_of(ids), torch.zeros(6, 2), list(range(6)), plan_of("sft", 2), None)
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
        said = reference_scores(make_gpt(1), ids, list(range(9)), 4, nullcontext, ALONE)
        model.zero_grad()
        line = add_gradients(model, examples_of(ids), said, list(range(9)), plan_of("dpo", micro), zero=0.01)
        assert line["loss"] == pytest.approx(0.6931472, abs=1e-5) and line["rewards/margins"] == pytest.approx(
            0, abs=1e-5
        )
        assert line["rewards/accuracies"] == 0.5  # nothing but ties
        assert max(float(p.grad.abs().max()) for p in model.parameters()) > 1e-3


def test_expecting_zero_refuses_a_reference_that_is_another_model(make_gpt, random_ids):
    ids = random_ids(6)
    said = reference_scores(make_gpt(2), ids, list(range(6)), 2, nullcontext, ALONE)
    assert (said - reference_scores(make_gpt(1), ids, list(range(6)), 2, nullcontext, ALONE)).abs().max() > 1
    for zero in (None, 0.01):
        model = make_gpt(1)
        if zero is not None:
            with pytest.raises(RuntimeError, match="before the first update"):
                add_gradients(model, examples_of(ids), said, [0, 1, 2], plan_of("dpo", 3), zero)
        else:
            add_gradients(model, examples_of(ids), said, [0, 1, 2], plan_of("dpo", 3), None)


# Held-out pairs


@pytest.mark.parametrize("micro", [1, 2, 50])
def test_held_out_metrics_count_every_pair_once_in_eval_mode_without_a_gradient(make_gpt, random_ids, micro):
    ids, reference = random_ids(7, seed=5), make_gpt(2)
    said = reference_scores(reference, ids, list(range(7)), 2, nullcontext, ALONE)
    expected = step(make_gpt(1), reference, ids, list(range(7)), plan_of("dpo + 0.5*sft", 7))[1]
    policy = make_gpt(1, dropout=0.5).train()
    line = held_out_metrics(policy, examples_of(ids), said, plan_of("dpo + 0.5*sft", micro))
    assert line["pairs"] == 7 and {k: v for k, v in line.items() if k != "padding"} == pytest.approx(
        {k: v for k, v in expected.items() if k != "padding"}, rel=1e-5, abs=1e-5
    )
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
    }
    torch.set_num_threads(1)
    with join("cpu") as world:
        lines = []
        for number, (spec, indices, micro) in enumerate(CASES):
            gradient, line = step(deepcopy(start), reference, ids, indices, plan_of(spec, micro, world))
            save_file(gradient, f"{folder}/{number}-{rank}.safetensors")
            lines.append(line)
        said = reference_scores(reference, ids, [0, 3, 6], 1, nullcontext, world)
        everything = reference_scores(reference, ids[:5], list(range(5)), 1, nullcontext, world)
        lines.append(held_out_metrics(start, examples_of(ids[:5]), everything, plan_of("dpo(beta=0.3)", 1, world)))
        save_file({"said": said}, f"{folder}/said-{rank}.safetensors")
        with open(f"{folder}/{rank}.json", "w") as file:
            json.dump(lines, file)


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
            load_file(folder / f"said-{rank}.safetensors")["said"],
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_hold_the_gradient_and_the_metrics_that_one_has(make_gpt, random_ids, two_processes, number):
    (spec, indices, micro), ids = CASES[number], random_ids(7, seed=6)
    gradient, line = step(make_gpt(1), make_gpt(2), ids, indices, plan_of(spec, len(indices)))
    shares = [micro_batches(indices, ids, micro, World(rank, 2, ALONE.device)) for rank in range(2)]
    places = sum(len(some) * max(ids[i].length for i in some) for share in shares for some in share if some)
    line["padding"] = 1 - sum(ids[i].length for i in indices) / places  # an empty micro-batch is no padding
    for gradients, lines, _ in two_processes:
        assert close(gradients[number], gradient, 1e-5)
        assert lines[number] == pytest.approx(line, rel=1e-5, abs=1e-6)
    assert all(
        torch.equal(value, two_processes[1][0][number][name]) for name, value in two_processes[0][0][number].items()
    )


def test_some_of_these_steps_leave_a_process_without_a_pair(random_ids):
    ids = random_ids(7, seed=6)
    empty = Counter(
        not some
        for _, indices, micro in CASES
        for some in micro_batches(indices, ids, micro, World(1, 2, ALONE.device))
    )
    assert empty[True] >= 2
    # evaluation takes two pairs a pass where training takes one
    assert micro_batches(list(range(5)), ids, 2, World(1, 2, ALONE.device))[-1] == []


def test_two_processes_know_the_same_reference_scores_and_held_out_metrics_as_one(make_gpt, random_ids, two_processes):
    ids, reference = random_ids(7, seed=6), make_gpt(2)
    said = reference_scores(reference, ids, [0, 3, 6], 5, nullcontext, ALONE)
    everything = reference_scores(reference, ids[:5], list(range(5)), 5, nullcontext, ALONE)
    line = held_out_metrics(make_gpt(1), examples_of(ids[:5]), everything, plan_of("dpo(beta=0.3)", 5))
    for _, lines, found in two_processes:
        assert torch.allclose(found, said, atol=1e-5) and (found[[1, 2, 4, 5]] == 0).all()
        assert {k: v for k, v in lines[-1].items() if k != "padding"} == pytest.approx(
            {k: v for k, v in line.items() if k != "padding"}, rel=1e-5, abs=1e-6
        )
