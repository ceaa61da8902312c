"""dpo/moving.py: a reference that follows the policy, by itself and through dpo/train.py."""

import json
import shutil
from math import log
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.pairs import Pair
from dpo.examples import in_memory
from dpo.forward import ANY, Way
from dpo.moving import Moving, frozen_copy
from dpo.order import Limit
from gpt.parallel import World
from tests.processes import ROOT, call

WAY = Way(Limit(4, ANY), "fp32", World(0, 1, torch.device("cpu")))
FLAGS = ["--batch", 6, "--lr", 1e-3, "--steps", 6, "--eval-every", 2, "--save-every", 2, "--held-out", 0.2]


def test_after_every_second_step_it_moves_a_quarter_of_the_way(make_gpt):
    policy, start = make_gpt(0), make_gpt(1)
    moving = Moving(frozen_copy(start), None, WAY, every=2, mix=0.25)
    expected = [p.double() for p in start.parameters()]
    for step in range(1, 7):
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(0.1)
        moving.follow(policy, step)
        if step in (2, 4, 6):
            expected = [0.75 * old + 0.25 * new.double() for old, new in zip(expected, policy.parameters())]
        for found, wanted in zip(moving.model.parameters(), expected):
            assert torch.allclose(found.double(), wanted, atol=1e-6)
    assert not any(p.requires_grad for p in moving.model.parameters())


def test_it_says_what_the_model_of_the_moment_says_without_a_gradient(make_gpt, random_ids):
    ids = random_ids(5)
    moving = Moving(frozen_copy(make_gpt(1)), in_memory([Pair("", "", "")] * 5, ids), WAY, every=1, mix=1.0)
    for model in (make_gpt(1), make_gpt(2)):
        said = moving.of([3, 0])
        expected = []
        for i in (3, 0):
            for answer in (ids[i].chosen, ids[i].rejected):
                text = torch.tensor([ids[i].prompt + answer])
                logps = model(text).log_softmax(-1)[0, :-1].gather(1, text[0, 1:, None])[:, 0]
                expected += logps[len(ids[i].prompt) - 1 :].tolist()
        assert said.tolist() == pytest.approx(expected, abs=1e-4) and not said.requires_grad
        moving.follow(make_gpt(2), 1)


def train(toy: Path, name: str, *flags, processes: int = 0, code: int = 0):
    words = ["--init", toy / "model", "--pairs", toy / "pairs.jsonl", "--out", toy / name, *FLAGS, *flags]
    return call(ROOT / "dpo/train.py", *words, processes=processes, code=code)


def lines(toy: Path, name: str, split: str) -> list[dict]:
    found = [json.loads(line) for line in (toy / name / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def test_a_reference_that_is_the_policy_after_every_step_leaves_every_loss_at_ln_2(toy):
    done = train(toy, "hard", "--reference-every", 1, "--reference-mix", 1)
    assert "reference moves 1 of the way to the policy every 1 steps" in done.stdout
    for split in ("train", "held-out"):
        found = lines(toy, "hard", split)
        assert [line["loss"] for line in found] == pytest.approx([log(2)] * len(found), abs=1e-5)
        assert [line["rewards/margins"] for line in found] == pytest.approx([0] * len(found), abs=1e-4)
    before, after = (load_file(path / "model.safetensors") for path in (toy / "model", toy / "hard/model"))
    assert not torch.equal(before["transformer.wte.weight"], after["transformer.wte.weight"])


def test_until_it_moves_it_is_the_reference_that_stands_still(toy):
    train(toy, "still")
    train(toy, "later", "--reference-every", 4)
    still, later = lines(toy, "still", "train"), lines(toy, "later", "train")
    for name in ("loss", "grad_norm", "rewards/margins"):
        assert [line[name] for line in later[:4]] == pytest.approx([line[name] for line in still[:4]], abs=1e-5)
    assert later[4]["rewards/margins"] < still[4]["rewards/margins"]


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_cut_off_and_resumed_ends_with_the_same_bits(toy, processes):
    whole, cut, flags = f"whole-{processes}", f"cut-{processes}", ["--reference-every", 3, "--reference-mix", 0.5]
    train(toy, whole, *flags, processes=processes)
    shutil.copytree(toy / whole, toy / cut)
    shutil.rmtree(toy / cut / "checkpoints/step-000006")  # the one before is of step 4, after the first move
    shutil.rmtree(toy / cut / "model")
    train(toy, cut, *flags, "--resume", processes=processes)
    a, b = ((toy / name / "model/model.safetensors").read_bytes() for name in (whole, cut))
    assert a == b
    for split in ("train", "held-out"):
        found, expected = lines(toy, cut, split), lines(toy, whole, split)
        assert [line["loss"] for line in found] == [line["loss"] for line in expected]


def test_one_process_or_two_move_it_alike(toy):
    found, expected = lines(toy, "whole-2", "train"), lines(toy, "whole-0", "train")
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], abs=1e-5)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (
            ["--reference-every", 2, "--loss", "simpo"],
            "--reference-every: the loss simpo(beta=2, gamma=0.5) has no reference",
        ),
        (
            ["--reference-every", 2, "--lora", 4],
            "--reference-every moves a model's own weights; it does not go with --lora",
        ),
        (["--reference-mix", 0.5], "--reference-mix needs --reference-every"),
        (["--reference-every", 2, "--reference-mix", 0], "--reference-mix is 0.0, it must be above 0 and at most 1"),
        (["--reference-every", 2, "--reference-mix", 1.5], "--reference-mix is 1.5, it must be above 0 and at most 1"),
        (["--reference-every", -1], "--reference-every is -1"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_in_one_line(toy, flags, expected):
    done = train(toy, "refused", *flags, code=2)
    assert expected in done.stderr and done.stderr.count("\n") == 1 and not (toy / "refused").exists()
