"""What a loss may see of some pairs: log-probabilities of whole answers, and what is made of them.

With the names of Rafailov et al. 2023 (arXiv 2305.18290), y_w chosen and y_l rejected:

    gain_chosen    = log pi(y_w|x) - log pi_ref(y_w|x)        how much likelier the policy made it
    gain_rejected  = log pi(y_l|x) - log pi_ref(y_l|x)
    log_ratio      = gain_chosen - gain_rejected              0 before the first update
"""

from typing import NamedTuple

from torch import Tensor


class Scores(NamedTuple):
    """What a loss may see of B pairs. Log-probabilities are sums over an answer's tokens, end-of-text included; all (B,).

    ref_chosen and ref_rejected are zeros where no reference is asked; rejected too for rows without a second branch. The
    last three are there when a modifier asks for them (dpo/losses/modifiers.py).
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_len: Tensor
    rejected_len: Tensor
    heads: Tensor | None = None  # (4, B): the first four, over as many tokens as the shorter of both answers has
    weight: Tensor | None = None  # how likely the policy is to write this pair itself, no gradient
    margin: Tensor | None = None  # of the data

    @property
    def gain_chosen(self) -> Tensor:
        return self.chosen - self.ref_chosen

    @property
    def gain_rejected(self) -> Tensor:
        return self.rejected - self.ref_rejected

    @property
    def log_ratio(self) -> Tensor:
        return self.gain_chosen - self.gain_rejected

    @property
    def mean_chosen(self) -> Tensor:
        """log pi(y_w|x) a token."""
        return self.chosen / self.chosen_len

    @property
    def mean_rejected(self) -> Tensor:
        return self.rejected / self.rejected_len
