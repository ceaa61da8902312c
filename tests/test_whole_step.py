"""dpo/step.py and dpo/whole_step.py with every loss: one gradient, whatever the micro-batch and the number of processes.

The other way here is one autograd graph: each text by itself, all pairs of the step, one loss, one backward pass.
"""

import json
import os
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from data.pairs import Pair
from dpo.examples import Examples, in_memory
from dpo.losses import LOSSES, Scores, parse_loss
from dpo.losses.family import COUPLED
from dpo.order import micro_batches
from dpo.reference import no_reference
from dpo.rows import Ids
from dpo.step import Plan, add_gradients, held_out_metrics, scores_of
from dpo.train import EXAMPLE
from gpt.joining import join
from gpt.model import GPT
from gpt.parallel import World, replicate
from tests.by_hand import KEYWORDS
from tests.test_step import ALONE, close, nothing_kept, plan_of, said_by  # noqa: F401


def written(name: str) -> str:
    """A loss with keywords that are not its defaults."""
    keywords = ", ".join(f"{key}={value}" for key, value in KEYWORDS[name].items())
    return f"{name}({keywords})" if keywords else name


MODIFIED = [
    "dpo(beta=0.3, divergence=js)",
    "dpo(beta=0.3, divergence=alpha, alpha=0.3, ld_alpha=0.5, margin=true, wpo=true)",
    "hinge(beta=0.3, margin=true) + 0.5*simpo(wpo=true)",
    "aot(beta=0.3, ld_alpha=0.5)",
    "kto(ld_alpha=0.2) + 0.5*sft",
    "aot_unpaired(beta=0.3) + dpo(beta=0.2, wpo=true) + 0.3*hinge(margin=true)",
]
SPECS = [*map(written, LOSSES), *MODIFIED]
INDICES = [3, 8, 1, 6, 0, 5, 7]  # of ten pairs, so that some take no part
MARGINS = [0.0, 0.5, -0.5, 1.0, 2.0, 0.1, 3.0, 0.3, 0.7, 1.5]


def examples_of(ids: list[Ids]) -> Examples:
    return in_memory([Pair("", "", "", row, margin=MARGINS[row - 1]) for row in range(1, len(ids) + 1)], ids)


def close_together(ids: list[Ids]) -> list[Ids]:
    """Answers of similar lengths, so that what sorting brings together is not always a pair."""
    return [
        pair._replace(chosen=pair.chosen[:2] + [0] * (i % 2), rejected=pair.rejected[:3]) for i, pair in enumerate(ids)
    ]


def step(policy: GPT, reference: GPT, ids: list[Ids], indices: list[int], plan: Plan) -> tuple[dict, dict]:
    """(gradients by name, metrics) of add_gradients, on this process of the plan's world."""
    examples = examples_of(ids)
    said = said_by(reference, ids, plan=plan) if plan.loss.needs_reference else no_reference(examples)
    policy.zero_grad()
    totals, _ = add_gradients(replicate(policy.train(), plan.way.world, *EXAMPLE), examples, said, indices, plan)
    return {name: p.grad.clone() for name, p in policy.named_parameters()}, totals.averages(plan.loss)


# One graph


