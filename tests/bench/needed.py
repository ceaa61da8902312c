"""What a pair costs at the least, and what the machine can do: the two ends of every "fraction of the matmul rate".

The work that DPO of one pair needs, whatever a system makes of it. The pair is one row with a shared prompt
(dpo/rows.py): T = P - 1 + C + R tokens, of which C + R belong to answers, and A allowed (query, key) pairs. With L
layers of width d and V words, a multiplication and an addition counted as two:

    forward     24 L d^2 T            the four matrices of a block, 12 d^2 numbers
              +  2 d V (C + R)        the head, where there is a target
              +  4 d L A              attention: queries times keys, and weights times values
    pair      4 x forward             the policy forward once, backward twice, and the reference forward once

So 6 * 12 L d^2 a token, 6 d V an answer token and 12 d L an allowed pair for the policy, and 2, 2 and 4 of them more for
the reference. The same count for every system: who computes the prompt twice, the head at the prompt, or padding, does
more and is given credit for this alone.

With P, C, R = 3, 3, 2, the picture of dpo/rows.py: T = 7, C + R = 5, and

    trunk     1 + 2                   = 3
    chosen    (2 + 1) + (2 + 2) + (2 + 3) = 12
    rejected  (2 + 1) + (2 + 2)       = 7     A = 22
"""

import time
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from dpo.rows import Ids
from gpt.model import GPTConfig

FORMULA = (
    "needed FLOPs of a pair: 4 x (24 L d^2 T + 2 d V (C + R) + 4 d L A); policy forward 1 and backward 2, reference 1; "
    "T = P - 1 + C + R tokens of the shared-prefix row, A allowed (query, key) pairs in it"
)


def allowed_looks(ids: Ids) -> int:
    """A: how many (query, key) pairs the row of this pair allows."""
    trunk = len(ids.prompt) - 1
    branches = sum(n * trunk + n * (n + 1) // 2 for n in (len(ids.chosen), len(ids.rejected)))
    return trunk * (trunk + 1) // 2 + branches


def needed_flops(pairs: Sequence[Ids], config: GPTConfig) -> int:
    """The floating-point operations that one DPO step over these pairs needs, its share of the reference pass included."""
    L, d, V = config.n_layer, config.n_embd, config.vocab_size
    forward = 0
    for ids in pairs:
        forward += 24 * L * d * d * ids.length
        forward += 2 * d * V * (len(ids.chosen) + len(ids.rejected))
        forward += 4 * d * L * allowed_looks(ids)
    return 4 * forward


def matmul_rate(config: GPTConfig, device: torch.device, dtype: torch.dtype, repeats: int = 3) -> float:
    """FLOP/s: the best that F.linear reaches over the model's own five shapes, at 1,024 and 2,048 rows."""
    d, best = config.n_embd, 0.0
    for inner, outer in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d), (d, config.vocab_size)):
        weight = torch.randn(outer, inner, device=device).to(dtype)
        for rows in (1024, 2048):
            x = torch.randn(rows, inner, device=device).to(dtype)
            for _ in range(1 + repeats):  # the first one warms up; it could only lose
                began = _now(device)
                F.linear(x, weight)
                best = max(best, 2 * rows * inner * outer / (_now(device) - began))
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
