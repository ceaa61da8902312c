"""What a step says of itself: sums over pairs, added over micro-batches and processes, divided last.

A mean of means would weigh a small last batch too much, and a mean on one process would show that process alone.
Names are TRL's where TRL has one. As there, rewards include beta and are made of sums over an answer's tokens, also
where the loss (ipo, dpo_norm) takes means.
"""

import torch
from torch import Tensor

from dpo.losses import Loss, Scores
from dpo.rows import CHOSEN, PADDING, Batch
from gpt.parallel import World, add_up

TIE = 1e-3  # a log-ratio no larger is rounding, as before the first update, and counts as half a pair ranked right


def sums(scores: Scores, terms: dict[str, Tensor], batch: Batch, weight: Tensor, loss: Loss) -> dict[str, Tensor]:
    """Sums over the pairs of a micro-batch, by the names of the metrics. weight: (B,), 0 for a row that does not count."""
    per_pair = {f"loss/{name}": values for name, values in terms.items()}
    per_pair |= {"logps/chosen": scores.chosen, "length/chosen": scores.chosen_len}
    if loss.needs_rejected:
        per_pair |= {"logps/rejected": scores.rejected, "length/rejected": scores.rejected_len}
        margin, beta = scores.log_ratio, loss.beta
        per_pair |= {
            "rewards/chosen": beta * scores.gain_chosen,
            "rewards/rejected": beta * scores.gain_rejected,
            "rewards/margins": beta * margin,
            "rewards/accuracies": (margin > TIE) + 0.5 * (margin.abs() <= TIE),
        }
    per_pair |= {
        "pairs": torch.ones_like(weight),
        "tokens": (batch.branch != PADDING).sum(-1),
        "answer_tokens": (batch.branch == CHOSEN).sum(-1),
        "places": torch.full_like(weight, batch.branch.shape[1]),
    }
    return {name: (values.detach() * weight).sum() for name, values in per_pair.items()}


def averages(micro_sums: list[dict[str, Tensor]], loss: Loss, world: World) -> dict[str, float]:
    """The metrics of a step or an evaluation from the sums of every micro-batch, over all processes."""
    names = list(micro_sums[0])
    total = torch.stack([torch.stack([one[name] for name in names]) for one in micro_sums]).sum(0)
    found = dict(zip(names, add_up(total, world).tolist()))
    pairs, answer_tokens = found["pairs"], found.pop("answer_tokens")
    places, tokens = found.pop("places"), found["tokens"]
    terms = {term.name: found.pop(f"loss/{term.name}") for term in loss.terms}
    counts = {"pairs": int(found.pop("pairs")), "tokens": int(found.pop("tokens")), "padding": 1 - tokens / places}
    line = {"loss": float(loss.total(terms, pairs, answer_tokens))}
    if len(loss.terms) > 1:
        line |= {
            f"loss/{term.name}": float(Loss((term._replace(weight=1.0),)).total(terms, pairs, answer_tokens))
            for term in loss.terms
        }
    return line | {name: value / pairs for name, value in found.items()} | counts
