"""A model whose matrices lie in memory as the processor reads them fastest, for sampling on a CPU.

    twin = packed(model)        # computes what `model` does, for as long as the model does not change

A product with a few rows, as in sampling, is bound by reading the matrix. In oneDNN's blocked order it is read twice as
fast as row by row (README.md has the figures), and the numbers are of the same precision.
torch.compile's CPU backend uses the same two operators when weights are frozen. The price is a second copy of the
matrices while the twin lives, and as much time as about ten tokens take.
"""

import copy
import platform

import torch
from torch import Tensor, nn


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
    return _twin(model, pack=first.device.type == "cpu" and _available(first.dtype))


def _available(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs, and is fast: on a processor of another kind nothing was measured."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and (dtype is torch.float32 or dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and not torch.is_autocast_enabled("cpu")  # which would hand bfloat16 to float32 matrices
    )


def _twin(module: nn.Module, pack: bool) -> nn.Module:
    if pack and type(module) is nn.Linear:
        return PackedLinear(module)
    twin = copy.copy(module)
    twin.training = False
    twin._modules = {name: child and _twin(child, pack) for name, child in module._modules.items()}
    return twin