def tokens_of(model: GPT, pair: Ids, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p, log sum p^2) of each token of an answer."""
    answer, whole = getattr(pair, side), pair.prompt + getattr(pair, side)
    logp = torch.log_softmax(model(torch.tensor([whole]))[0, len(pair.prompt) - 1 : -1].double(), dim=-1)
    return logp.gather(-1, torch.tensor(answer)[:, None])[:, 0], (2 * logp).logsumexp(-1)


def scores_by_hand(policy: GPT, reference: GPT, ids: list[Ids], margins: list[float]) -> Scores:
    columns = []
    for pair, margin in zip(ids, margins):
        n, m = len(pair.chosen), len(pair.rejected)
        (c, c2), (r, r2) = (tokens_of(policy, pair, side) for side in ("chosen", "rejected"))
        with torch.no_grad():
            (C, _), (R, _) = (tokens_of(reference, pair, side) for side in ("chosen", "rejected"))
        weight = ((c - c2).mean() + (r - r2).mean()).exp().clamp(max=1).detach()
        parts = (c, r, C, R)
        heads = [part[: min(n, m)].sum() for part in parts]
        numbers = [torch.tensor(float(number)) for number in (n, m, margin)]
        columns.append([*(part.sum() for part in parts), *heads, weight, *numbers])
    c, r, C, R, *heads, weight, n, m, margin = (torch.stack(column) for column in zip(*columns))
    return Scores(c, r, C, R, n, m, torch.stack(heads), weight, margin)


def in_one_graph(spec: str, policy: GPT, reference: GPT, ids: list[Ids], indices: list[int]) -> tuple[dict, float]:
    """(gradients by name, loss)"""
    picked = [ids[i] for i in indices]
    s, loss = scores_by_hand(policy, reference, picked, [MARGINS[i] for i in indices]), parse_loss(spec)
    total = loss.total({name: one.sum() for name, one in loss(s).items()}, len(picked), float(s.chosen_len.sum()))
    policy.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters()}, total.item()


@pytest.mark.parametrize("spec", SPECS)
def test_loss_and_gradient_are_those_of_one_graph_for_any_micro_batch(make_gpt, random_ids, spec):
    # a model in double precision: all that rounds is the float32 of log p
    ids = random_ids(10, seed=1)
    if parse_loss(spec).coupled:
        ids = close_together(ids)
    policy, reference = make_gpt(1, double=True), make_gpt(2, double=True)
    expected, loss = in_one_graph(spec, policy, reference, ids, INDICES)
    for micro in (1, 3, 50):
        gradient, line = step(policy, reference, ids, INDICES, plan_of(spec, micro))
        assert line["loss"] == pytest.approx(loss, rel=2e-5)
        assert close(gradient, expected, 1e-5)


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_a_coupled_loss_of_micro_batches_by_themselves_would_be_another(make_gpt, random_ids, name):
    # so that the test above can fail
    ids, policy, reference = close_together(random_ids(10, seed=1)), make_gpt(1), make_gpt(2)
    whole, _ = in_one_graph(written(name), policy, reference, ids, INDICES)
    parts = [in_one_graph(written(name), policy, reference, ids, INDICES[i : i + 1])[0] for i in range(7)]
    apart = {key: sum(part[key] for part in parts) / 7 for key in whole}
    assert not close(apart, whole, 0.05)


# Dropout


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_with_dropout_the_second_pass_draws_the_noise_of_the_first(make_gpt, random_ids, name):
    ids, reference = close_together(random_ids(10, seed=1)), make_gpt(2)
    policy, plan = make_gpt(1, dropout=0.3).train(), plan_of(written(name), 3)
    examples, said = examples_of(ids), said_by(reference, ids, plan=plan)

    def kept(seed: int) -> tuple[dict, float]:
        """Every micro-batch once, all graphs kept until the loss is known."""
        policy.zero_grad()
        torch.manual_seed(seed)
        some = micro_batches(INDICES, examples, plan.way.limit, ALONE)
        parts = [scores_of(policy, examples, said, one, plan)[0] for one in some]
        s = Scores(*(torch.cat([getattr(part, field) for part in parts]) for field in Scores._fields[:6]))
        loss = plan.loss(s)[name].mean()
        loss.backward()
        return {key: p.grad.clone() for key, p in policy.named_parameters()}, loss.item()

    expected, loss = kept(seed=5)
    policy.zero_grad()
    torch.manual_seed(5)
    totals, _ = add_gradients(policy, examples, said, INDICES, plan)
    assert totals.averages(plan.loss)["loss"] == pytest.approx(loss, rel=1e-5)
    assert close({key: p.grad for key, p in policy.named_parameters()}, expected, 1e-5)
    assert not close(kept(seed=6)[0], expected, 0.05)  # noise matters


# Held-out pairs


@pytest.mark.parametrize("spec", [spec for spec in SPECS if parse_loss(spec).coupled])
def test_a_coupled_loss_sees_all_held_out_pairs_at_once(make_gpt, random_ids, spec):
    ids, policy, reference = close_together(random_ids(7, seed=1)), make_gpt(1), make_gpt(2)
    _, expected = in_one_graph(spec, policy, reference, ids, range(7))
    for micro in (1, 2, 50):
        line = held_out_metrics(policy, examples_of(ids), said_by(reference, ids), plan_of(spec, micro))
        assert line["loss"] == pytest.approx(expected, rel=2e-5) and line["pairs"] == 7


# Two processes

# (spec, pairs of the step, micro): 5 pairs by ones leave the second process an empty micro-batch, 1 pair leaves it nothing
CASES = [
    *((spec, [4, 2, 0, 1, 3], 2) for spec in SPECS),
    *((spec, [4, 2, 0, 1, 3], 1) for spec in SPECS if parse_loss(spec).coupled),
    *((spec, [4], 3) for spec in SPECS if parse_loss(spec).coupled or spec in MODIFIED),
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
        "GPT_DPO_CACHE": f"{folder}/cache",
    }
    torch.set_num_threads(1)
    with join("cpu") as world:
        lines = []
        for number, (spec, indices, micro) in enumerate(CASES):
            gradient, line = step(deepcopy(start), reference, ids, indices, plan_of(spec, micro, world))
            save_file(gradient, f"{folder}/{number}-{rank}.safetensors")
            lines.append(line)
        for spec in sorted(COUPLED):
            plan = plan_of(spec, 2, world)
            lines.append(held_out_metrics(start, examples_of(ids), said_by(reference, ids, plan=plan), plan))
        with open(f"{folder}/{rank}.json", "w") as file:
            json.dump(lines, file)


@pytest.fixture(scope="module")
def ids(random_ids) -> list[Ids]:
    return close_together(random_ids(7, seed=6))


@pytest.fixture(scope="module")
def two_processes(make_gpt, ids, tmp_path_factory):
    """(gradients, metrics) of each of two real processes over gloo, case by case."""
    folder = tmp_path_factory.mktemp("two")
    # a store as torchrun's agent keeps one: its port is surely free
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.start_processes(
        one_of_two, (store.port, str(folder), make_gpt(1), make_gpt(2), ids), nprocs=2, start_method="spawn"
    )
    return [
        (
            [load_file(folder / f"{number}-{rank}.safetensors") for number in range(len(CASES))],
            json.loads((folder / f"{rank}.json").read_text()),
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{spec}-{len(i)}-{micro}" for spec, i, micro in CASES])
def test_two_processes_hold_the_gradient_and_the_metrics_that_one_has(make_gpt, ids, two_processes, number):
    spec, indices, _ = CASES[number]
    gradient, line = step(make_gpt(1), make_gpt(2), ids, indices, plan_of(spec, len(indices)))
    for gradients, lines in two_processes:
        assert close(gradients[number], gradient, 2e-5)
        assert lines[number] == pytest.approx(line, rel=2e-5, abs=1e-4)
    first, second = (gradients[number] for gradients, _ in two_processes)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_know_the_held_out_metrics_of_a_coupled_loss_as_one_does(make_gpt, ids, two_processes):
    for number, spec in enumerate(sorted(COUPLED)):
        plan = plan_of(spec, 7)
        line = held_out_metrics(make_gpt(1), examples_of(ids), said_by(make_gpt(2), ids), plan)
        for _, lines in two_processes:
            assert lines[len(CASES) + number] == pytest.approx(line, rel=2e-5, abs=1e-4)


def test_the_second_of_two_processes_has_nothing_of_one_pair(ids):
    second = World(1, 2, ALONE.device)
    assert micro_batches([4], examples_of(ids), plan_of("dpo", 3).way.limit, second) == [[]]
    assert micro_batches([4, 2, 0, 1, 3], examples_of(ids), plan_of("dpo", 1).way.limit, second)[-1] == []
