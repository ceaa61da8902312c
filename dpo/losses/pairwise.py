"""Losses of the difference: how much more the policy raised the chosen answer than the rejected one.

All see one number of a pair, x = beta * log_ratio (of means over tokens in dpo_norm and ipo). What is added to both gains
changes nothing, so chosen and rejected may fall together.

    x            -inf                0                      +inf
    dpo          |x|                 ln 2                   0
    cdpo         (1-e) |x|           ln 2                   e x, least between
    robust       (1-e) |x| / (1-2e)  ln 2                   -e x / (1-2e), never content
    hinge        1 + |x|             1                      0 from x = 1 on
    ipo          (x / beta)^2        1 / (4 beta^2)         (x / beta)^2, least between
    exo          -ln e               2.76 at e = 0.001      -ln(1-e), least between
    discopop     |x|                 0.85, in a pit         0
"""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid, relu, sigmoid

from dpo.losses.scores import Scores


def dpo(s: Scores, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta * log_ratio)

    Rafailov et al. 2023 (arXiv 2305.18290), equation 7

    beta: 0.1 there for dialogue; a higher one stays closer to the reference, since the loss saturates after a smaller
    change of log-probabilities.
    The one to start with. It asks only that the difference grows, so the chosen answer too may become unlikelier, most
    where both answers are nearly the same; and sums of log-probabilities reward length.
    """
    return -logsigmoid(beta * s.log_ratio)


def dpo_norm(s: Scores, beta: float = 5.0) -> Tensor:
    """-log sigmoid(beta * (gain_chosen / chosen_len - gain_rejected / rejected_len))

    Lambert et al. 2024 (Tulu 3, arXiv 2411.15124), section 5

    beta: 5 there. It multiplies nats a token, so 0.1, as dpo/plain.py and the book have it, hardly pulls.
    DPO whose rewards do not grow with length. Fails where beta is copied from DPO.
    """
    return -logsigmoid(beta * (s.gain_chosen / s.chosen_len - s.gain_rejected / s.rejected_len))


def cdpo(s: Scores, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """-(1-e) log sigmoid(beta * log_ratio) - e log sigmoid(-beta * log_ratio), e = label_smoothing

    Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO", equation 3

    beta: as in dpo. label_smoothing: how often a label is wrong; 0.1 is customary, the note names none.
    For noisy labels: the loss is smallest at a finite margin, log((1-e) / e) / beta, and pulls back beyond it. It holds
    back pairs that are right as much as those that are wrong.
    """
    x = beta * s.log_ratio
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def robust(s: Scores, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """(-(1-e) log sigmoid(beta * log_ratio) + e log sigmoid(-beta * log_ratio)) / (1-2e), e = label_smoothing

    Ray Chowdhury et al. 2024 (rDPO, arXiv 2403.00409), section 3.1

    beta: as in dpo. label_smoothing: how often a label is wrong, below 0.5; 0.1 there.
    For noisy labels: averaged over the noise it is the DPO loss of the clean ones. Unbounded below: it falls as
    -e x / (1-2e) for ever, so it may be negative, and margins grow as long as one trains.
    """
    x, e = beta * s.log_ratio, label_smoothing
    return (-(1 - e) * logsigmoid(x) + e * logsigmoid(-x)) / (1 - 2 * e)


def ipo(s: Scores, beta: float = 0.1) -> Tensor:
    """(gain_chosen / chosen_len - gain_rejected / rejected_len - 1 / (2 beta))^2

    Azar et al. 2023 (arXiv 2310.12036), equation 17, on means

    beta: the paper's tau. The loss wants a margin of 1 / (2 beta) nats a token and no more: 5 at 0.1, 0.5
    at 1.
    For pairs that are certain, where DPO would never stop. The paper writes sums and shows bandits; public code has both
    (sums in DPO's own, means in TRL after a word of the authors to it). Means are taken here, so that one beta serves
    answers of any length; a beta of sums does not carry over. The gradient grows with the distance: clip it.
    """
    margin = s.gain_chosen / s.chosen_len - s.gain_rejected / s.rejected_len
    return (margin - 1 / (2 * beta)) ** 2


def hinge(s: Scores, beta: float = 0.05) -> Tensor:
    """max(0, 1 - beta * log_ratio)

    Liu et al. 2023 (RSO, arXiv 2309.06657), after SLiC-HF (Zhao et al. 2023, arXiv 2305.10425)

    beta: 0.05 in RSO. A pair with a log-ratio of 1 / beta teaches nothing more.
    For stopping at a margin. SLiC-HF itself has no reference and adds a likelihood term (hinge + 0.1*sft is near it). A
    pair with a wrong label pulls for ever.
    """
    return relu(1 - beta * s.log_ratio)


def exo(s: Scores, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """p log(p / (1-e)) + (1-p) log((1-p) / e), p = sigmoid(beta * log_ratio), e = label_smoothing

    Ji et al. 2024 (EXO, arXiv 2402.00856), equation 16 for pairs

    beta: 0.1. label_smoothing: 0.001, above 0; the label as a distribution, (1-e, e).
    The divergence the other way round: of the model's preference from the label. It seeks one mode, so a pair that is
    hopeless costs -ln e and is given up, where DPO pulls most. Smallest at a margin of log((1-e) / e) / beta, 69 nats by
    default; the pull at the start is 3.5 times DPO's, so the rate should be lower.
    """
    x, e = beta * s.log_ratio, label_smoothing
    return sigmoid(x) * (logsigmoid(x) - math.log1p(-e)) + sigmoid(-x) * (logsigmoid(-x) - math.log(e))


def discopop(s: Scores, beta: float = 0.05, tau: float = 0.05) -> Tensor:
    """(1-w) * -log sigmoid(x) + w exp(-x), w = sigmoid(x / tau), x = beta * log_ratio

    Lu et al. 2024 (DiscoPOP, arXiv 2406.08414), the loss it calls LRML

    beta: 0.05. tau: 0.05, how sharply the loss changes from the logistic to the exponential one.
    A loss that a language model found by search. It is not convex: at the start it pulls the wrong way, into a pit at
    x = -0.119, and only beyond x = 0.072 up to the right side. With little noise in the gradient pairs stay in the pit.
    """
    x = beta * s.log_ratio
    # w exp(-x) as one exponential: apart they are 0 times infinity at x = -100
    return -sigmoid(-x / tau) * logsigmoid(x) + (logsigmoid(x / tau) - x).exp()
