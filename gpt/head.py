"""log p(target) from what the last layer says: the product with the vocabulary, and its softmax in float32.

The largest product of a small GPT, and the largest thing in memory: (N, V) logits, 200 KB a place in float32 for
GPT-2. Here they are kept once, in the precision of the product, and become their own gradient in place. Where even
that is too much, places are taken in parts, and the backward pass computes the logits again.

GPT-2's logits have a large part in common (they lie around -80), which a softmax does not see but bfloat16, with its
8 bits, rounds by. So in bfloat16 the mean row is taken from the matrix first: it adds the same to every logit of a
place. The gradient stays as it is, since a softmax's gradients sum to 0 over the vocabulary.

Shapes: N places that have a target, C channels, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST = 512 * 2**20  # bytes of logits that are held at once
ROWS = 64  # places whose softmax is taken at once: in float32 they fit a processor's cache
COLUMNS = 8192  # rows of the matrix that are converted, or whose gradient is made, at once


def target_logps(x: Tensor, weight: Tensor, targets: Tensor, most: int = MOST) -> Tensor:
    """log softmax(x weight^T) at the targets, (N,) float32. x: (N, C). weight: (V, C). targets: (N,).

    Products run in autocast's precision, or in x's own. most: bytes of logits above which they are computed again for
    the backward pass.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        return _TargetLogps.apply(x, weight, targets, dtype, most)


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, most: int) -> Tensor:
        matrix = weight if weight.dtype is dtype else _centred(weight, dtype)
        ctx.at_once = max(1, most // (len(matrix) * dtype.itemsize))
        h, exact = x.to(dtype), torch.promote_types(dtype, torch.float32)
        normal = torch.empty(len(x), dtype=exact, device=x.device)
        logps = torch.empty_like(normal)
        logits = None
        for part in _parts(len(x), ctx.at_once):
            logits = h[part] @ matrix.T
            for rows in _parts(len(logits), ROWS):
                normal[part][rows] = torch.logsumexp(logits[rows].to(exact), dim=-1)
            logps[part] = logits.gather(1, targets[part, None])[:, 0].to(exact) - normal[part]
        ctx.save_for_backward(h, matrix, targets, normal, logits if len(x) <= ctx.at_once else None)
        ctx.dtypes = x.dtype, weight.dtype
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        h, matrix, targets, normal, kept = ctx.saved_tensors
        dx = torch.empty(h.shape, dtype=ctx.dtypes[0], device=h.device)
        wanted = ctx.needs_input_grad[1]
        dw = torch.empty(matrix.shape, dtype=ctx.dtypes[1], device=h.device) if wanted else None
        if wanted and not len(h):
            dw.zero_()
        for part in _parts(len(h), ctx.at_once):
            logits = h[part] @ matrix.T if kept is None else kept
            for rows in _parts(len(logits), ROWS):
                p = (logits[rows].to(normal.dtype) - normal[part][rows, None]).exp_()
                p.mul_(-gradient[part][rows, None])
                p.scatter_add_(1, targets[part][rows, None], gradient[part][rows, None])
                logits[rows] = p  # d(sum of gradient x log p) / d(logits), in their place
            dx[part] = logits @ matrix
            for columns in _parts(len(matrix), COLUMNS) if wanted else ():
                product = logits[:, columns].T @ h[part]
                dw[columns].add_(product) if part.start else dw[columns].copy_(product)
        return dx, dw, None, None, None


def _centred(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix less its mean row, converted in parts: a whole copy in float32 would be the step's largest tensor."""
    mean = weight.mean(0)
    matrix = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for rows in _parts(len(weight), COLUMNS):
        matrix[rows] = weight[rows] - mean
    return matrix


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
