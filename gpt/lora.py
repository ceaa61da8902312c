"""Low-rank adapters: fine-tune a model by a narrow detour around each of its matrices, and leave the matrices alone.

             +--> W (frozen) --------------------+
        x ---+                                   +--> y = x W^T + b + alpha / rank * (x A^T) B^T
             +--> A (rank, in) --> B (out, rank) +

B begins as zeros, so at the start the model is as it was; with the detour closed (`without_adapters`) it is so always,
which makes it its own reference. W gets no gradient and no optimizer state, which is where the memory goes.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gpt.command import UserError
from gpt.files import whole_folder
from gpt.model import GPT, GPTConfig

TARGETS = ("c_attn", "c_fc", "c_proj")  # every matrix of attention and MLP


class LoRALinear(nn.Linear):
    """A linear layer, frozen, with its adapter. It takes the layer's own parameters, not copies."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        A, B = torch.empty(rank, linear.in_features), torch.zeros(linear.out_features, rank)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as in the authors' code: uniform within 1 / sqrt(in)
        # made on the CPU, whose random numbers are the same whatever device the model is on
        self.lora_A, self.lora_B = (nn.Parameter(part.to(linear.weight.device)) for part in (A, B))
        self.rank, self.alpha, self.active = rank, alpha, True

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.alpha / self.rank * F.linear(F.linear(x, self.lora_A), self.lora_B) if self.active else y

    def merged_weight(self) -> Tensor:
        """W + alpha / rank * B A, (out, in)."""
        return self.weight + self.alpha / self.rank * self.lora_B @ self.lora_A


def add_lora(model: GPT, rank: int, alpha: float | None = None, seed: int = 0) -> GPT:
    """Freeze `model` and put adapters on its attention and MLP matrices, in place. alpha: 2 x rank unless given.

    Raises UserError for a rank that is not below the model's width.
    """
    check_rank(rank, model.config)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if name in TARGETS and isinstance(child, nn.Linear):
                    setattr(module, name, LoRALinear(child, rank, 2 * rank if alpha is None else alpha))
    return model


def check_rank(rank: int, config: GPTConfig) -> None:
    """Raises UserError for a rank that is not below the model's width: such adapters are no narrower than the matrices."""
    if rank >= config.n_embd:
        raise UserError(f"--lora {rank}: the rank must be below the model's width, {config.n_embd}")


def adapter_size(model: GPT, rank: int) -> int:
    """How many parameters `add_lora` would add."""
    layers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in TARGETS]
    return rank * sum(layer.in_features + layer.out_features for layer in layers)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers with an adapter, by name; {} for a model without."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is as it was before `add_lora`; a model without adapters is as it is."""
    found = adapters(model).values()
    for layer in found:
        layer.active = False
    try:
        yield
    finally:
        for layer in found:
            layer.active = True


@torch.no_grad()
def merged(model: GPT) -> GPT:
    """A plain GPT that computes the same: each adapter added to its matrix. A model without adapters is returned itself."""
    found = adapters(model)
    if not found:
        return model
    state = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
    state |= {f"{name}.weight": layer.merged_weight() for name, layer in found.items()}
    return GPT.of(model.config, state).eval()


def save_adapter(folder: str | Path, model: GPT, base: str) -> None:
    """Write the adapters as `peft` reads them. base: the model they belong to, a path or NAME@REVISION on the Hub."""
    name, _, revision = (base, "", "") if Path(base).is_absolute() else base.partition("@")
    found = adapters(model)
    one = next(iter(found.values()))
    state = {
        f"base_model.model.{place}.{part}.weight": getattr(layer, part).detach().float().cpu().contiguous()
        for place, layer in found.items()
        for part in ("lora_A", "lora_B")
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "r": one.rank,
        "lora_alpha": one.alpha,
        "target_modules": list(TARGETS),
        "fan_in_fan_out": True,  # Hugging Face's GPT-2 keeps its matrices transposed
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with whole_folder(folder) as part:
        save_file(state, part / "adapter_model.safetensors", metadata={"format": "pt"})
        (part / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
