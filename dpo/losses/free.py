"""Losses without a reference: none is loaded, none is computed. Nothing holds the policy near its start but the rate."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo.losses.scores import Scores

CERTAIN = -1e-6  # log p a token above which an answer counts as certain: its odds would be infinite


def sft(s: Scores) -> Tensor:
    """-log pi(y_w), the sum over the step divided by its answer tokens

    maximum likelihood of the chosen answer; added to dpo, Liu et al. 2024 (RPO, arXiv 2405.16436)

    The only loss that is divided by tokens where the others are divided by pairs: a token counts as much in a short
    answer as in a long one. RPO's own code for it sums over an answer, Pang et al. 2024 (arXiv 2404.19733) take its
    mean; their weights are to be multiplied by a length, or not, before they serve here.
    Added to a preference loss it keeps the chosen answer from falling: dpo + 0.2*sft. At a large weight it is SFT.
    """
    return -s.chosen


def simpo(s: Scores, beta: float = 2.0, gamma: float = 0.5) -> Tensor:
    """-log sigmoid(beta * (log pi(y_w) / chosen_len - log pi(y_l) / rejected_len) - gamma)

    Meng et al. 2024 (SimPO, arXiv 2405.14734)

    beta: 2; up to 10 for large models. gamma: the margin asked for, after beta; 0.5 (a quarter of beta).
    What is rewarded is what sampling sees, likelihood a token. With a high rate it forgets what it knew.
    """
    return -logsigmoid(beta * (s.mean_chosen - s.mean_rejected) - gamma)


def orpo(s: Scores, beta: float = 0.1) -> Tensor:
    """-log p_w - beta * log sigmoid(log(p_w / (1-p_w)) - log(p_l / (1-p_l))), p = exp(log pi(y) / length)

    Hong et al. 2024 (ORPO, arXiv 2403.07691)

    beta: the paper's lambda, the weight of the odds; 0.1.
    SFT and preference at once, from a model that was not tuned before. The likelihood is that of the answer, its mean
    over tokens, pair by pair; public code takes the prompt's tokens too, and pools those of a batch. With a small beta the
    rejected answer rises along with the chosen one.
    """
    chosen, rejected = (mean.clamp(max=CERTAIN) for mean in (s.mean_chosen, s.mean_rejected))
    log_odds = chosen - rejected - log_not(chosen) + log_not(rejected)
    return -s.mean_chosen - beta * logsigmoid(log_odds)


def cpo(s: Scores, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """-log sigmoid(beta * (log pi(y_w) - log pi(y_l))) - alpha * log pi(y_w) / chosen_len

    Xu et al. 2024 (CPO, arXiv 2401.08417), with its likelihood term

    beta: 0.1. alpha: weight of the likelihood; 1.
    DPO with a uniform reference, made for translation. The likelihood is a mean over tokens, as in the authors' code,
    though pair by pair; the paper writes a sum. A longer rejected answer makes the first term small before anything is
    learned.
    """
    return -logsigmoid(beta * (s.chosen - s.rejected)) - alpha * s.mean_chosen


def log_not(log_p: Tensor) -> Tensor:
    """log(1 - p) of log p, which must be below 0."""
    return torch.log(-torch.expm1(log_p))
