"""Who may look at whom, in a row that holds more than one line of text, and two ways to compute it.

A row is cut into pieces that form a tree. Two questions that begin alike, the second with two answers:

    tokens      10 11 | 12 20 | 13 | 30 31 | 40
    piece         0   |   1   | 2  |   3   |  4
    parent      none  |   0   | 0  |   2   |  2         10 11 13 30 31 is one line of text, 10 11 12 20 another

    may look:   the key's piece is the query's own or one above it, and the key is not later

A line of text is a path from the root, so every token sees exactly what it would see in a row of its own, and what
lines have in common is computed once.

    look = looking(tree, device, dtype)       # once for a row
    model(tokens, targets, positions, look)   # each layer calls look(q, k, v, dropout, scale)

Shapes: H heads, T tokens of the row, D channels of a head, K keys of all pieces, those above counted for each.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpt.memory import sent

TOGETHER = 128  # tokens: larger branches spend more on what their mask forbids than a call costs

# What the ragged kernel, Flash Attention's, takes
NUMBERS = (torch.bfloat16, torch.float16)
CHANNELS = range(8, 193, 8)  # of a head; up to 256 on some GPUs only
CAPABILITY = (8, 0)  # of the GPU: Ampere's, or newer


class Tree(NamedTuple):
    """The tokens of each piece, in the order of the row, and the piece that each hangs from.

    The first piece is the root: it hangs from none (-1). What hangs from a piece follows it at once. Pieces may be empty.
    """

    sizes: tuple[int, ...]
    parents: tuple[int, ...]

    @property
    def paths(self) -> list[list[int]]:
        """For each piece the ones above it, from the root, and itself."""
        found: list[list[int]] = []
        for piece, parent in enumerate(self.parents):
            found.append([*(found[parent] if piece else ()), piece])
        return found

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first token of each piece and the one behind its last."""
        ends = list(accumulate(self.sizes))
        return list(zip([0, *ends], ends))


def may_look(tree: Tree) -> Tensor:
    """The definition: (T, T) booleans, query by key. Both ways below are held to it."""
    on_path = torch.zeros(len(tree.sizes), len(tree.sizes), dtype=torch.bool)
    for piece, path in enumerate(tree.paths):
        on_path[piece, path] = True
    piece = torch.repeat_interleave(torch.arange(len(tree.sizes)), torch.tensor(tree.sizes))  # (T,)
    return on_path[piece][:, piece].tril()


def looking(tree: Tree, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The fastest way on this device: a function (q, k, v, dropout, scale) -> y, all (1, H, T, D).

    dtype: what matrix products run in.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    if able and dtype in NUMBERS and ragged_kernel() is not None:
        return partial(by_path, lines(tree, device), cache(partial(branches, tree, device)))
    return partial(by_branch, branches(tree, device))


class Branch(NamedTuple):
    """Pieces that follow each other and are asked in one call: one piece alone, or one with all that hangs from it."""

    size: int  # tokens
    above: tuple[int, ...]  # the branches, each a piece alone, that all of them may look at as a whole
    mask: Tensor  # (size, tokens above + size): by keys of those, then its own


def branches(tree: Tree, device: torch.device | str = "cpu") -> list[Branch]:
    """The tree cut into calls: a piece with all that hangs from it where that is at most TOGETHER tokens, else alone."""
    found: list[Branch] = []
    place: dict[int, int] = {}  # of a piece that stands alone: its branch
    piece, paths = 0, tree.paths
    while piece < len(tree.sizes):
        after = next((p for p in range(piece + 1, len(tree.sizes)) if piece not in paths[p]), len(tree.sizes))
        if sum(tree.sizes[piece:after]) > TOGETHER:
            after, place[piece] = piece + 1, len(found)
        parents = (-1, *(parent - piece for parent in tree.parents[piece + 1 : after]))
        own = may_look(Tree(tree.sizes[piece:after], parents))
        above = [p for p in paths[piece][:-1] if tree.sizes[p]]
        seen = torch.ones(len(own), sum(tree.sizes[p] for p in above), dtype=torch.bool)
        if len(own) or piece in place:
            found.append(Branch(len(own), tuple(place[p] for p in above), sent(torch.cat([seen, own], dim=1), device)))
        piece = after
    return found


def by_branch(branches: list[Branch], q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float) -> Tensor:
    """A call for each branch, each as long as it is, so that nothing is padded.

    In float32 whatever the other products are: on CPU that is the faster of the two (tests/bench/LOG.md).
    """
    with torch.autocast(q.device.type, enabled=False):
        qs, ks, vs = (part.float().split([branch.size for branch in branches], dim=2) for part in (q, k, v))
        found = []
        for i, (size, above, mask) in enumerate(branches):
            if size:
                keys, values = (torch.cat([part[j] for j in (*above, i)], dim=2) for part in (ks, vs))
                found.append(scaled_dot_product_attention(qs[i], keys, values, mask, dropout, scale=scale))
        return torch.cat(found, dim=2).to(q.dtype)


class Lines(NamedTuple):
    """Each piece as queries, its path as keys, in the form that kernels for ragged batches take."""

    keys: Tensor  # (K,) places in the row
    query_ends: Tensor  # (pieces + 1,) int32: 0 and the running sums
    key_ends: Tensor
    most_queries: int
    most_keys: int


def lines(tree: Tree, device: torch.device | str = "cpu") -> Lines:
    """The lines of text of a row. Empty pieces ask nothing."""
    spans, paths = tree.spans, tree.paths
    asking = [piece for piece, size in enumerate(tree.sizes) if size]
    keys = [[place for above in paths[piece] for place in range(*spans[above])] for piece in asking]
    queries, looked_at = [tree.sizes[piece] for piece in asking], [len(places) for places in keys]
    places = torch.tensor([place for line in keys for place in line])
    ends = [torch.tensor([0, *accumulate(sizes)], dtype=torch.int32) for sizes in (queries, looked_at)]
    places, query_ends, key_ends = (sent(part, device) for part in (places, *ends))
    return Lines(places, query_ends, key_ends, max(queries), max(looked_at))


@cache
def ragged_kernel() -> Callable | None:
    """torch's call of it; None where torch is older than 2.10, or built without it."""
    try:  # not at the top: it brings torch's compiler along, and so would double the time in which every command starts
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def by_path(lines: Lines, otherwise: Callable, q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float) -> Tensor:
    """One call of the ragged flash kernel. Of fewer queries than keys it takes them for the last: the end of the path.

    otherwise: gives the branches, for what the kernel does not do: dropout, other numbers, heads of another width.
    """
    if dropout or q.dtype not in NUMBERS or q.shape[-1] not in CHANNELS:
        return by_branch(otherwise(), q, k, v, dropout, scale)
    q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))  # (T, H, D)
    q = q * (scale * q.shape[-1] ** 0.5)  # the kernel's own is 1 / sqrt(D), in torch 2.10 the only one
    kernel = ragged_kernel()
    assert kernel is not None
    causal = {"is_causal": True} if "is_causal" in inspect.signature(kernel).parameters else {"window_size": (-1, 0)}
    y = kernel(
        q, k[lines.keys], v[lines.keys], lines.query_ends, lines.key_ends, lines.most_queries, lines.most_keys, **causal
    )
    assert isinstance(y, Tensor)  # nothing beside it was asked for
    return y.transpose(0, 1)[None]
