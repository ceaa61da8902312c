"""gpt/precision.py: which numbers are chosen, and what the choice does to the products."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt import precision
from gpt.model import GPT, GPTConfig

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize("device", [CPU, CUDA, MPS])
@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
@pytest.mark.parametrize("parameters", [1, 10**10])
def test_what_the_user_chose_is_taken_whatever_the_device_and_the_size(device, chosen, parameters):
    assert precision.resolve(chosen, device, parameters) == chosen


def test_auto_is_float32_for_a_small_model_on_cpu_and_on_devices_that_are_neither_cpu_nor_cuda():
    assert precision.resolve("auto", CPU, precision.SMALL - 1) == "fp32"
    assert precision.resolve("auto", MPS, 10**10) == "fp32"


def test_auto_is_bfloat16_for_a_large_model_on_cpu_exactly_where_torch_too_finds_the_instructions():
    found = torch.cpu.get_capabilities()  # asks the processor itself, not /proc/cpuinfo
    native = sys.platform == "linux" and any(
        found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")
    )
    assert precision.resolve("auto", CPU, precision.SMALL) == ("bf16" if native else "fp32")


def test_auto_on_cuda_is_bfloat16_exactly_where_the_gpu_has_it_natively():
    native = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8  # Ampere, the first that has it
    assert precision.resolve("auto", CUDA, 1) == ("bf16" if native else "fp32")


def test_every_choice_resolves_to_a_precision_that_computes():
    for choice in precision.CHOICES:
        assert precision.resolve(choice, CPU, 1) in ("fp32", "bf16")


@pytest.mark.parametrize("chosen, products", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_run_in_the_chosen_numbers_while_weights_log_probabilities_and_gradients_stay_float32(
    chosen, products
):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=31, n_positions=8, n_embd=12, n_layer=1, n_head=3))
    tokens, seen = torch.randint(31, (2, 8)), []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            y = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                seen.append((y.dtype, tuple(y.shape)))
            return y

    with Products(), precision.autocast(chosen, CPU):
        logp = model(tokens, tokens)
    forward = list(seen)
    with Products():
        logp.sum().backward()
    # of the layer qkv, what is looked at, both of the MLP; then the head
    assert [shape[1] for _, shape in forward] == [36, 12, 48, 12, 31]
    assert {dtype for dtype, _ in forward} == {dtype for dtype, _ in seen} == {products}
    assert len(seen) == 3 * len(forward)  # two products backward for each forward
    assert logp.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_float32_is_bit_for_bit_what_runs_without_the_context():
    torch.manual_seed(0)
    model, tokens = (
        GPT(GPTConfig(vocab_size=31, n_positions=8, n_embd=12, n_layer=1, n_head=3)),
        torch.randint(31, (2, 8)),
    )
    with precision.autocast("fp32", CPU):
        inside = model(tokens, tokens)
    assert torch.equal(inside, model(tokens, tokens))
