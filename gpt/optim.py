"""AdamW in two groups, and the learning rate as a function of the step.

Loshchilov & Hutter 2019 (arXiv 1711.05101): weight decay apart from the gradient. Matrices and embeddings decay;
biases and the gains of layer norms, which set a scale and do not grow with the data, do not.
"""

import math

import torch
from torch import Tensor, nn

from gpt.parallel import beside, parameters_at_rest, whole


def adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the parameters of `model` that train. Its learning rate is set before every step."""
    trained = [p for p in parameters_at_rest(model).values() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)  # that of mps ignores what `update` asks of it
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=fused)


def update(optimizer: torch.optim.AdamW, rate: float, clip: float, sound: Tensor) -> Tensor:
    """One step of AdamW at this rate, the gradient's norm cut to `clip` (0: no limit). Returns the norm before.

    Where `sound` is False or the norm is not finite nothing is changed, now or in any later step. Both happen inside the
    fused kernel, which was made for gradients scaled by a GradScaler: it divides by `grad_scale` and looks at `found_inf`
    as it goes over the weights. So clipping takes no pass of its own over the gradients, and no GPU is waited for.
    Where there is no such kernel, both are done before the step.
    """
    clipped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in clipped]))
    broken = (~(norm.isfinite() & sound)).float()
    for group in optimizer.param_groups:
        group["lr"] = rate
    if optimizer.param_groups[0]["fused"]:
        scale = (norm / clip).clamp(min=1.0) if clip else torch.ones_like(norm)
        broken = torch.maximum(whole(getattr(optimizer, "found_inf", broken)), broken)
        vars(optimizer).update(grad_scale=beside(scale, clipped[0]), found_inf=beside(broken, clipped[0]))
        optimizer.step()
    elif broken or hasattr(optimizer, "found_inf"):
        vars(optimizer)["found_inf"] = broken  # who has it takes no step any more
    else:
        torch.nn.utils.clip_grads_with_norm_(clipped, clip or math.inf, norm)
        optimizer.step()
    optimizer.zero_grad()
    return norm


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The rate of update `step`, counted from 1 to `steps`: a straight rise over the first `warmup` (a fraction) of them,
    then half a cosine down to 0, which it would reach one step after the last."""
    rise = math.ceil(warmup * steps - 1e-6)  # 0.07 * 100 is 7.000000000000001
    if step <= rise:
        return peak * step / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise + 1)))


def default_learning_rate(parameters: int, preference: bool, lora: bool = False) -> float:
    """The peak where none was given.

    Preference losses: 1e-6 at GPT-2's 124M parameters (published DPO rates are 5e-7 to 5e-6), in inverse proportion to
    the size, never above 1e-4 or below 5e-7. SFT: 20 times that. Adapters: 10 times the rate of the whole model
    (Schulman et al. 2025, "LoRA Without Regret", found that ratio best whatever the model and the data).
    """
    rate = min(max(1e-6 * 124e6 / parameters, 5e-7), 1e-4)
    return rate * (1 if preference else 20) * (10 if lora else 1)
