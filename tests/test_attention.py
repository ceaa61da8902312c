"""gpt/attention.py: the picture of its docstring, the mask against its definition, and each way against the mask."""

import re
from itertools import accumulate

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpt import attention as module
from gpt.attention import Tree, branches, by_branch, by_path, lines, looking, may_look

CPU = torch.device("cpu")
H, D = 3, 8


@st.composite
def trees(draw) -> Tree:
    """Any tree of at most nine pieces and at least one token: what hangs from a piece follows it at once."""
    sizes, parents = [draw(st.integers(0, 4))], [-1]
    path = [0]  # of the last piece
    for piece in range(1, draw(st.integers(1, 9))):
        depth = draw(st.integers(0, len(path) - 1))
        parents.append(path[depth])
        sizes.append(draw(st.integers(0, 4)))
        path = [*path[: depth + 1], piece]
    if not sum(sizes):
        sizes[-1] = 1
    return Tree(tuple(sizes), tuple(parents))


def picture() -> tuple[list[int], Tree]:
    """The tokens and the tree that the docstring shows."""

    def cells(name: str) -> list[str]:
        (line,) = re.findall(rf"^ *{name} +(.*)$", module.__doc__, re.MULTILINE)
        return [cell.strip() for cell in re.split(" {4,}", line)[0].split("|")]

    # the cells of `piece` and `parent` stand far apart: whatever stands in them are numbers and one word
    numbers = {
        name: re.search(rf"^ *{name} +([\dnone |]+?)(?: {{8,}}|$)", module.__doc__, re.MULTILINE)[1]
        for name in ("piece", "parent")
    }
    pieces = [int(cell) for cell in numbers["piece"].split("|")]
    parents = [-1 if cell.strip() == "none" else int(cell) for cell in numbers["parent"].split("|")]
    tokens = [[int(token) for token in cell.split()] for cell in cells("tokens")]
    assert pieces == list(range(len(tokens))) and len(parents) == len(tokens)
    return [token for some in tokens for token in some], Tree(tuple(map(len, tokens)), tuple(parents))


def qkv(T: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, H, T, D, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def with_gradients(function, parts: list[Tensor]) -> list[Tensor]:
    """What `function` gives of q, k and v, and the gradients of a weighted sum of it."""
    parts = [part.clone().requires_grad_() for part in parts]
    y = function(*parts)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((weights * y).sum(), parts)]


