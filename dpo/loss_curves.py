"""Each loss as a curve over the margin: what it costs, and how hard it pulls at each of the two answers.

The margin is log_ratio, in nats, split half and half: the chosen answer has risen by margin / 2 since the start, the rejected
one fallen by as much. Both answers have TOKENS tokens and had log-probability START at the start, which only losses that
look at lengths or at the likelihood itself can see. A loss that looks at the whole step sees four other pairs
too, at rest: their policy is the reference still.
"""

import torch
from torch import Tensor

from dpo.losses.family import COUPLED, LOSSES, NO_REFERENCE, own_keywords
from dpo.losses.scores import Scores

TOKENS, START = 10, -20.0
RESTING = (-40.0, -20.0, 20.0, 40.0)  # margins, in policy and reference alike, of the other pairs of the step

# From where to where a curve is worth looking at, in nats times beta: where the loss turns and where it has gone straight.
# Losses of means: times beta over TOKENS. A loss that is no function of beta times a margin: in nats, within what a
# likelihood of at most 1 allows
USUAL = (-6.0, 6.0)
REACH = {
    "hinge": (-2.0, 4.0),
    "ipo": (-0.5, 1.5),
    "exo": (-6.0, 14.0),
    "discopop": (-0.4, 0.4),
    "sppo": (-1.0, 3.0),
    "dpop": (-0.15, 1.5),
    "aot": (-6.0, 9.0),
}
OF_MEANS = {"dpo_norm", "ipo", "simpo"}
WITHIN_LIKELIHOOD = (-36.0, 36.0)


def reach(name: str) -> tuple[float, float]:
    """The margins, in nats, from and to which a loss is drawn."""
    if name in NO_REFERENCE - OF_MEANS:
        return WITHIN_LIKELIHOOD
    unit = (TOKENS if name in OF_MEANS else 1) / own_keywords(name)["beta"]
    low, high = REACH.get(name, USUAL)
    return low * unit, high * unit


def at_margin(margin: float, name: str) -> Scores:
    """A pair whose margin is this, float64; behind it, for a loss that looks at the whole step, the pairs at rest."""
    resting = torch.tensor(RESTING if name in COUPLED else (), dtype=torch.float64)
    start = torch.cat([torch.zeros(1, dtype=torch.float64), resting]) / 2
    moved = torch.zeros_like(start)
    moved[0] = margin / 2
    lengths = torch.full_like(start, TOKENS)
    return Scores(START + start + moved, START - start - moved, START + start, START - start, lengths, lengths)


def curve(name: str, margins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of the pair at these margins and the pulls at its answers, (M,) each.

    A pull is minus the derivative of the whole step's loss with respect to an answer's log-probability: where it is
    above 0 a step of training makes the answer likelier.
    """
    found = []
    for margin in margins.tolist():
        scores = at_margin(margin, name)
        answers = scores.chosen.requires_grad_(), scores.rejected.requires_grad_()
        losses = LOSSES[name](scores)
        pulls = torch.autograd.grad(losses.sum(), answers, allow_unused=True, materialize_grads=True)
        found.append(torch.stack([losses.detach()[0], *(-pull[0] for pull in pulls)]))
    loss, chosen, rejected = torch.stack(found).unbind(1)
    return loss, chosen, rejected
