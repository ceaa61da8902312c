"""A model in parts (FSDP2) against the same model whole: gradients, updates, and checkpoints from one way to the other."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt.checkpoint import latest_checkpoint, load_checkpoint
from gpt.lora import add_lora
from gpt.model import GPT, GPTConfig
from gpt.optim import adamw
from gpt.parallel import World
from tests.processes import gang

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = dict(vocab_size=41, n_positions=16, n_embd=12, n_layer=2, n_head=3)  # 41 and 12 are no multiples of 5
SIZE, MICROS, STEPS = 3, 2, 3  # processes, micro-batches, updates

SCRIPT = """
import os, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from gpt.checkpoint import load_checkpoint, save_checkpoint
from gpt.joining import join
from gpt.parallel import gathered, is_sharded, parameters_at_rest, placed, replicate
from tests.test_sharding import EXAMPLE, STEPS, start, steps
folder = Path(sys.argv[1])
torch.set_num_threads(1)
with join("cpu", 60) as world:
    for lora in (0, 2):
        for shard in (False, True):
            name = f"{'parts' if shard else 'copies'}-{lora}"
            model, optimizer = start(lora, world, shard)
            assert is_sharded(model) == shard
            if shard:
                assert any(p.to_local().numel() < p.numel() for p in model.parameters())
            steps(model, optimizer, range(1, STEPS + 1), world)
            save_checkpoint(folder / name, model, optimizer, {"step": STEPS}, world)
            # and from the checkpoint of the other way to the end
            other = folder / f"copies-{lora}/step-{STEPS:06d}"
            model, optimizer = start(lora, world, shard, seed=9)
            load_checkpoint(other, model, optimizer, world)
            steps(model, optimizer, range(STEPS + 1, 2 * STEPS + 1), world)
            state = gathered(parameters_at_rest(model), world)
            if world.is_main:
                save_file(state, folder / f"{name}-end.safetensors")
os._exit(0)
"""
EXAMPLE = (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long))


def start(lora: int, world: World, shard: bool = False, seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    from gpt.parallel import placed

    torch.manual_seed(seed)
    model = GPT(GPTConfig(**CONFIG))
    if lora:
        add_lora(model, lora, seed=seed)
    model = placed(model, world, shard)
    return model, adamw(model, 0.1)


def steps(policy: torch.nn.Module, optimizer: torch.optim.Optimizer, numbers: range, world: World) -> None:
    """Updates over the same 12 rows a step, each process its share of them, in two micro-batches of uneven size."""
    from gpt.optim import update
    from gpt.parallel import accumulate, replicate

    model = replicate(policy, world, *EXAMPLE)
    for step in numbers:
        rows = torch.randint(41, (12, 9), generator=torch.Generator().manual_seed(step))
        mine = torch.stack(world.share(list(rows)))
        for number, some in enumerate((mine[:1], mine[1:]), 1):
            with accumulate(model, last=number == MICROS):
                (-model(some[:, :-1], some[:, 1:]).sum() / 96 * world.size).backward()
        update(optimizer, 1e-2, 0.5, torch.tensor(True))


def same(name: str, one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal to rounding. A key's bias has no gradient but rounding, which Adam makes as large as any other."""
    if name.endswith("c_attn.bias") and one.dim():
        one, other = (torch.cat([part[:12], part[24:]]) for part in (one, other))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What three processes left there."""
    folder = tmp_path_factory.mktemp("sharding")
    (folder / "script.py").write_text(SCRIPT)
    for code, _, errors in gang(folder / "script.py", folder, size=SIZE, limit=200).values():
        assert code == 0, errors
    return folder


@pytest.mark.parametrize("lora", [0, 2])
def test_in_parts_in_copies_and_alone_the_same_weights_and_moments_come_out(folder, lora):
    model, optimizer = start(lora, ALONE)
    steps(model, optimizer, range(1, STEPS + 1), ALONE)
    names = {p: name for name, p in model.named_parameters()}
    for way in ("parts", "copies"):
        path, _ = latest_checkpoint(folder / f"{way}-{lora}")
        weights, moments = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
        assert weights.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
        for p, kept in optimizer.state.items():
            same(names[p], weights[names[p]], p.detach())
            for field, value in kept.items():
                same(names[p], moments[f"{names[p]}/{field}"], value)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_checkpoint_of_either_way_is_gone_on_with_in_parts_in_copies_and_alone(folder, lora):
    ends = []
    for saved in ("parts", "copies"):
        model, optimizer = start(lora, ALONE, seed=9)
        load_checkpoint(latest_checkpoint(folder / f"{saved}-{lora}")[0], model, optimizer, ALONE)
        steps(model, optimizer, range(STEPS + 1, 2 * STEPS + 1), ALONE)
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    ends += [load_file(folder / f"{way}-{lora}-end.safetensors") for way in ("parts", "copies")]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    for other in ends[1:]:
        for name in trained:
            same(name, other[name], ends[0][name])


def test_one_process_has_all_of_a_model_in_parts():
    model, _ = start(0, ALONE, shard=True)
    assert type(model) is GPT and json.dumps(sorted(dict(model.named_parameters()))).count("wte") == 1
