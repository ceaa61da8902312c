"""Losses with an anchor: each answer is held against the reference by itself, so absolute likelihoods count.

With r_w = beta * gain_chosen and r_l = beta * gain_rejected, the rewards of Rafailov et al. 2023. Where the losses of the
difference (dpo/losses/pairwise.py) are content when both answers fall and the rejected one falls faster, these are not.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid, relu, sigmoid

from dpo.losses.scores import Scores


def nca(s: Scores, beta: float = 0.01) -> Tensor:
    """-log sigmoid(r_w) - 0.5 log sigmoid(-r_w) - 0.5 log sigmoid(-r_l), r = beta * gain

    Chen et al. 2024 (Noise Contrastive Alignment, arXiv 2402.05369), its pair of data

    beta: 0.01 there; 0.1 for a large model.
    For keeping the chosen answer likely: its reward is drawn to ln 2, and back where it is above. The rejected answer
    is pushed down without end.
    """
    chosen, rejected = beta * s.gain_chosen, beta * s.gain_rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco(s: Scores, beta: float = 0.01, delta: float = 0.0) -> Tensor:
    """-log sigmoid(r_w - delta) - log sigmoid(delta - r_l), r = beta * gain

    Jung et al. 2024 (BCO, arXiv 2404.04656)

    beta: 0.01. delta: the shift of rewards; 0, as TRL has it. The paper moves it along with the mean reward of both
    answers, which makes a step depend on all before it; whatever it is, the loss is an upper bound of DPO's.
    A classifier that tells good answers from bad. Where all rewards fall, with delta at 0, only chosen answers teach.
    """
    return -logsigmoid(beta * s.gain_chosen - delta) - logsigmoid(delta - beta * s.gain_rejected)


def sppo(s: Scores, beta: float = 0.001) -> Tensor:
    """(gain_chosen - 1 / (2 beta))^2 + (gain_rejected + 1 / (2 beta))^2

    Wu et al. 2024 (SPPO, arXiv 2405.00675), equation 4.7 with a win rate of 1 and 0

    beta: 1 / eta of the paper, whose eta is 1000.
    For self-play in rounds, the reference being the policy of the round before. Both answers have a target of their
    own, 500 nats away by default, so in one round the loss is nearly a straight line of slope 1 / beta: clip the
    gradient. The sum of both squares, as in TRL; the authors' code halves it.
    """
    target = 1 / (2 * beta)
    return (s.gain_chosen - target) ** 2 + (s.gain_rejected + target) ** 2


def apo_zero(s: Scores, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(r_w) + sigmoid(r_l), r = beta * gain

    D'Oosterlinck et al. 2024 (APO, arXiv 2408.06266), equation 7, plus 1

    beta: 0.1.
    For chosen answers better than what the model writes: they rise, the rejected ones fall. Both ends saturate, so a
    chosen answer far below the reference is given up.
    """
    return 1 - sigmoid(beta * s.gain_chosen) + sigmoid(beta * s.gain_rejected)


def apo_down(s: Scores, beta: float = 0.1) -> Tensor:
    """sigmoid(r_w) + 1 - sigmoid(r_w - r_l), r = beta * gain

    D'Oosterlinck et al. 2024 (APO, arXiv 2408.06266), equation 8, plus 1

    beta: 0.1.
    For chosen answers worse than what the model writes: both fall, the rejected ones faster. At the start the chosen
    answer has no gradient at all. With good chosen answers it unlearns them.
    """
    return sigmoid(beta * s.gain_chosen) + 1 - sigmoid(beta * s.log_ratio)


def dpop(s: Scores, beta: float = 0.3, penalty: float = 50.0) -> Tensor:
    """-log sigmoid(beta * (log_ratio - penalty * max(0, -gain_chosen)))

    Pal et al. 2024 (Smaug, arXiv 2402.13228), DPO-Positive

    beta: 0.3. penalty: the paper's lambda, 50; inside beta, and subtracted: it counts where the chosen answer became
    unlikelier than it was.
    For pairs that differ in few tokens, as in mathematics, where DPO lowers both. Where the chosen answer has fallen it
    outweighs the rejected one 51 to 1: nearly SFT. The kink lies at the start, where the first step is DPO's.
    """
    return -logsigmoid(beta * (s.log_ratio - penalty * relu(-s.gain_chosen)))
