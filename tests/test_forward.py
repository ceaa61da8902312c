"""dpo/forward.py: what a pass may take, counted by hand, and the same for every process."""

import json
import os

import pytest
import torch

from dpo import forward
from dpo.forward import ANY, fitting
from dpo.order import Limit
from gpt.model import SIZES, GPTConfig
from gpt.parallel import World
from tests.processes import ROOT, call

ALONE = World(0, 1, torch.device("cpu"))
GPT2 = GPTConfig(**SIZES["gpt2"])
EACH = 4 * (34 * 768 * 12 + 50257)  # bytes a token


@pytest.fixture
def memory(monkeypatch):
    """A function that sets how much memory is free."""
    return lambda free: monkeypatch.setattr(forward, "_free_memory", lambda: free)


def test_a_pass_takes_the_pairs_that_were_asked_for_or_the_tokens_that_fit_half_of_what_is_free(memory):
    assert fitting(GPT2, ALONE, micro=3) == Limit(3, ANY)
    memory(1000 * EACH)
    assert fitting(GPT2, ALONE) == Limit(ANY, 500)
    assert fitting(GPT2, ALONE, reserved=100 * EACH) == Limit(ANY, 450)
    assert fitting(GPT2, ALONE, reserved=2000 * EACH) == Limit(ANY, 1)  # it may fit all the same
    memory(10**6 * EACH)
    assert fitting(GPT2, ALONE) == Limit(ANY, 2048)


def test_processes_of_one_machine_share_what_is_free(memory, monkeypatch):
    memory(1000 * EACH)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert fitting(GPT2, ALONE) == Limit(ANY, 125)


def test_what_is_free_is_some_of_what_the_machine_has():
    assert 2**20 < forward._free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


UNEQUAL = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from dpo import forward
from gpt.model import SIZES, GPTConfig
from gpt.joining import join

with join("cpu") as world:
    forward._free_memory = lambda: 2 * (800 - 100 * world.rank) * {EACH}
    limit = forward.fitting(GPTConfig(**SIZES["gpt2"]), world)
    with open(sys.argv[1] + f"/{{world.rank}}.json", "w") as file:
        file.write(str(limit.tokens))
"""


def test_processes_that_have_more_memory_take_no_more_than_the_one_with_the_least(tmp_path):
    # where the limits differ, so does the number of passes in a step, and processes wait for others that have none left
    (tmp_path / "unequal.py").write_text(UNEQUAL)
    call(tmp_path / "unequal.py", tmp_path, processes=2)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [350, 350]
