"""More than one process: what they exchange once they have met (gpt/joining.py).

    with join("auto") as world:
        model = replicate(placed(model, world), world)      # on its device; DDP, or the model itself in one process
        with accumulate(model, last=is_last_micro_batch):   # forward and backward; gradients meet in the last one
            loss.backward()
        add_up(sums, world)                                 # in place, over all processes

One process is not a special case: each of these then does nothing. Gradients are averaged over processes, so a loss
is divided by what the whole step holds and multiplied by `world.size`.

`placed(model, world, shard=True)` cuts each parameter into as many parts as there are processes (FSDP2: weights,
gradients and the optimizer's state lie apart, and a layer is put together for the moment in which it is used). Its
parameters are DTensors then; `whole` and `fill` read and write them as if they were not.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple, TextIO, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from gpt.command import UserError
from gpt.model import GPT

if TYPE_CHECKING:  # else imported where a model is cut: it would take every command's start a second
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


class World(NamedTuple):
    """This process (rank) among `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: list) -> list:
        """Every size-th item, from this process's own: together the processes have each item once."""
        return items[self.rank :: self.size]


# models


def placed(model: GPT, world: World, shard: bool = False) -> GPT:
    """The GPT on this process's device, or with `shard` this process's part of it. All processes have the same one before."""
    if not shard or world.size == 1:
        return model.to(world.device)
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in model.transformer["h"].children():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # in place
    return model


def replicate(model: nn.Module, world: World, *example: Tensor) -> nn.Module:
    """The same model on every process, its gradients averaged. `model` is as `placed` returns it.

    example: inputs that the model can be called with. DDP puts gradients into buckets by a guess at first, and after the
    first backward pass once more, in the order in which they came. Where in a bucket a number stands decides in which
    order three or more processes add it up. A first backward pass of weight 0, here, puts that behind: a run that is
    resumed then rounds in its first step as one that was not stopped.
    """
    if world.size == 1 or is_sharded(model):
        return model
    model = DistributedDataParallel(model, gradient_as_bucket_view=True)  # a GPT has no buffers to keep alike
    (0.0 * model(*(tensor.to(world.device) for tensor in example)).sum()).backward()
    for parameter in model.parameters():
        parameter.grad = None
    return model


def accumulate(model: nn.Module, last: bool):
    """Around forward *and* backward of a micro-batch: gradients are exchanged in the last one of a step only."""
    if _is_cut(model):
        model.set_requires_gradient_sync(last)
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def parameters_at_rest(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, as the optimizer has them: FSDP2 may hold some of them whole after a forward pass."""
    for module in model.modules():
        if _is_cut(module):
            module.reshard()
    return dict(model.named_parameters())


def is_sharded(model: nn.Module) -> bool:
    """Whether processes have parts of the model; all must then call it equally often."""
    return _is_cut(model)


def _is_cut(model: nn.Module) -> TypeGuard["FSDPModule"]:
    return hasattr(model, "set_requires_gradient_sync")


# tensors


def _is_part(tensor: Tensor) -> TypeGuard["DTensor"]:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may have a part. All must ask."""
    return tensor.full_tensor() if _is_part(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Tensors of which each process may have a part, whole and on the CPU, on the main process; {} on the others."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if world.is_main:
            found[name] = value.cpu().contiguous()
    return found


def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy `value`, which every process has whole, into a tensor of which each may have a part."""
    if _is_part(tensor):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


def beside(value: Tensor, tensor: Tensor) -> Tensor:
    """`value`, the same in every process, in a form that can be computed with `tensor`."""
    if not _is_part(tensor):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, tensor.device_mesh, [Replicate()])


def add_up(values: Tensor, world: World) -> Tensor:
    """Sum `values` over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def least(value: int, world: World) -> int:
    """The smallest `value` that a process has, on every process."""
    if world.size == 1:
        return value
    found = torch.tensor(value, device=world.device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def spread(values: Tensor, world: World, source: int = 0) -> Tensor:
    """The values of process `source` on every process, in place."""
    if world.size > 1:
        dist.broadcast(values, src=source)
    return values


# text


def agree(text: str, world: World, source: int = 0) -> str:
    """The text of process `source` on every process."""
    if world.size == 1:
        return text
    encoded = torch.tensor(list(text.encode()), dtype=torch.uint8)
    count = int(spread(torch.tensor(len(encoded), device=world.device), world, source))
    letters = torch.zeros(count, dtype=torch.uint8)
    if world.rank == source:
        letters = encoded
    return bytes(spread(letters.to(world.device), world, source).tolist()).decode()


def on_main(work: Callable[[], str | None], world: World) -> str:
    """What the main process's `work` returns (None is ""), on every process; the others wait.

    A UserError there is raised in all, so that none goes on alone.
    """
    said = ""
    if world.is_main:
        try:
            said = "+" + (work() or "")
        except UserError as error:
            said = "-" + str(error)
    said = agree(said, world)
    if said[0] == "-":
        raise UserError(said[1:])
    return said[1:]


def say(line: str, world: World, file: TextIO | None = None) -> None:
    """Print, once."""
    if world.is_main:
        print(line, file=file, flush=True)
