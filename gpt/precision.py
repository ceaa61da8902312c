"""In which numbers the matrix products run: float32, or bfloat16 where the device has it and it pays.

Weights, softmax, log-probabilities, losses and the optimizer are float32 in both.
"""

from contextlib import AbstractContextManager
from pathlib import Path

import torch

CHOICES = ("auto", "fp32", "bf16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMALL = 10_000_000  # parameters; on CPU the products of smaller models gain nothing from bfloat16 (measured at 1M)


def resolve(precision: str, device: torch.device, parameters: int) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the device computes it natively and the model is large enough."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and parameters >= SMALL and _cpu_has_bf16() else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which a model is asked."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _cpu_has_bf16() -> bool:
    """Linux lists what the processor can do; elsewhere the answer is no. Without the instructions bf16 is emulated, slowly."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
