"""A forward pass over pairs: the one way in which policy and reference are asked.

    ask(model, pairs, rows, way).logps                # log p of every answer token of these rows

Both take the same numeric path, so that before the first update every log-ratio is 0 to rounding.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpo.order import Limit
from dpo.rows import Batch, Ids, collate
from gpt import precision
from gpt.attention import looking
from gpt.launched import processes_here
from gpt.model import GPTConfig
from gpt.parallel import World, least

ANY = 2**31  # of pairs or tokens, no limit


class Way(NamedTuple):
    """How models are asked, in training, for the reference and in evaluation alike."""

    limit: Limit  # of one forward pass of this process
    precision: str  # "fp32" or "bf16"
    world: World
    stop: Callable[[], None] = lambda: None  # called before every pass; raises where the run is to end


class Asked(NamedTuple):
    """What a model says of some pairs, by answer tokens in the order of their batch."""

    logps: Tensor  # (S,) float32: log p
    squares: Tensor | None  # (S,): where it was asked for, the logarithm of the sum of p^2 over the vocabulary
    batch: Batch


def ask(model: Callable[..., Any], pairs: Sequence[Ids], rows: Sequence[int], way: Way, squares: bool = False) -> Asked:
    """log p of each answer token of the pairs `rows`."""
    way.stop()
    device = way.world.device
    multiple = 128 if device.type == "cuda" else 1  # a GPU has a kernel chosen for each new length
    batch = collate([pairs[i] for i in rows], multiple).to(device)
    look = looking(batch.tree, device, precision.DTYPES[way.precision])
    with precision.autocast(way.precision, device):
        found = model(batch.tokens, batch.targets, batch.positions, look, squares)
    logps, of_squares = found if squares else (found, None)
    return Asked(logps, of_squares, batch)


def fitting(config: GPTConfig, world: World, reserved: int = 0, micro: int = 0) -> Limit:
    """What a forward pass with its backward may take: `micro` pairs, or (0) what fits half of the device's free memory.

    reserved: bytes that other things, not there yet, will take. On CPU no more than 2,048 tokens: products of that
    many rows are as fast as they get. Every process gets what fits the one with the least memory, since all must cut a
    step into the same number of passes; so all must ask.
    """
    if micro:
        return Limit(micro, ANY)
    if world.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(world.device)[0], 32768
    else:
        free, most = _free_memory() // processes_here(), 2048
    # floats a token, counted, not measured: 34 C in each layer and, as if all were answers, its logits
    each = 4 * (34 * config.n_embd * config.n_layer + config.vocab_size)
    return Limit(ANY, least(max(1, min((free - reserved) // 2 // each, most)), world))


def _free_memory() -> int:
    """Bytes that can be had without swapping; where the system does not tell, 4 GiB."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 4 * 2**30
