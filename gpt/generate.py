"""Answers from a model, many prompts at once, with a key-value cache that belongs to the caller.

Prompts of different lengths are padded at the left, so that every row writes its next token in the same column:

    tokens      .  . 10 11 | 20 21          positions  0 0 0 1 | 2 3
               12 13 14 15 | 30  0                     0 1 2 3 | 4 5

The cache keeps the keys and values of all columns so far, so each further token costs one column. A row that has
finished leaves the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt.model import GPT


class LayerCache:
    """Keys and values of one layer for all columns so far, (B, H, columns, D)."""

    def __init__(self):
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    end_of_text: int | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The continuation of each prompt: at most `max_new` ids, ending with `end_of_text` where the model said it.

    temperature 0 is greedy; above, tokens are sampled with `generator`. Raises ValueError for an empty prompt, or one
    that leaves no room for max_new tokens within the model's positions.
    """
    if not prompts:
        return []
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    if int(lengths.min()) < 1:
        raise ValueError("a prompt has no tokens")
    if width + max_new > model.config.n_positions:
        raise ValueError(
            f"a prompt of {width} tokens and {max_new} new ones exceed the model's {model.config.n_positions} positions"
        )
    device = next(model.parameters()).device
    padding = (width - lengths).to(device)  # (B,) columns before each prompt
    tokens = torch.tensor(
        [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )  # (B, width)
    caches = [LayerCache() for _ in range(model.config.n_layer)]
    answers: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=device)  # which prompt each row of the batch still works on
    for column in range(width, width + max_new):
        T = tokens.shape[1]  # width at first, then 1
        columns = torch.arange(column, device=device)
        queries = columns[-T:, None]
        mask = ((columns <= queries) & (columns >= padding[:, None, None])) | (columns == queries)  # (B, T, column)
        positions = (columns[-T:] - padding[:, None]).clamp(min=0)  # (B, T)
        logits = model.lm_head(model.hidden(tokens, positions, mask[:, None], caches)[:, -1]).float()  # (B, V)
        if temperature > 0:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(1)
        else:
            chosen = logits.argmax(-1)
        for row, token in zip(rows.tolist(), chosen.tolist()):
            answers[row].append(token)
        going = chosen != end_of_text if end_of_text is not None else torch.ones_like(chosen, dtype=torch.bool)
        if not going.all():
            rows, padding, chosen = rows[going], padding[going], chosen[going]
            for cache in caches:
                cache.keep(going)
            if not len(rows):
                break
        tokens = chosen[:, None]
    return answers
