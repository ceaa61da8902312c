"""The family of preference losses: what was scored goes in, one loss per pair comes out.

loss = parse_loss("dpo(beta=0.2) + 0.5*sft")
terms = loss(scores)                            # {"dpo": (B,), "sft": (B,)}

scores.py      what a loss may see
pairwise.py    of the difference between both answers: dpo, ipo, hinge ...
anchored.py    of each answer against the reference: nca, bco, apo_zero, dpop ...
coupled.py     of the whole step: aot, kto
free.py        without a reference: sft, simpo, orpo, cpo
modifiers.py   keywords that change the others: divergences, margins, weights, length
family.py      all of them by name, and the table that --loss list prints
spec.py        the grammar of --loss
"""

from dpo.losses.family import *  # noqa: F403
from dpo.losses.family import LOSSES
from dpo.losses.scores import Scores
from dpo.losses.spec import Loss, Term, parse_loss

__all__ = ["LOSSES", "Loss", "Scores", "Term", "parse_loss", *LOSSES]
