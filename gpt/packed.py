"""A model whose matrices lie in memory as the processor reads them fastest, to be asked on a CPU without gradients.

    twin = packed(model)        # computes what `model` does, for as long as the model does not change

A product with a few rows, as in sampling, is bound by reading the matrix. In oneDNN's blocked order it is read twice as
fast as row by row (docs/speed.md has the figures), and the numbers are of the same precision. With many rows, as in the
reference pass, a tenth is gained, since each product would put the matrix into that order for itself.
torch.compile's CPU backend uses the same two operators when weights are frozen. The price is a second copy of the
matrices while the twin lives, and as much time as about ten tokens take.
"""

import copy
import platform
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class PackedLinear(nn.Module):
    """y = x W^T + b, with W in oneDNN's order. weight: W itself, where it is kept beside."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, keep: bool):
        super().__init__()
        self.weight = linear.weight if keep else None
        self.ordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        bias = linear.bias
        self.bias = bias if bias is None or bias.dtype is dtype else bias.detach().to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.ordered, self.bias, "none", [], "")


def packed(model: Model, dtype: torch.dtype | None = None) -> Model:
    """A twin of `model` in eval mode, whose linear layers are packed where that helps. Packing a twin costs nothing more.

    dtype: what its products run in, as under autocast and bit for bit the same; default: the model's own.
    """
    first = next(model.parameters())
    # autocast would hand bfloat16 to float32 matrices
    own = dtype is None and not torch.is_autocast_enabled("cpu")
    wanted = first.dtype if dtype is None else dtype
    pack = first.device.type == "cpu" and (own or dtype is not None) and _available(wanted)
    # with targets the head uses its matrix itself (gpt/head.py), which where it is tied is there anyway
    return cast(Model, _twin(model, wanted if pack else None, getattr(model, "lm_head", None)))


def _available(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs, and is fast: on a processor of another kind nothing was measured."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and (dtype is torch.float32 or dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _twin(module: nn.Module, dtype: torch.dtype | None, head: nn.Module | None) -> nn.Module:
    if dtype and type(module) is nn.Linear:
        return PackedLinear(module, dtype, keep=module is head)
    twin = copy.copy(module)
    twin.training = False
    twin._modules = {name: child and _twin(child, dtype, head) for name, child in module._modules.items()}
    return twin
