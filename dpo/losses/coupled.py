"""Losses that look at the whole step: what one pair costs depends on the others.

They are given the pairs of the whole step, over all micro-batches and processes, at once (dpo/step.py), so neither changes
what they compute.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, sigmoid

from dpo.losses.scores import Scores


def aot(s: Scores, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) log sigmoid(beta * d) - e log sigmoid(-beta * d), e = label_smoothing, d = sorted log pi(y_w) - log pi(y_l), less
    sorted log pi_ref(y_w) - log pi_ref(y_l)

    Melnyk et al. 2024 (AOT, arXiv 2406.05882), for pairs

    beta: 0.1, as TRL has it. label_smoothing: e, 0; how often a label is wrong.
    For dominance of the whole distribution of margins over the reference's, quantile by quantile, which is optimal
    transport in one dimension. Good with large batches; one pair alone is DPO.
    """
    margins = s.chosen - s.rejected
    return _transported(margins, s.ref_chosen - s.ref_rejected, beta, label_smoothing)


def aot_unpaired(s: Scores, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) log sigmoid(beta * d) - e log sigmoid(-beta * d), e = label_smoothing, d = sorted gain_chosen less sorted
    gain_rejected

    Melnyk et al. 2024 (AOT, arXiv 2406.05882), unpaired

    beta, label_smoothing: as in aot.
    For answers that are good or bad but not of one prompt: the i-th best chosen against the i-th best rejected. TRL
    called this one aot_pair once.
    """
    return _transported(s.gain_chosen, s.gain_rejected, beta, label_smoothing)


def kto(s: Scores, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Tensor:
    """(desirable * sigmoid(beta * (z_l - gain_chosen)) + undesirable * sigmoid(beta * (gain_rejected - z_w))) / 2, z = max(0,
    mean gain of the step)

    Ethayarajh et al. 2024 (KTO, arXiv 2402.01306), on the halves of pairs

    beta: 0.1. desirable, undesirable: weights of the two halves, 1.
    For answers judged one by one. Both ends saturate, so what is mastered and what is hopeless are left alone. z, which
    has no gradient, stands for the divergence from the reference: of the rejected answers where a chosen one is
    judged, and the other way round, as TRL's former kto_pair had it, with a gradient. The paper takes answers to other
    prompts, which would be a forward pass more; on matched answers z is too high.
    """
    of_chosen, of_rejected = (gain.detach().mean().clamp(min=0) for gain in (s.gain_chosen, s.gain_rejected))
    chosen = desirable * sigmoid(beta * (of_rejected - s.gain_chosen))
    return (chosen + undesirable * sigmoid(beta * (s.gain_rejected - of_chosen))) / 2


def _transported(values: Tensor, others: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The logistic loss of the k-th largest of `values` against the k-th largest of `others`, at the place of the first."""
    places = values.argsort(stable=True)
    against = torch.empty_like(others).index_put((places,), others.sort().values)
    x = beta * (values - against)
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)
