"""Which token comes next: from logits to a choice, greedy or by chance.

    logits -> repetition penalty -> / temperature -> top-k -> top-p -> min-p -> probabilities -> a token

The order is that of `transformers`, so the same settings leave the same tokens. Chance is a number between 0 and 1 for
each row, drawn beforehand from the row's own seed: what a row gets does not depend on its batch mates.

Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.command import UserError


class Sampling(NamedTuple):
    """How to choose. The default is greedy; each of the others is off where it stands."""

    temperature: float = 0.0  # 0: always the likeliest token
    top_k: int = 0  # only the k likeliest
    top_p: float = 1.0  # only the likeliest that together reach p; Holtzman et al. 2020 (arXiv 1904.09751)
    min_p: float = 0.0  # only those at least so many times as likely as the likeliest; Nguyen et al. 2024 (2407.01082)
    repetition_penalty: float = 1.0  # of tokens in prompt and answer; Keskar et al. 2019 (1909.05858), section 4.1

    def check(self) -> "Sampling":
        """Itself. Raises UserError, naming the setting as its flag, where one makes no sense."""
        for name, zero, most in (
            ("temperature", True, math.inf),
            ("top_k", True, math.inf),
            ("top_p", False, 1),
            ("min_p", True, 1),
            ("repetition_penalty", False, math.inf),
        ):
            value = getattr(self, name)
            if not (0 <= value <= most and value < math.inf and (zero or value > 0)):
                limit = ("at least 0" if zero else "above 0") + (f" and at most {most}" if most == 1 else "")
                finite = "" if math.isfinite(value) else "a finite number, "
                raise UserError(f"--{name.replace('_', '-')} is {value}, it must be {finite}{limit}")
        if self.top_k != int(self.top_k):
            raise UserError(f"--top-k is {self.top_k}, it must be a whole number")
        return self


GREEDY = Sampling()


def chances_of(seeds: Sequence[int], count: int, device: torch.device) -> Tensor:
    """(B, count) numbers in [0, 1), each row's from its seed alone, the same on every device."""
    drawn = [torch.rand(count, generator=torch.Generator().manual_seed(s), dtype=torch.double) for s in seeds]
    chances = torch.stack(drawn)
    return (chances.float().clamp(max=1 - 2**-24) if device.type == "mps" else chances).to(device)  # mps has no float64


def choose(logits: Tensor, sampling: Sampling, chance: Tensor, seen: Tensor | None = None) -> Tensor:
    """The next token of each row, (B,). logits: (B, V); chance: (B,) in [0, 1), not used if greedy, in the precision that the
    choice is to have; seen: see `penalized`."""
    logits = penalized(logits.float(), sampling.repetition_penalty, seen)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    reached = probabilities(logits, sampling).to(chance.dtype).cumsum(-1)  # (B, V)
    # the first token at which the sum passes the row's chance; one of probability 0 never does
    return torch.searchsorted(reached, chance[:, None] * reached[:, -1:], right=True).squeeze(1)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V): softmax at the temperature (above 0), over the tokens that top-k, top-p and min-p leave."""
    # from the likeliest down, and never by less than 1e-30: then no temperature above 0 makes an infinity of the likeliest
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        in_order, place = logits.softmax(-1).sort(descending=True, stable=True)
        before = in_order.cumsum(-1) - in_order  # the probability of all likelier tokens; of the first 0
        out = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, place, before >= sampling.top_p)
        logits = logits.masked_fill(out, -torch.inf)
    if sampling.min_p > 0:
        likely = logits.softmax(-1)
        logits = logits.masked_fill(likely < sampling.min_p * likely.amax(-1, keepdim=True), -torch.inf)
    return logits.softmax(-1)


def penalized(logits: Tensor, penalty: float, seen: Tensor | None) -> Tensor:
    """Logits of the tokens that were `seen` (B, V), made less likely: divided by the penalty, or where negative multiplied."""
    if penalty == 1 or seen is None:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
