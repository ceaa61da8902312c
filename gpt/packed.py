"""A model whose matrices lie in memory as the processor reads them fastest, for sampling on a CPU.

    twin = packed(model)        # computes what `model` does, for as long as the model does not change

A product with a few rows, as in sampling, is bound by reading the matrix. In oneDNN's blocked order it is read twice as
fast as row by row (GPT-2 124M: tests/bench/generation.py has the figures), and the numbers are of the same precision.
torch.compile's CPU backend uses the same two operators when weights are frozen. The price is a second copy of the
matrices while the twin lives, and as much time as about ten tokens take.
"""

import copy
import platform

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """y = x W^T + b, with W in oneDNN's order."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packed(model: nn.Module) -> nn.Module:
    """A twin of `model` in eval mode, whose linear layers are packed where that helps. Packing a twin costs nothing more."""
    first = next(model.parameters())
    return _twin(model, pack=first.device.type == "cpu" and first.dtype in DTYPES and _available())


def _available() -> bool:
    return (
        platform.machine() in ("x86_64", "AMD64")  # elsewhere nothing was measured
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _twin(module: nn.Module, pack: bool) -> nn.Module:
    if pack and type(module) is nn.Linear:
        return PackedLinear(module)
    twin = copy.copy(module)
    twin.training = False
    twin._modules = {name: child and _twin(child, pack) for name, child in module._modules.items()}
    return twin
