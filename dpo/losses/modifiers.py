"""What modifies a loss: keywords that many losses take, each a change of the scores before, or of the losses after.

    dpo(divergence=js)                 another divergence from the reference
    dpo(ld_alpha=0.5)                  the longer answer's surplus of tokens counts half
    dpo(margin=true)                   each pair asks for the margin that its row names
    dpo(wpo=true)                      pairs count as much as the policy would write them

They may stand together and are applied in this order. dpo/losses/family.py says which loss takes which.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo.losses.scores import Scores

STEEPEST = 30.0  # exponents are cut here, so that ipo can square what comes of it in float32. Beyond, no gradient


def reverse_kl(gain: Tensor, alpha: float) -> Tensor:
    """DPO's own: the gain."""
    return gain


def forward_kl(gain: Tensor, alpha: float) -> Tensor:
    """1 - e^-gain."""
    return 1 - _exp(-gain)


def js(gain: Tensor, alpha: float) -> Tensor:
    """log 2 - log(1 + e^-gain), of the Jensen-Shannon divergence."""
    return logsigmoid(gain) - logsigmoid(torch.zeros_like(gain))


def alpha_divergence(gain: Tensor, alpha: float) -> Tensor:
    """(1 - e^(-alpha * gain)) / alpha."""
    return (1 - _exp(-alpha * gain)) / alpha


DIVERGENCES = {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "js": js, "alpha": alpha_divergence}


def diverging(s: Scores, divergence: str = "reverse_kl", alpha: float = 0.5) -> Scores:
    """f'(pi / pi_ref) in place of the gain log(pi / pi_ref), which is f' of the reverse KL divergence that DPO is made from.

    Wang et al. 2023 (f-DPO, arXiv 2309.16240)

    divergence: forward_kl, 1 - e^-gain; js, log 2 - log(1 + e^-gain); alpha, (1 - e^(-alpha * gain)) / alpha: close to
    reverse_kl for a small alpha, forward_kl at 1. TRL's alpha is 1 - ours.
    All have slope 1 at the start, but for js, whose 1/2 halves its beta. A chosen answer that became likelier earns little
    more by rising further, and one that fell costs much: forward_kl is e^10 for a loss of 10 nats, so it serves short
    answers only.
    """
    slope = DIVERGENCES[divergence]
    chosen, rejected = slope(s.gain_chosen, alpha), slope(s.gain_rejected, alpha)
    return s._replace(chosen=chosen, rejected=rejected, ref_chosen=chosen * 0, ref_rejected=rejected * 0)


def desensitized(s: Scores, ld_alpha: float) -> Scores:
    """The tokens that the longer answer has more than the shorter one count `ld_alpha` times, in policy and reference.

    Liu et al. 2024 (LD-DPO, arXiv 2409.06411)

    ld_alpha: 1 is the loss itself, 0 looks at as many tokens of both. 0.5 is what TRL calls a strong default.
    For data whose better answers are longer. What the longer answer says at its end is then hardly learned.
    """
    if s.heads is None:
        raise TypeError("ld_alpha needs Scores.heads")
    chosen, rejected, ref_chosen, ref_rejected = s.heads + ld_alpha * (torch.stack(s[:4]) - s.heads)
    return s._replace(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)


def widened(s: Scores, beta: float) -> Scores:
    """beta * log_ratio less the margin that the data asks for.

    Amini et al. 2024 (ODPO, arXiv 2402.10571); Touvron et al. 2023 (Llama 2, arXiv 2307.09288) for reward models

    The field `margin` of each row, in units of rewards (nats times beta). ODPO takes the logarithm of a difference of
    scores, Llama 2 steps from 0 to 1 or 3.
    For preferences that differ in strength.
    """
    if s.margin is None:
        raise TypeError("margin needs Scores.margin")
    return s._replace(ref_chosen=s.ref_chosen + s.margin / beta)


def weighted(losses: Tensor, s: Scores) -> Tensor:
    """The loss times the likelihood, a token, that the policy writes both answers itself; at most 1, without gradient.

    Zhou et al. 2024 (WPO, arXiv 2406.11827), as its authors run it

    The weight is exp(mean over tokens of log p - log sum p^2), of both answers: 1 where the policy is sure of every token,
    or of none. Of what it samples itself p / sum p^2 is 1 on average, so the weight of an answer, a geometric mean, is
    below. It is made where the scores are (dpo/step.py). TRL does not cut it at 1.
    For answers that another model wrote: what the policy would never say counts less. So it learns less from them,
    and the sum is not scaled back.
    """
    if s.weight is None:
        raise TypeError("wpo needs Scores.weight")
    return losses * s.weight


def _exp(x: Tensor) -> Tensor:
    return x.clamp(max=STEEPEST).exp()
