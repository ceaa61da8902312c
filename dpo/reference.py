"""The reference's log-probabilities: computed once, before training, by every process its share.

The reference does not change, so neither do its numbers. One pass without gradients over the pairs that the run will
meet stands in for a second model in memory and a second forward pass in every step.
"""

import torch
from torch import Tensor
from tqdm import tqdm

from dpo.order import micro_batches
from dpo.rows import Ids, answer_sums, batch_of, token_logps
from gpt.model import GPT
from gpt.parallel import World, add_up


@torch.no_grad()
def reference_scores(model: GPT, pairs: list[Ids], wanted: list[int], micro: int, autocast, world: World) -> Tensor:
    """log pi_ref of each pair's answers, (len(pairs), 2) float32 on the CPU: chosen, rejected. Rows not in `wanted` are 0.

    model: the reference itself; it is put in eval mode. autocast: the context in which the policy too is asked, so that
    both take the same numeric path.
    """
    model.eval()
    scores = torch.zeros(len(pairs), 2, device=world.device)
    mine = micro_batches(wanted, pairs, 2 * micro, world)  # no gradients to keep: twice the rows fit
    for some in tqdm(mine, desc="reference", unit="batch", disable=not world.is_main or not mine, leave=False):
        if some:
            batch = batch_of(pairs, some).to(world.device)
            with autocast():
                logp = token_logps(model, batch)
            scores[some] = torch.stack(answer_sums(logp, batch.branch), dim=1)
    return add_up(scores, world).cpu()
