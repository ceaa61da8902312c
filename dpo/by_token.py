"""Where training acted: what policy and reference say of each answer token of some held-out pairs.

    RUN/tokens.jsonl    {"row": 7, "prompt": "...", "rewards/margins": 1.93,
                         "tokens/chosen": ["Cert", "ainly", "!", ...],
                         "logps/chosen": [-0.2, ...], "reference_logps/chosen": [-1.3, ...], and the same of rejected}

DPO's loss knows sums over whole answers only. Which of their tokens became likelier shows what was learned: a manner, its
first word, an end, or nothing but length.
"""

import codecs
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpo.examples import Examples
from dpo.forward import Way, ask
from dpo.moving import Moving
from dpo.order import micro_batches
from dpo.reference import Reference
from gpt.parallel import add_up
from gpt.tokenizer import Tokenizer

MOST = 200  # pairs: asking about them takes less than a step of training on as many
DIGITS = 4  # behind the point, of a log-probability


@torch.no_grad()
def by_token(
    policy: nn.Module, reference: Reference | Moving, examples: Examples, beta: float, way: Way, tokenizer: Tokenizer
) -> list[dict]:
    """The rows of tokens.jsonl, of at most MOST pairs from all over `examples`. The policy is put in eval mode.

    All processes must take part, and all return the same. Prompts are as the models read them, without what was cut off.
    """
    policy.eval()
    count = min(MOST, len(examples.ids))
    rows = [number * len(examples.ids) // count for number in range(count)]
    sizes = dict(zip(rows, examples.lengths[rows, 1:].sum(1).tolist()))
    starts = dict(zip(rows, torch.tensor([0, *sizes.values()]).cumsum(0).tolist()))
    found = torch.zeros(2, sum(sizes.values()))  # log pi and log pi_ref of every answer token
    for some in micro_batches(rows, examples, way.limit, way.world):
        asked = some or rows[:1]  # as often as the other processes
        said = torch.stack([ask(policy, examples.ids, asked, way)[0].cpu(), reference.of(asked).cpu()])
        for i, part in zip(some, said.split([sizes[i] for i in asked], 1)):
            found[:, starts[i] : starts[i] + sizes[i]] = part
    found = add_up(found.to(way.world.device), way.world).cpu()
    parts = zip(rows, found.split(list(sizes.values()), 1))
    return [_row(i, part, examples, beta, tokenizer) for i, part in parts]


def _row(i: int, said: Tensor, examples: Examples, beta: float, tokenizer: Tokenizer) -> dict:
    """said: (2, S), of chosen and then of rejected."""
    ids = examples.ids[i]
    of_answers = said.split([len(ids.chosen), len(ids.rejected)], 1)
    row = {"row": int(examples.rows[i]), "prompt": tokenizer.decode(ids.prompt)}
    if ids.rejected:
        chosen, rejected = (float((policy - reference).sum()) for policy, reference in of_answers)
        row["rewards/margins"] = round(beta * (chosen - rejected), DIGITS)
    for name, answer, (policy, reference) in zip(("chosen", "rejected"), (ids.chosen, ids.rejected), of_answers):
        if answer:
            row[f"tokens/{name}"] = token_texts(answer, tokenizer)
            row[f"logps/{name}"] = _rounded(policy)
            row[f"reference_logps/{name}"] = _rounded(reference)
    return row


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text of each token, all of which joined are the text of all. A character of several tokens stands at its last."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = len(ids) - 1
    return [decoder.decode(tokenizer.decode_bytes([i]), final=place == last) for place, i in enumerate(ids)]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
