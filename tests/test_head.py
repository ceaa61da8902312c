"""gpt/head.py: log p of the targets and its gradients, against torch's cross entropy, at once and in parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt import head as module
from gpt.head import COLUMNS, MOST, ROWS, target_logps

V, C = 61, 12


def some(N: int, seed: int = 0, dtype: torch.dtype = torch.float64, V: int = V, C: int = C) -> tuple[Tensor, ...]:
    """x, weight, targets, and a gradient that comes from above."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(n, C, generator=generator, dtype=torch.float64) for n in (N, V))
    targets = torch.randint(V, (N,), generator=generator)
    return x.to(dtype), weight.to(dtype), targets, torch.randn(N, generator=generator, dtype=torch.float64).to(dtype)


def by_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(x @ weight.T, targets, reduction="none")


def with_gradients(function, x: Tensor, weight: Tensor, targets: Tensor, above: Tensor) -> list[Tensor]:
    """log p, and the gradients of x and of the matrix."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    logps = function(x, weight, targets)
    return [logps.detach(), *torch.autograd.grad(logps, (x, weight), above.to(logps.dtype))]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal to `tolerance` of the largest entry of each."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        if a.numel():
            assert float((a.double() - b.double()).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


SIZES = [1, 5, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 7]


@pytest.mark.parametrize("N", SIZES)
def test_values_and_gradients_are_those_of_cross_entropy(N):
    exact = with_gradients(by_cross_entropy, *some(N))
    assert_same(with_gradients(target_logps, *some(N)), exact, 1e-12)
    found = with_gradients(target_logps, *some(N, dtype=torch.float32))
    assert {part.dtype for part in found} == {torch.float32}
    assert_same(found, exact, 2e-6)
    assert_same(found, with_gradients(by_cross_entropy, *some(N, dtype=torch.float32)), 1e-6)


def test_gradients_are_what_finite_differences_give():
    # logits that are kept serve one backward pass, and gradcheck wants several: kept ones are held by hand
    x, weight, targets, above = some(7)
    in_parts = (
        (lambda x, weight: target_logps(x, weight, targets, most=3 * V * 8)),
        (x.requires_grad_(), weight.requires_grad_()),
    )
    assert torch.autograd.gradcheck(*in_parts)
    x, weight = x.detach(), weight.detach()
    _, *gradients = with_gradients(target_logps, x, weight, targets, above)
    for values, gradient in zip((x, weight), gradients):
        for place in range(0, values.numel(), 13):
            step = torch.zeros(values.numel(), dtype=torch.double)
            step[place] = 1e-5
            up, down = (
                float(
                    (
                        above
                        * target_logps(
                            *(part + sign * step.view_as(part) if part is values else part for part in (x, weight)),
                            targets,
                        )
                    ).sum()
                )
                for sign in (1, -1)
            )
            assert float(gradient.flatten()[place]) == pytest.approx((up - down) / 2e-5, abs=1e-7)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has none")
@pytest.mark.parametrize("N", SIZES)
def test_values_and_gradients_are_those_of_torchs_own_fused_function(N):
    def fused(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -F.linear_cross_entropy(x, weight, targets, reduction="none")

    batch = some(N, dtype=torch.float32)
    assert_same(with_gradients(target_logps, *batch), with_gradients(fused, *batch), 2e-6)


# In parts


@given(st.integers(0, 40), st.integers(0, 15), st.integers(0, 3))
def test_logits_in_parts_give_the_values_and_gradients_of_all_at_once(N, at_once, seed):
    batch = some(N, seed)
    whole = with_gradients(target_logps, *batch)
    most = at_once * V * 8 + 3  # room for so many places, or for none: then they are taken one by one
    assert_same(with_gradients(lambda *three: target_logps(*three, most=most), *batch), whole, 1e-12)


@pytest.mark.parametrize("most", [module.MOST, 7 * V * 4, 1])
def test_no_more_logits_are_held_than_were_allowed(most):
    x, weight, targets, _ = some(50, dtype=torch.float32)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            y = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.mm.default and y.shape[-1] == V:
                seen.append(y.numel() * y.element_size())
            return y

    with Watch():
        logps = target_logps(x.requires_grad_(), weight.requires_grad_(), targets, most=most)
        logps.sum().backward()
    assert max(seen) <= max(most, V * 4)
    # computed once and kept, or twice
    assert sum(seen) == 50 * V * 4 * (1 if most == module.MOST else 2)


class Logits(TorchDispatchMode):
    """Follows every product that is as wide as the vocabulary for as long as its memory is held."""

    def __init__(self):
        super().__init__()
        self.seen, self.most = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default and y.shape[-1] == V:
            self.seen.append(StorageWeakRef(y.untyped_storage()))
            self.most = max(self.most, self.held())
        return y

    def held(self) -> int:
        return sum(not one.expired() for one in self.seen)


@pytest.mark.parametrize("most, products", [(module.MOST, 1), (7 * V * 4, 16), (1, 100)])
def test_the_logits_of_one_part_are_gone_before_those_of_the_next_are_made(most, products):
    x, weight, targets, _ = some(50, dtype=torch.float32)
    with Logits() as logits:
        target_logps(x.requires_grad_(), weight.requires_grad_(), targets, most=most).sum().backward()
    assert (len(logits.seen), logits.most) == (products, 1)


@pytest.mark.parametrize("most", [module.MOST, 7 * V * 4])
@pytest.mark.parametrize("is_tied", [False, True])
def test_no_logits_outlive_the_backward_pass_though_what_was_made_of_them_does(most, is_tied):
    x, weight, targets, _ = some(10, dtype=torch.float32)
    tied = module.Tied() if is_tied else None
    weight.requires_grad_()
    with Logits() as logits:
        x = x + (module.look_up(targets, weight, tied) if tied else weight[targets])
        logps = target_logps(x, weight, targets, most=most, tied=tied)
        logps.sum().backward()
    assert logps.grad_fn is not None and weight.grad is not None
    assert logits.seen and logits.held() == 0


def test_on_a_gpu_the_turns_are_few_and_nothing_is_read_back():
    # "meta" is no processor either: shapes, no memory, and who reads a number of it is refused
    N, V, C = 11_717, 50_257, 768
    x, weight = (torch.empty(n, C, device="meta", requires_grad=True) for n in (N, V))
    of, tokens = torch.empty(2, 12_000, dtype=torch.long, device="meta")
    done = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            done.append(function)
            return function(*args, **(kwargs or {}))

    with Watch():
        module._TargetLogps.apply(x, weight, tokens, of, torch.bfloat16, None, module.MOST).sum().backward()
    assert (x.grad.shape, weight.grad.shape) == ((N, C), (V, C))
    assert len(done) < 700


def test_a_vocabulary_of_more_rows_than_are_converted_at_once():
    batch = some(9, dtype=torch.float32, V=2 * COLUMNS + 5, C=3)
    exact = with_gradients(by_cross_entropy, *some(9, V=2 * COLUMNS + 5, C=3))
    assert_same(with_gradients(target_logps, *batch), exact, 2e-6)
    for most in (module.MOST, 4 * (2 * COLUMNS + 5) * 2):
        with torch.autocast("cpu", torch.bfloat16):
            found = with_gradients(lambda *three, most=most: target_logps(*three, most=most), *batch)
        assert_same(found, exact, 0.02)


# What is asked for


@pytest.mark.parametrize("most", [module.MOST, 1])
def test_no_place_gives_nothing_and_gradients_of_zero(most):
    found = with_gradients(lambda *three: target_logps(*three, most=most), *some(0, dtype=torch.float32))
    assert [part.shape for part in found] == [(0,), (0, C), (V, C)]
    assert not found[2].any()


@pytest.mark.parametrize("most", [module.MOST, 7 * V * 8])
def test_a_frozen_matrix_gets_no_gradient_and_x_the_same(most):
    x, weight, targets, above = some(20)
    _, expected, _ = with_gradients(target_logps, x, weight, targets, above)
    x.requires_grad_()
    target_logps(x, weight, targets, most=most).backward(above)
    assert weight.grad is None
    assert_same([x.grad], [expected], 1e-12)


def test_without_gradients_nothing_is_kept():
    x, weight, targets, _ = some(5)
    with torch.no_grad():
        logps = target_logps(x.requires_grad_(), weight.requires_grad_(), targets)
    assert not logps.requires_grad
    assert_same([logps], [by_cross_entropy(x, weight, targets).detach()], 1e-12)


@pytest.mark.parametrize("most", [module.MOST, 3 * V * 8])
def test_a_second_backward_pass_is_right_or_refused(most):
    x, weight, targets, above = some(10)
    x.requires_grad_(), weight.requires_grad_()
    logps = target_logps(x, weight, targets, most=most)
    first = torch.autograd.grad(logps, (x, weight), above, retain_graph=True)
    if most == module.MOST:  # the logits have become their own gradient
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(logps, (x, weight), above)
    else:
        assert_same(list(torch.autograd.grad(logps, (x, weight), above)), list(first), 0)


def test_a_gradient_of_the_gradient_is_refused():
    x, weight, targets, _ = some(10)
    logps = target_logps(x.requires_grad_(), weight, targets)
    (gradient,) = torch.autograd.grad((logps**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_log_probabilities_of_the_whole_vocabulary_are_of_probabilities_that_sum_to_1():
    for autocast in (False, True):
        x, weight, _, _ = some(4, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logps = target_logps(x.repeat_interleave(V, 0), weight, torch.arange(V).repeat(4))
        assert torch.allclose(logps.view(4, V).exp().sum(-1), torch.ones(4), rtol=0, atol=1e-5)


def test_a_place_does_not_know_the_others():
    x, weight, targets, _ = some(30)
    together = target_logps(x, weight, targets)
    changed = target_logps(torch.cat([x[:29], 100 * x[29:]]), weight, targets)
    assert torch.equal(together[:29], changed[:29]) and together[29] != changed[29]


def test_a_place_that_is_not_finite_leaves_the_log_probabilities_of_the_others():
    x, weight, targets, _ = some(2 * ROWS)
    x[3] = torch.nan
    logps = target_logps(x, weight, targets)
    assert logps[3].isnan() and logps.isnan().sum() == 1


# Several tokens of one place


def repeated(N: int, S: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """x (N, C), weight, S tokens, the gradient from above, and the row that each token is asked of, in any order."""
    x, weight, _, _ = some(N, seed, dtype)
    generator = torch.Generator().manual_seed(100 + seed)
    tokens, of = (torch.randint(n, (S,), generator=generator) for n in (V, N))
    return x, weight, tokens, torch.randn(S, generator=generator, dtype=torch.float64).to(dtype), of


def by_softmax(of: Tensor):
    """The plain formula: the log softmax of every row, and of it what was asked."""
    return lambda x, weight, tokens: (x @ weight.T).log_softmax(-1)[of, tokens]


def with_most(of: Tensor | None, most: int = module.MOST):
    return lambda x, weight, tokens: target_logps(x, weight, tokens, of, most)


@pytest.mark.parametrize("most", [module.MOST, 7 * V * 8, 1])
@pytest.mark.parametrize("N, S", [(1, 1), (1, 9), (5, 3), (9, 40), (ROWS, 3 * ROWS), (3 * ROWS + 7, 5), (100, 150)])
def test_a_place_may_be_asked_for_several_tokens_for_one_or_for_none(N, S, most):
    *batch, of = repeated(N, S)
    exact = with_gradients(by_softmax(of), *batch)
    found = with_gradients(with_most(of, most), *batch)
    assert found[0].shape == (S,) and found[1].shape == (N, C)
    assert_same(found, exact, 1e-12)
    asked = torch.zeros(N, dtype=torch.bool).index_fill(0, of, True)
    assert not found[1][~asked].any() and found[1][asked].any(-1).all()
    *batch, of = repeated(N, S, dtype=torch.float32)
    found = with_gradients(with_most(of, most), *batch)
    assert {part.dtype for part in found} == {torch.float32}
    assert_same(found, exact, 2e-6)


@given(st.data(), st.integers(1, 20), st.integers(0, 15), st.integers(0, 3))
def test_whatever_is_asked_of_whom_and_in_whatever_parts_values_and_gradients_are_the_plain_formulas(
    data, N, at_once, seed
):
    asked = data.draw(st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 2)), max_size=30))  # often the same
    of, tokens = torch.tensor(asked, dtype=torch.long).view(-1, 2).T
    x, weight, _, _ = some(N, seed)
    batch = x, weight, tokens, torch.randn(len(of), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = with_gradients(with_most(of, at_once * V * 8 + 3), *batch)
    assert_same(found, with_gradients(by_softmax(of), *batch), 1e-12)


@pytest.mark.parametrize("rows", [2, 7, 1000])
def test_gradients_of_tokens_that_share_a_place_are_what_finite_differences_give(monkeypatch, rows):
    monkeypatch.setattr(module, "ROWS", rows)  # in parts of parts
    x, weight, tokens, _, of = repeated(7, 12)
    of[of == 1] = 2  # of place 1 nothing is asked
    tokens[of == 2] = 5  # of place 2 the same token, more than once
    assert of.unique().tolist() == [0, 2, 3, 4, 5, 6] and (of == 2).sum() > 2
    in_parts = lambda x, weight: target_logps(x, weight, tokens, of, 3 * V * 8)  # noqa: E731
    assert torch.autograd.gradcheck(in_parts, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("most", [module.MOST, 7 * V * 8])
def test_who_says_nothing_of_places_asks_one_token_of_each_in_order(most):
    batch = some(20)
    found = with_gradients(with_most(None, most), *batch)
    for a, b in zip(found, with_gradients(with_most(torch.arange(20), most), *batch)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("most", [module.MOST, 7 * V * 8])
def test_a_place_asked_for_several_tokens_is_that_place_written_several_times(most):
    x, weight, tokens, above, of = repeated(10, 40)
    shared = with_gradients(with_most(of, most), x, weight, tokens, above)
    logps, dx, dw = with_gradients(with_most(None, most), x[of], weight, tokens, above)
    assert_same(shared, [logps, torch.zeros_like(x).index_add(0, of, dx), dw], 1e-12)


@pytest.mark.parametrize("most", [module.MOST, 1])
def test_of_places_that_nothing_is_asked_of_there_is_nothing_and_gradients_of_zero(most):
    x, weight, _, _ = some(9, dtype=torch.float32)
    nothing = torch.zeros(0, dtype=torch.long)
    found = with_gradients(with_most(nothing, most), x, weight, nothing, torch.zeros(0))
    assert [part.shape for part in found] == [(0,), (9, C), (V, C)]
    assert not found[1].any() and not found[2].any()


@pytest.mark.parametrize("most", [module.MOST, 7 * V * 8])
def test_a_place_that_is_not_finite_leaves_what_is_asked_of_the_others(most):
    x, weight, tokens, _, of = repeated(10, 40)
    expected = target_logps(x, weight, tokens, of, most)
    x[6] = torch.nan  # the last of a part
    logps = target_logps(x, weight, tokens, of, most)
    assert torch.equal(logps.isnan(), of == 6) and torch.equal(logps[of != 6], expected[of != 6])


def test_several_tokens_of_one_place_cost_one_row_of_logits():
    x, weight, tokens, _, of = repeated(10, 40, dtype=torch.float32)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            y = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.mm.default and y.shape[-1] == V:
                seen.append(tuple(y.shape))
            return y

    with Watch():
        target_logps(x.requires_grad_(), weight.requires_grad_(), tokens, of).sum().backward()
    assert seen == [(10, V)]


@pytest.mark.parametrize("most", [module.MOST, 7 * V * 8])
@pytest.mark.parametrize("several", [False, True])
def test_a_tied_matrix_gets_the_whole_gradient_from_who_looks_up(several, most):
    x, weight, tokens, above, of = repeated(10, 40)
    read = torch.randint(V, (2, 5), generator=torch.Generator().manual_seed(9))  # (B, T)
    if not several:
        tokens, above, of = tokens[:10], above[:10], torch.arange(10)
    weight.requires_grad_()

    def gradient(looked_up: Tensor, logps) -> Tensor:
        y = logps(x + looked_up.flatten(0, 1))
        return torch.autograd.grad(y, weight, above)[0]

    tied = module.Tied()
    found = gradient(
        module.look_up(read, weight, tied),
        lambda x: target_logps(x, weight, tokens, of if several else None, most, tied),
    )
    expected = gradient(weight[read], lambda x: by_softmax(of)(x, weight, tokens))
    assert_same([found], [expected], 1e-12)


# In bfloat16


def like_gpt2(N: int = 200, offset: float = 80.0) -> tuple[Tensor, ...]:
    """Places and a matrix whose logits have a part in common of about -offset, and apart from it a spread of about 2."""
    x, weight, targets, above = some(N, V=400, C=64, seed=3)
    shared = torch.randn(64, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    shared /= shared.norm()
    x = x - (x @ shared)[:, None] * shared + 8 * shared
    return x, 0.25 * weight - offset / 8 * shared, targets, above


def in_bfloat16(function, batch: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return with_gradients(function, *(part.float() if part.is_floating_point() else part for part in batch))


def worst(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max())


@pytest.mark.parametrize("most", [module.MOST, 30 * 400 * 2])
def test_a_part_that_logits_have_in_common_costs_no_accuracy_in_bfloat16(most):
    def ours(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return target_logps(x, weight, targets, most=most)

    errors = {}
    for offset in (0.0, 80.0):
        batch = like_gpt2(offset=offset)
        exact = with_gradients(by_cross_entropy, *batch)
        if offset:
            assert float((batch[0] @ batch[1].T).mean()) == pytest.approx(-80, abs=5)
        found = in_bfloat16(ours, batch)
        assert {part.dtype for part in found} == {torch.float32}
        plain = in_bfloat16(lambda x, weight, targets: by_cross_entropy(x, weight, targets).float(), batch)
        errors[offset] = worst(found[0], exact[0]), worst(plain[0], exact[0])
        # gradients: those of the softmax of what bfloat16 made of the logits
        for a, b in zip(found[1:], exact[1:]):
            assert worst(a, b) < 0.03 * float(b.abs().max())
    assert errors[0.0][0] < 0.06 and errors[80.0][0] < 1.5 * errors[0.0][0]
    assert errors[80.0][1] > 5 * errors[80.0][0]  # logits as they come


def test_a_model_in_bfloat16_without_autocast_has_log_probabilities_in_float32_of_its_own_logits():
    x, weight, targets, above = some(20, dtype=torch.bfloat16)
    found = with_gradients(target_logps, x, weight, targets, above)
    assert [part.dtype for part in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    expected = (x @ weight.T).double().log_softmax(-1)[torch.arange(20), targets]
    assert_same(found[:1], [expected], 1e-6)


def test_autocast_that_is_switched_off_changes_nothing():
    batch = some(20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        inside = with_gradients(target_logps, *batch)
    assert all(torch.equal(a, b) for a, b in zip(inside, with_gradients(target_logps, *batch)))


def test_x_in_bfloat16_as_layers_under_autocast_hand_it_over_gets_its_gradient_in_bfloat16():
    x, weight, targets, above = some(20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(target_logps, x.bfloat16(), weight, targets, above)
    assert [part.dtype for part in found] == [torch.float32, torch.bfloat16, torch.float32]
    exact = with_gradients(by_cross_entropy, x.bfloat16().double(), weight.double(), targets, above.double())
    assert_same(found, exact, 0.03)


@pytest.mark.parametrize("most", [MOST, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_squares_is_that_of_the_softmax_and_changes_nothing_else(most, dtype):
    g = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(n, 8, generator=g) for n in (70, 33))
    tokens, of = torch.randint(0, 33, (90,), generator=g), torch.randint(0, 70, (90,), generator=g)
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        h = x.clone().requires_grad_()
        logps, squares = target_logps(h, weight, tokens, of, most, squares=True)
        alone = target_logps(other := x.clone().requires_grad_(), weight, tokens, of, most)
    p = (x @ weight.T).softmax(-1)
    assert torch.allclose(squares, (p * p).sum(-1).log()[of], atol=1e-5 if dtype is torch.float32 else 0.1)
    assert not squares.requires_grad and torch.equal(logps, alone)
    logps.sum().backward(), alone.sum().backward()
    assert torch.equal(h.grad, other.grad)
