"""How far a policy is from its reference: their divergence, estimated over answers that the policy itself draws.

    KL(pi || pi_ref) = the mean of log pi(y|x) - log pi_ref(y|x) over prompts x and answers y drawn from pi(y|x)

It is what Rafailov et al. 2023 (arXiv 2305.18290, equation 3) weigh against reward. The log-ratio is summed over the
answer's tokens, end-of-text included, in nats. Answers are drawn at temperature 1 from all tokens: from any other
distribution the mean is no divergence. Each model reads each answer in one forward pass.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from dpo.forward import Way, ask
from dpo.order import Limit
from dpo.rows import Ids, answer_sums
from gpt.answers import together
from gpt.generate import generate
from gpt.model import GPT
from gpt.sampling import Sampling


class Divergence(NamedTuple):
    """An estimate in nats, and the standard error of it, which one answer alone does not tell."""

    mean: float
    error: float | None


def sampled_kl(
    policy: GPT, reference: GPT, prompts: Sequence[list[int]], max_new: int, end_of_text: int, way: Way, seed: int = 0
) -> Divergence:
    """The divergence, from one answer to each prompt. Both models must be on the device, and are put in eval mode.

    An answer that has not ended after `max_new` tokens counts as far as it goes, so where answers do not end the estimate
    is of those tokens only, and low. A prompt too long for the context loses its beginning.
    """
    ratios = log_ratios(policy, reference, sampled(policy, prompts, max_new, end_of_text, seed), way).double()
    error = float(ratios.std() / len(ratios) ** 0.5) if len(ratios) > 1 else None
    return Divergence(float(ratios.mean()), error)


def sampled(model: GPT, prompts: Sequence[list[int]], max_new: int, end_of_text: int, seed: int) -> list[Ids]:
    """An answer to each prompt, drawn at temperature 1, as a row with one answer."""
    cut = [prompt[-(model.config.n_positions - max_new) :] for prompt in prompts]
    found: dict[int, Ids] = {}
    for some in tqdm(together(cut, max_new, model.config), desc="sampling", unit="batch", leave=False, delay=1):
        seeds = [seed * 1_000_003 + i for i in some]
        news = generate(model.eval(), [cut[i] for i in some], max_new, [end_of_text], Sampling(temperature=1.0), seeds)
        found |= {i: Ids(cut[i], new, []) for i, new in zip(some, news)}
    return [found[i] for i in range(len(cut))]


@torch.no_grad()
def log_ratios(policy: GPT, reference: GPT, answers: Sequence[Ids], way: Way) -> Tensor:
    """log pi(y|x) - log pi_ref(y|x) of each answer, (answers,): the sums over its tokens."""
    found = torch.zeros(len(answers))
    for some in _batches(answers, way.limit):
        said = [ask(model.eval(), answers, some, way) for model in (policy, reference)]
        here, there = (answer_sums(logps, batch)[0] for logps, _, batch in said)
        found[some] = (here - there).cpu()
    return found


def _batches(answers: Sequence[Ids], limit: Limit) -> Iterator[list[int]]:
    """The answers' numbers in batches within `limit`."""
    some: list[int] = []
    for i, ids in enumerate(answers):
        if some and (len(some) == limit.pairs or ids.length + sum(answers[j].length for j in some) > limit.tokens):
            yield some
            some = []
        some.append(i)
    yield some
