"""A trained model as a reward model: what it thinks of each pair of a file.

Rafailov et al. 2023 (arXiv 2305.18290, section 4): beta * (log pi(answer) - log pi_ref(answer)) is a reward, up to a
constant of the prompt, which falls out where two answers to one prompt are compared.
"""

from collections.abc import Iterator
from statistics import fmean

import torch

from dpo.examples import Examples
from dpo.forward import Way
from dpo.metrics import TIE
from dpo.reference import reference_logps
from gpt.model import GPT
from gpt.weights import fingerprint


def score_pairs(policy: GPT, reference: GPT, examples: Examples, beta: float, way: Way) -> Iterator[dict]:
    """For each pair in order: its row in the file, rewards, log-probabilities, lengths in tokens, and which answer wins.

    A row with one answer has what there is to say of one. Under torchrun every process must take part.
    """
    rows = list(range(len(examples.ids)))
    said, before = (
        reference_logps(model.to(way.world.device), examples, rows, way, fingerprint(model)).sums(examples)
        for model in (policy, reference)
    )  # (pairs, 2) each: chosen, rejected
    gains = said - before
    rewards = beta * gains
    for i, (row, ids) in enumerate(zip(examples.rows.tolist(), examples.ids)):
        line: dict = {"row": row}
        for side, (answer, tokens) in enumerate((("chosen", ids.chosen), ("rejected", ids.rejected))):
            if tokens:
                line |= {f"rewards/{answer}": _rounded(rewards[i, side]), f"logps/{answer}": _rounded(said[i, side])}
                line |= {f"reference_logps/{answer}": _rounded(before[i, side]), f"length/{answer}": len(tokens)}
        if ids.rejected:
            log_ratio = float(gains[i, 0] - gains[i, 1])
            wins = "tie" if abs(log_ratio) <= TIE else "chosen" if log_ratio > 0 else "rejected"
            line |= {"rewards/margins": _rounded(rewards[i, 0] - rewards[i, 1]), "wins": wins}
        yield line


def verdict(lines: list[dict], beta: float) -> str:
    """All lines in one."""
    both = [line for line in lines if "wins" in line]
    if not both:
        return (
            f"{len(lines):,} answers, mean reward {fmean(line['rewards/chosen'] for line in lines):.4g} (beta {beta:g})"
        )
    share = fmean({"chosen": 1.0, "tie": 0.5, "rejected": 0.0}[line["wins"]] for line in both)
    margin = fmean(line["rewards/margins"] for line in both)
    return f"{len(both):,} pairs, chosen wins {share:.3f} of them (a tie is half), mean margin {margin:.4g} (beta {beta:g})"


def _rounded(value: torch.Tensor) -> float:
    return float(f"{value:.7g}")  # all that float32 has