def by_definition(tree: Tree, parts: list[Tensor], scale: float) -> list[Tensor]:
    """The same with one softmax over the whole row, where what may not be seen is minus infinity."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~may_look(tree), float("-inf"))
        return scores.softmax(-1) @ v

    return with_gradients(attend, parts)


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


# The tree and the mask


def test_the_picture_of_the_docstring_is_a_tree_in_which_the_lines_it_names_are_paths():
    tokens, tree = picture()
    assert tokens == [10, 11, 12, 20, 13, 30, 31, 40]
    assert tree == Tree((2, 2, 1, 2, 1), (-1, 0, 0, 2, 2))
    mask = may_look(tree)
    seen = {tokens[query]: [tokens[key] for key in range(8) if mask[query, key]] for query in range(8)}
    assert seen[31] == [10, 11, 13, 30, 31] and seen[20] == [10, 11, 12, 20]  # the two that the picture names
    assert seen == {
        10: [10],
        11: [10, 11],
        12: [10, 11, 12],
        20: [10, 11, 12, 20],
        13: [10, 11, 13],
        30: [10, 11, 13, 30],
        31: [10, 11, 13, 30, 31],
        40: [10, 11, 13, 40],
    }


@given(trees())
def test_paths_lead_from_the_root_to_the_piece_and_spans_cut_the_row(tree):
    assert [path[-1] for path in tree.paths] == list(range(len(tree.sizes)))
    for path in tree.paths:
        assert path[0] == 0 and all(tree.parents[below] == above for above, below in zip(path, path[1:]))
    assert [after - first for first, after in tree.spans] == list(tree.sizes)
    assert [first for first, _ in tree.spans] == [sum(tree.sizes[:piece]) for piece in range(len(tree.sizes))]


@given(trees())
def test_a_key_is_seen_if_its_piece_is_the_querys_own_or_one_above_it_and_it_is_not_later(tree):
    piece = [number for number, size in enumerate(tree.sizes) for _ in range(size)]
    mask = may_look(tree)
    assert mask.shape == (len(piece), len(piece)) and mask.dtype == torch.bool
    for query in range(len(piece)):
        above, here = set(), piece[query]
        while here >= 0:
            above.add(here)
            here = tree.parents[here]
        for key in range(len(piece)):
            assert mask[query, key] == (key <= query and piece[key] in above)
    assert mask.diagonal().all()  # every query sees something: no softmax is over nothing


# A call for each branch


@pytest.fixture(params=[1, 8, 128])
def together(request, monkeypatch) -> int:
    """The tokens that are asked in one call: a piece alone each time, or some with all below them, or everything."""
    monkeypatch.setattr(module, "TOGETHER", request.param)
    return request.param


anyhow = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # `together`


@anyhow
@given(tree=trees(), scale=st.sampled_from([D**-0.5, 1.0, 0.1]))
def test_by_branch_gives_the_outputs_and_gradients_of_the_mask(together, tree, scale):
    parts = qkv(sum(tree.sizes))
    expected = by_definition(tree, parts, scale)
    parts = [part.float() for part in parts]
    found = with_gradients(lambda *qkv: by_branch(branches(tree), *qkv, 0.0, scale), parts)
    assert {part.dtype for part in found} == {torch.float32}
    assert_same(found, expected, 1e-5)
    dense = with_gradients(
        lambda *qkv: scaled_dot_product_attention(*qkv, may_look(tree)[None, None], scale=scale), parts
    )
    assert_same(found, dense, 1e-5)


@anyhow
@given(tree=trees())
def test_by_branch_in_double_precision_differs_from_the_mask_by_nothing_that_float32_would_hide(together, tree):
    parts = qkv(sum(tree.sizes))
    expected = by_definition(tree, parts, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)  # its float32 is what rounds
        found = with_gradients(lambda *qkv: by_branch(branches(tree), *qkv, 0.0, 0.3), parts)
    assert_same(found, expected, 1e-12)


@anyhow
@given(tree=trees())
def test_the_branches_cover_the_row_in_order_and_their_masks_are_the_mask(together, tree):
    found = branches(tree)
    ends = [0, *accumulate(branch.size for branch in found)]
    spans = [range(first, after) for first, after in zip(ends, ends[1:])]
    assert ends[-1] == sum(tree.sizes)  # one behind the other: each token is asked once
    mask = may_look(tree)
    for number, (size, above, own) in enumerate(found):
        assert list(above) == sorted(set(above)) and all(other < number for other in above)
        keys = [key for other in (*above, number) for key in spans[other]]
        assert own.shape == (size, len(keys)) and own.dtype == torch.bool
        rows = mask[spans[number].start : spans[number].stop]
        assert torch.equal(own, rows[:, keys])
        assert own.sum() == rows.sum()  # and what is no key of the branch is seen by none of it
        assert own[:, : len(keys) - size].all()  # all of what is above


@anyhow
@given(tree=trees())
def test_a_branch_is_a_piece_with_all_that_hangs_from_it_where_that_is_not_too_much_or_a_piece_alone(together, tree):
    at = {start: piece for piece, (start, after) in enumerate(tree.spans) if start < after}
    below = [[p for p, path in enumerate(tree.paths) if piece in path] for piece in range(len(tree.sizes))]
    start = 0
    for branch in branches(tree):
        if branch.size:
            path = tree.paths[at[start]]
            # the topmost that is not too much is asked with all that hangs from it
            whole = [sizes for sizes in (sum(tree.sizes[p] for p in below[top]) for top in path) if sizes <= together]
            assert branch.size == (whole[0] if whole else tree.sizes[at[start]])
        start += branch.size
    assert together != 128 or len(branches(tree)) == 1  # nine pieces of at most four tokens


@pytest.mark.parametrize(
    "together, sizes", [(128, [8]), (8, [8]), (7, [2, 2, 4]), (4, [2, 2, 4]), (3, [2, 2, 1, 2, 1])]
)
def test_the_picture_is_asked_in_one_call_or_in_more(monkeypatch, together, sizes):
    monkeypatch.setattr(module, "TOGETHER", together)
    _, tree = picture()
    found, mask = branches(tree), may_look(tree)
    assert [branch.size for branch in found] == sizes
    if len(sizes) == 1:
        assert found[0].above == () and torch.equal(found[0].mask, mask)
    elif len(sizes) == 3:
        assert [branch.above for branch in found] == [(), (0,), (0,)]
        assert torch.equal(found[1].mask, mask[2:4, :4])
        assert torch.equal(found[2].mask, mask[4:, [0, 1, 4, 5, 6, 7]])
    else:
        assert [branch.above for branch in found] == [(), (0,), (0,), (0, 2), (0, 2)]
        assert torch.equal(found[3].mask, mask[5:7, [0, 1, 4, 5, 6]])
        assert torch.equal(found[4].mask, mask[7:, [0, 1, 4, 7]])


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_goes_in_and_comes_out_but_what_is_computed_is_float32(together, autocast):
    _, tree = picture()
    parts = qkv(8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = by_branch(branches(tree), *parts, 0.0, 1.0)
    exact = by_branch(branches(tree), *(part.float() for part in parts), 0.0, 1.0)
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())  # one rounding, at the end
    in_bfloat16 = scaled_dot_product_attention(*parts, may_look(tree)[None, None], scale=1.0)
    assert not torch.equal(y, in_bfloat16)


def test_dropout_drops_what_is_looked_at_in_every_branch(together):
    _, tree = picture()
    parts = qkv(8, dtype=torch.float32)
    assert not by_branch(branches(tree), *parts, 1.0, 1.0).any()
    torch.manual_seed(0)
    many = torch.stack([by_branch(branches(tree), *parts, 0.5, 1.0) for _ in range(1500)])
    mean = by_branch(branches(tree), *parts, 0.0, 1.0)
    assert (many.mean(0) - mean).abs().max() < 6 * many.std(0).max() / 1500**0.5
    assert (many.std(0).amax((0, 1, 3)) > 0.1).all()  # every place of the row


# A call of the ragged kernel


def ragged(q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, most_q: int, most_k: int) -> Tensor:
    """What torch says that its kernel computes, text by text: causal from the bottom right, scaled by 1 / sqrt(D)."""
    assert q_ends.dtype == k_ends.dtype == torch.int32 and q_ends[0] == k_ends[0] == 0
    assert (q_ends[-1], k_ends[-1]) == (len(q), len(k)) and len(k) == len(v)
    assert (most_q, most_k) == (int(q_ends.diff().max()), int(k_ends.diff().max()))
    found = []
    for a, b, c, d in zip(q_ends.tolist(), q_ends[1:].tolist(), k_ends.tolist(), k_ends[1:].tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) / q.shape[-1] ** 0.5
        seen = torch.arange(d - c)[None] <= torch.arange(b - a)[:, None] + (d - c) - (b - a)
        found.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v[c:d]))
    return torch.cat(found)


def of_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal and return_aux is None
    return ragged(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


def of_torch_2_13(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert scale is None and tuple(window_size) == (-1, 0)
    return ragged(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


@pytest.fixture(params=[of_torch_2_10, of_torch_2_13], ids=lambda kernel: kernel.__name__)
def kernel(request, monkeypatch):
    """The kernel is for CUDA alone; in its place the same in Python, with the signature of two releases of torch.

    It takes float64, so that it can be held to the mask, and nothing else.
    """
    monkeypatch.setattr(module, "ragged_kernel", lambda: request.param)
    monkeypatch.setattr(module, "NUMBERS", (torch.float64,))


@pytest.mark.parametrize("scale", [D**-0.5, 1.0, 0.05])
@pytest.mark.parametrize("number", range(12))
def test_by_path_gives_the_outputs_and_gradients_of_the_mask(kernel, number, scale):
    tree = SOME_TREES[number]
    parts = qkv(sum(tree.sizes), number)
    found = with_gradients(lambda *qkv: by_path(lines(tree), None, *qkv, 0.0, scale), parts)
    assert_same(found, by_definition(tree, parts, scale), 1e-12)


SOME_TREES = [
    picture()[1],
    Tree((5,), (-1,)),  # a text and nothing else
    Tree((0, 3), (-1, 0)),
    Tree((0, 0, 2, 3), (-1, 0, 1, 1)),  # a pair without a trunk
    Tree((3, 0, 2, 0, 4, 1), (-1, 0, 1, 1, 0, 4)),
    Tree((0, 2, 2, 2, 2), (-1, 0, 1, 2, 3)),  # one line in five pieces
    Tree((1, 1, 1, 1, 1), (-1, 0, 0, 0, 0)),
    Tree((4, 0), (-1, 0)),
    Tree((0, 3, 1, 2, 2, 4, 4, 0), (-1, 0, 1, 1, 0, 4, 4, 0)),
    Tree((2, 2, 1, 2, 1, 9), (-1, 0, 0, 2, 2, 0)),  # the last is padding
    Tree((0, 0, 0, 0, 1), (-1, 0, 1, 2, 3)),
    Tree((7, 6, 5, 4, 3, 2, 1), (-1, 0, 1, 2, 2, 1, 0)),
]


@given(trees())
def test_the_lines_of_a_row_are_its_paths(tree):
    found = lines(tree)
    places = torch.arange(sum(tree.sizes))
    mask = may_look(tree)
    asking = [number for number, size in enumerate(tree.sizes) if size]
    assert len(found.query_ends) == len(found.key_ends) == len(asking) + 1
    for number, piece in enumerate(asking):
        first, after = tree.spans[piece]
        assert found.query_ends[number : number + 2].tolist() == [first, after]
        keys = found.keys[found.key_ends[number] : found.key_ends[number + 1]]
        assert torch.equal(keys, places[mask[after - 1]])  # all that its last token sees, in order


@pytest.mark.parametrize(
    "dropout, dtype, width",
    [
        (0.5, torch.float64, D),  # which the kernel does not have
        (0.0, torch.float32, D),  # as of a model that attends in float32 whatever the rest is
        (0.0, torch.float64, 12),  # heads that it refuses
        (0.0, torch.float64, 200),
    ],
)
def test_what_the_kernel_does_not_do_goes_by_branch(kernel, monkeypatch, dropout, dtype, width):
    _, tree = picture()
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, H, 8, width, generator=generator, dtype=dtype) for _ in range(3)]
    torch.manual_seed(3)
    expected = by_branch(branches(tree), *parts, dropout, 0.7)
    monkeypatch.setattr(module, "ragged_kernel", lambda: None)
    torch.manual_seed(3)
    assert torch.equal(by_path(lines(tree), lambda: branches(tree), *parts, dropout, 0.7), expected)


@pytest.mark.parametrize("function", [lines, branches, may_look])
def test_what_is_above_the_pieces_is_found_once_for_a_row_not_once_for_a_piece(function, monkeypatch):
    tree, asked, paths = SOME_TREES[-1], [], Tree.paths
    monkeypatch.setattr(Tree, "paths", property(lambda self: asked.append(self) or paths.fget(self)))
    function(tree)
    assert sum(one is tree for one in asked) == 1


# Which of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_looking_goes_by_branch(kernel, dtype):
    _, tree = picture()
    look = looking(tree, CPU, dtype)
    assert look.func is by_branch
    parts = qkv(8, dtype=torch.float32)
    assert_same([look(*parts, 0.0, 0.5)], by_definition(tree, parts, 0.5)[:1], 1e-6)


CUDA = torch.device("cuda")


@pytest.fixture
def gpu(kernel, monkeypatch):
    """A function that puts a GPU in place as far as `looking` can tell: what is sent to it stays here."""

    def put(*capability: int) -> None:
        monkeypatch.setattr(module, "sent", lambda tensor, device: tensor)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return put


@pytest.mark.parametrize(
    "capability, dtype, way",
    [
        ((8, 0), torch.float64, by_path),
        ((12, 0), torch.float64, by_path),
        ((8, 0), torch.float32, by_branch),
        ((7, 5), torch.float64, by_branch),  # older than the kernel asks for
    ],
)
def test_on_a_gpu_that_runs_the_kernel_looking_goes_by_path(gpu, capability, dtype, way):
    gpu(*capability)
    _, tree = picture()
    look = looking(tree, CUDA, dtype)
    assert look.func is way
    parts = qkv(8)
    assert_same([look(*parts, 0.0, 0.5)], by_definition(tree, parts, 0.5)[:1], 1e-6)


def test_layers_that_the_kernel_does_not_serve_share_one_set_of_branches(gpu, monkeypatch):
    gpu(8, 0)
    _, tree = picture()
    made = []
    monkeypatch.setattr(module, "branches", lambda *row: made.append(row) or branches(*row))
    look, parts = looking(tree, CUDA, torch.float64), qkv(8)
    look(*parts, 0.0, 0.5)
    assert not made
    for _ in range(3):
        look(*parts, 0.1, 0.5)
    assert made == [(tree, CUDA)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel is for CUDA")
@pytest.mark.parametrize("number", range(12))
def test_on_a_gpu_the_kernel_itself_is_held_to_the_mask(number):
    tree = SOME_TREES[number]
    look = looking(tree, CUDA, torch.bfloat16)
    able = module.ragged_kernel() and torch.cuda.get_device_capability() >= module.CAPABILITY
    assert look.func is (by_path if able else by_branch)
    for width, dtype in ((64, torch.bfloat16), (64, torch.float32), (12, torch.bfloat16), (200, torch.bfloat16)):
        parts = [torch.randn(1, 2, sum(tree.sizes), width).to(dtype) for _ in range(3)]
        found = with_gradients(lambda *qkv: look(*qkv, 0.0, 0.2), [part.to(CUDA) for part in parts])
        expected = by_definition(tree, [part.double() for part in parts], 0.2)
        for a, b in zip(found, expected):
            assert float((a.cpu().double() - b).abs().max()) <= 0.02 * max(1.0, float(b.abs().max()))
    assert looking(tree, CUDA, torch.float32).func is by_branch


@anyhow
@given(tree=trees(), padding=st.integers(0, 5))
def test_padding_at_the_end_changes_nothing_before_it_and_is_finite(together, tree, padding):
    parts = qkv(sum(tree.sizes) + padding)
    padded = Tree((*tree.sizes, padding), (*tree.parents, 0))
    with_it = with_gradients(
        lambda *qkv: by_branch(branches(padded), *qkv, 0.0, 0.4)[:, :, : sum(tree.sizes)],
        [part.float() for part in parts],
    )
    without = with_gradients(
        lambda *qkv: by_branch(branches(tree), *qkv, 0.0, 0.4),
        [part[:, :, : sum(tree.sizes)].float() for part in parts],
    )
    assert_same([with_it[0]], [without[0]], 1e-5)
    for a, b in zip(with_it[1:], without[1:]):
        assert_same([a[:, :, : sum(tree.sizes)]], [b], 1e-5)
        assert not a[:, :, sum(tree.sizes) :].any()  # nothing that has a target looks at it
    assert by_branch(branches(padded), *parts, 0.0, 0.4).isfinite().all()
