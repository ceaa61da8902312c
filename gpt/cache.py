"""Keys and values that were computed already. They belong to the caller of the model, never to the model.

kept        one tensor for each layer, (keys and values, B, H, columns, D), zeros at first
Prompts     hands a layer its part while prompts are read, NextTokens while each row gets one token more
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Prompts(NamedTuple):
    """The cache of one layer while prompts are read: each row of the pass is kept from column 0."""

    kept: Tensor
    rows: slice

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (rows, H, T, D) of each; they are all there is to look at."""
        self.kept[0, self.rows, :, : keys.shape[2]] = keys
        self.kept[1, self.rows, :, : keys.shape[2]] = values
        return keys, values


class NextTokens(NamedTuple):
    """The cache of one layer while each row of the batch gets one token more, at its own column."""

    kept: Tensor
    columns: Tensor  # (B,)
    end: int  # behind the last of them

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (B, H, 1, D) of each; return all that is kept of these rows, (B, H, end, D)."""
        rows = torch.arange(len(keys), device=keys.device)
        self.kept[0, rows, :, self.columns] = keys[:, :, 0].to(self.kept.dtype)
        self.kept[1, rows, :, self.columns] = values[:, :, 0].to(self.kept.dtype)
        return self.kept[0, : len(keys), :, : self.end], self.kept[1, : len(keys), :, : self.end]
