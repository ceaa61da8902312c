"""gpt/parallel.py with real processes over gloo: what two of them do together, one does alone."""

import json

import pytest
import torch

from gpt.command import UserError
from gpt.joining import join
from gpt.parallel import World, add_up, agree, replicate
from tests.processes import ROOT, call

TOGETHER = """
import json, sys
from dataclasses import dataclass
import torch
from torch import nn
from gpt.command import argument, run
from gpt.joining import join
from gpt.parallel import accumulate, add_up, agree, replicate

def work(world):
    torch.manual_seed(world.rank)                       # different weights: replicate must make them alike
    model = replicate(nn.Linear(3, 1), world, torch.zeros(1, 3))
    micros = [torch.arange(3.) + 10 * world.rank + i for i in range(2)]
    for i, x in enumerate(micros):
        with accumulate(model, last=i == 1):
            (model(x).sum() * world.size).backward()
            between = model.weight.grad.clone() if world.size == 1 else model.module.weight.grad.clone()
            if i == 0:
                first = between
    values = add_up(torch.tensor([1.0, world.rank]), world)
    said = agree(f"from {world.rank} \\u00e9", world)
    result = {"rank": world.rank, "size": world.size, "sum": values.tolist(), "said": said, "first": first.tolist(),
              "gradient": between.tolist(), "weight": next(model.parameters()).tolist(), "share": world.share(list(range(5)))}
    with open(sys.argv[1] + f"/{world.rank}.json", "w") as file:
        json.dump(result, file)

@dataclass(frozen=True)
class Flags:
    "Two processes, as dpo/train.py has them."
    folder: str = argument("where to write")

def main(flags):
    with join("cpu") as world:
        work(world)

run(main, Flags)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    (folder / "together.py").write_text(TOGETHER)
    call(folder / "together.py", folder, processes=2, PYTHONPATH=str(ROOT))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_sums_and_agreed_text_are_the_same_everywhere(two):
    for rank, found in enumerate(two):
        assert (found["rank"], found["size"]) == (rank, 2)
        assert found["sum"] == [2.0, 1.0]
        assert found["said"] == "from 0 é"


def test_shares_hold_every_item_once(two):
    assert sorted(two[0]["share"] + two[1]["share"]) == list(range(5))


def test_weights_are_those_of_process_0_and_gradients_meet_in_the_last_micro_batch_only(two):
    assert two[0]["weight"] == two[1]["weight"]
    x = torch.arange(3.0)
    for rank, found in enumerate(two):
        own = x + 10 * rank
        assert found["first"] == (2 * own)[None].tolist()  # times size, and of this process alone
        # the whole gradient: both micro-batches of both processes, averaged over 2 after being taken times 2
        assert found["gradient"] == sum(x + 10 * r + i for r in range(2) for i in range(2))[None].tolist()


def test_alone_nothing_is_wrapped_and_sums_are_what_they_were():
    with join("cpu") as world:
        assert world == World(0, 1, torch.device("cpu")) and world.share([3, 1, 2]) == [3, 1, 2]
        model = torch.nn.Linear(2, 2)
        assert replicate(model, world) is model
        assert add_up(torch.tensor(3.0), world) == 3 and agree("me", world) == "me"


def test_a_missing_device_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match="--device cuda"), join("cuda"):
        pass
