"""log p(target) from what the last layer says: the product with the vocabulary, and its softmax in float32.

The largest product of a small GPT, and the largest thing in memory: (N, V) logits, 200 KB a place in float32 for
GPT-2. Here they are kept once, in the precision of the product, and become their own gradient in place. Where even
that is too much, places are taken in parts, and the backward pass computes the logits again.

GPT-2's logits have a large part in common (they lie around -80), which a softmax does not see but bfloat16, with its
8 bits, rounds by. So in bfloat16 the mean row (of a sample, which is near enough) is taken from the matrix first: any row
would do, since it adds the same to every logit of a place. The gradient stays as it is, since a softmax's gradients sum
to 0 over the vocabulary.

A tied matrix is the first thing that a forward pass uses and the last, so its gradient has two parts: of every row from
the head, of the few rows that were looked up from the embedding. Autograd would hold the first, as large as the matrix,
through the whole backward pass, and copy it to add the second. Here the head leaves what its part is made of (Tied), and
the embedding, whose turn comes last, makes the whole.

Shapes: N places that are asked, S tokens they are asked for, C channels, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

MOST = 512 * 2**20  # bytes of logits that are held at once
ROWS = 64  # places whose softmax is taken at once: in float32 they fit a processor's cache
COLUMNS = 1024  # rows of the matrix that are converted, or whose gradient is made, at once: they too
TIMES = 16  # as many of both on a GPU, where every turn is a few kernels to be started
SAMPLED = 64  # one row in so many is asked for the mean


class Tied:
    """What the head leaves for the gradient of the matrix that it shares with the embedding: factors, or their product."""

    def __init__(self):
        self.factors: tuple[Tensor, Tensor] | None = None  # (N, V) and (N, C)
        self.made: Tensor | None = None  # (V, C)


def look_up(tokens: Tensor, weight: Tensor, tied: Tied) -> Tensor:
    """weight[tokens], for a matrix that `target_logps` with the same `tied` will use too."""
    return _LookUp.apply(tokens, weight, tied)


class Targets(NamedTuple):
    """The tokens whose log-probability is asked for. A place may be asked for several, where lines of text part."""

    places: Tensor  # (N,): where in the batch, counted through all rows
    of: Tensor  # (S,): for each token which of these places
    tokens: Tensor  # (S,)


def target_logps(
    x: Tensor,
    weight: Tensor,
    tokens: Tensor,
    of: Tensor | None = None,
    most: int = MOST,
    tied: Tied | None = None,
    squares: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(x weight^T) at the tokens, (S,) float32. x: (N, C). weight: (V, C). tokens: (S,).

    of: (S,) the row of x that each token is asked of; default: one of each, in order. squares: that and the logarithm of
    the sum of p^2 over the vocabulary, (S,), which has no gradient.

    Products run in autocast's precision, or in x's own. most: bytes of logits above which they are computed again for the
    backward pass. tied: as given to `look_up`, which then makes the gradient of weight.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        of = torch.arange(len(x), device=x.device) if of is None else of
        return _TargetLogps.apply(x, weight.detach() if tied else weight, tokens, of, dtype, tied, most, squares)


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, tokens: Tensor, of: Tensor, dtype, tied, most: int, squares=False):
        matrix = weight if weight.dtype is dtype else _centred(weight, dtype)
        ctx.at_once = max(1, most // (len(matrix) * dtype.itemsize))
        h, exact = x.to(dtype), torch.promote_types(dtype, torch.float32)
        normal = torch.empty(len(x), dtype=exact, device=x.device)
        picked = torch.zeros(len(tokens), dtype=exact, device=x.device)
        doubled = torch.empty_like(normal if squares else normal[:0])
        logits = None
        for part in _parts(len(x), ctx.at_once):
            logits = None  # the part before goes first
            logits = h[part] @ matrix.T
            for rows in _turns(len(logits), ROWS, x.device):
                normal[part][rows] = torch.logsumexp(logits[rows].to(exact), dim=-1)
                if squares:
                    doubled[part][rows] = torch.logsumexp(2 * logits[rows].to(exact), dim=-1)
            inside, row = _within(of, part)
            picked += torch.where(inside, logits[row, tokens].to(exact), 0)
        ctx.save_for_backward(h, matrix, tokens, of, normal, logits if len(x) <= ctx.at_once else None)
        ctx.dtypes, ctx.tied = (x.dtype, weight.dtype), tied
        if not squares:
            return picked - normal[of]
        of_squares = (doubled - 2 * normal)[of]
        ctx.mark_non_differentiable(of_squares)
        return picked - normal[of], of_squares

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _=None):
        h, matrix, tokens, of, normal, kept = ctx.saved_tensors
        # d(sum of gradient x log p) / d(logits) is gradient at the token, less p times the gradients of all its place's tokens
        total = torch.zeros_like(normal).index_add_(0, of, gradient)
        dx = torch.empty(h.shape, dtype=ctx.dtypes[0], device=h.device)
        dw = None
        for part in _parts(len(h), ctx.at_once):
            logits = h[part] @ matrix.T if kept is None else kept
            for rows in _turns(len(logits), ROWS, h.device):
                p = (logits[rows].to(normal.dtype) - normal[part][rows, None]).exp_().mul_(-total[part][rows, None])
                inside, row = _within(of, slice(part.start + rows.start, part.start + rows.stop))
                logits[rows] = p.index_put_((row, tokens), torch.where(inside, gradient, 0), accumulate=True)
            dx[part] = logits @ matrix
            if ctx.tied and kept is not None:
                ctx.tied.factors = logits, h
            elif ctx.tied or ctx.needs_input_grad[1]:
                dw = _product(logits, h[part], ctx.dtypes[1], dw)
            del logits, p  # before the next part is made
        if ctx.tied:
            ctx.tied.made, dw = dw, None
        elif ctx.needs_input_grad[1] and dw is None:  # no place has a target
            dw = torch.zeros_like(matrix, dtype=ctx.dtypes[1])
        return dx, dw, *[None] * 6


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, weight: Tensor, tied: Tied) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.shape, ctx.dtype, ctx.tied = weight.shape, weight.dtype, tied
        return embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        if not ctx.needs_input_grad[1]:
            return None, None, None
        (tokens,) = ctx.saved_tensors
        factors, dw = ctx.tied.factors, ctx.tied.made
        ctx.tied.factors = ctx.tied.made = None  # or the logits would live as long as what was made of them
        if factors:
            logits, h = factors
            dw = _product(logits, h, ctx.dtype)
        if dw is None:
            dw = torch.zeros(ctx.shape, dtype=ctx.dtype, device=gradient.device)
        dw.index_add_(0, tokens.flatten(), gradient.flatten(0, -2).to(ctx.dtype))
        return None, dw, None


def _product(left: Tensor, right: Tensor, dtype: torch.dtype, onto: Tensor | None = None) -> Tensor:
    """left^T right, (V, C), added to `onto` where there is one; converted in parts."""
    found = torch.empty(left.shape[1], right.shape[1], dtype=dtype, device=left.device) if onto is None else onto
    for columns in _turns(left.shape[1], COLUMNS, left.device):
        product = left[:, columns].T @ right
        found[columns].copy_(product) if onto is None else found[columns].add_(product)
    return found


def _centred(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix less its mean row, converted in parts: a whole copy in float32 would be the step's largest tensor."""
    mean = weight[::SAMPLED].mean(0)
    matrix = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for rows in _turns(len(weight), COLUMNS, weight.device):
        matrix[rows] = weight[rows] - mean
    return matrix


def _within(of: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Which tokens are asked of these rows, and of which of them; for the others of any. No GPU is waited for."""
    row = of - rows.start
    last = rows.stop - rows.start - 1
    return (row >= 0) & (row <= last), row.clamp(0, last)


def _turns(count: int, size: int, device: torch.device) -> list[slice]:
    """Parts of `size` on a processor, of TIMES as many elsewhere."""
    return _parts(count, size if device.type == "cpu" else TIMES * size)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
