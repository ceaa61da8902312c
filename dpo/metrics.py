"""What a step says of itself: sums over pairs, added over micro-batches and processes, divided last.

A mean of means would weigh a small last batch too much, and a mean on one process would show that process alone.
Names are TRL's where TRL has one. As there, rewards include beta and are made of sums over an answer's tokens, also
where the loss (ipo, dpo_norm) takes means.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dpo.losses import Loss, Scores
from dpo.rows import Batch
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
    places = batch.tokens.shape[1]
    per_pair |= {
        "pairs": torch.ones_like(weight),
        "tokens": batch.lengths,
        "answer_tokens": scores.chosen_len,
        "places": torch.full_like(weight, places / batch.pairs),
        "empty": torch.full_like(weight, batch.padding / batch.pairs),
    }
    return {name: (values.detach() * weight).sum() for name, values in per_pair.items()}


class Totals(NamedTuple):
    """Sums over all pairs of a step or an evaluation, by name. They are on the device until somebody reads them."""

    names: list[str]
    values: Tensor

    @classmethod
    def of(cls, micro_sums: list[dict[str, Tensor]], world: World) -> "Totals":
        """The sums of every micro-batch, over all processes."""
        names = list(micro_sums[0])
        total = torch.stack([torch.stack([one[name] for name in names]) for one in micro_sums]).sum(0)
        return cls(names, add_up(total, world))

    @property
    def sound(self) -> Tensor:
        """Whether every loss is finite."""
        losses = [value for name, value in zip(self.names, self.values) if name.startswith("loss/")]
        return torch.stack(losses).isfinite().all()

    def averages(self, loss: Loss) -> dict[str, float]:
        """The metrics. A GPU is waited for."""
        found = dict(zip(self.names, self.values.tolist()))
        pairs, answer_tokens, padding = (
            found["pairs"],
            found.pop("answer_tokens"),
            found.pop("empty") / found.pop("places"),
        )
        terms = {term.name: found.pop(f"loss/{term.name}") for term in loss.terms}
        counts = {"pairs": int(found.pop("pairs")), "tokens": int(found.pop("tokens")), "padding": padding}
        line = {"loss": float(loss.total(terms, pairs, answer_tokens))}
        if len(loss.terms) > 1:
            line |= {
                f"loss/{term.name}": float(Loss((term._replace(weight=1.0),)).total(terms, pairs, answer_tokens))
                for term in loss.terms
            }
        return line | {name: value / pairs for name, value in found.items()} | counts
