"""gpt/optim.py: AdamW against its arithmetic written out, the learning rate against values known in closed form."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.model import GPT, GPTConfig
from gpt.optim import adamw, default_learning_rate, learning_rate, update


def toy() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=19, n_positions=8, n_embd=12, n_layer=2, n_head=3))


def test_every_parameter_is_in_exactly_one_group_and_only_matrices_decay():
    model = toy()
    decay_of = [(id(p), group["weight_decay"]) for group in adamw(model, 0.3).param_groups for p in group["params"]]
    # named_parameters gives the embedding that is also the head once
    expected = {id(p): 0.0 if name.endswith(".bias") or ".ln_" in name else 0.3 for name, p in model.named_parameters()}
    assert len(decay_of) == len(expected) and dict(decay_of) == expected
    assert sum(i == id(model.lm_head.weight) for i, _ in decay_of) == 1


def test_frozen_parameters_are_in_no_group():
    model = toy()
    frozen = [p for name, p in model.named_parameters() if "attn" in name]
    for p in frozen:
        p.requires_grad_(False)
    trained = {id(p) for group in adamw(model, 0.3).param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()} - {id(p) for p in frozen}


def test_steps_equal_adamws_arithmetic_written_out():
    model, decay, rates = toy(), 0.3, (1e-2, 3e-3, 5e-3)
    optimizer = adamw(model, decay)
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    m = {name: torch.zeros_like(p) for name, p in before.items()}
    v = {name: torch.zeros_like(p) for name, p in before.items()}
    for t, rate in enumerate(rates, 1):
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t * 100 + p.numel()))
            gradient = p.grad.double()
            if p.dim() >= 2:
                before[name] -= rate * decay * before[name]
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.95 * v[name] + 0.05 * gradient**2
            before[name] -= rate * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.95**t)).sqrt() + 1e-8)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for name, p in model.named_parameters():
        assert float((p.double() - before[name]).detach().abs().max()) < 1e-6, name


def test_nothing_moves_before_a_learning_rate_is_set():
    model = toy()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = adamw(model, 0.3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


# Updates

SOUND, BROKEN = torch.tensor(True), torch.tensor(False)


@pytest.fixture(params=[True, False], ids=["fused", "plain"])
def made(request):
    """A function that makes the optimizer of a model: as on cpu and cuda, or as on any other device."""

    def make(model: GPT, weight_decay: float) -> torch.optim.AdamW:
        optimizer = adamw(model, weight_decay)
        for group in optimizer.param_groups:
            group["fused"] = request.param
        return optimizer

    return make


def test_the_fused_kernel_is_used_only_where_it_clips_and_looks_for_what_is_not_finite():
    assert all(group["fused"] for group in adamw(toy(), 0.3).param_groups)
    elsewhere = toy().to("meta")  # which stands for mps: neither cpu nor cuda
    assert not any(group["fused"] for group in adamw(elsewhere, 0.3).param_groups)


def put_gradients(model: GPT, number: int) -> None:
    """Gradients of step `number`: small in the even ones, so that no clip cuts them, large in the odd ones."""
    generator = torch.Generator().manual_seed(number)
    for p in model.parameters():
        p.grad = (3.0 if number % 2 else 1e-4) * torch.randn(p.shape, generator=generator)


def numbers_of(model: GPT, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    """Every weight, and all that the optimizer keeps of it: both moments and the count of steps."""
    kept = [value for p in model.parameters() for _, value in sorted(optimizer.state[p].items())]
    return [value.detach().clone() for value in (*model.parameters(), *kept)]


def by_torch(model: GPT, optimizer: torch.optim.AdamW, rate: float, clip: float) -> torch.Tensor:
    """Clipped in a pass of its own, then AdamW in the plain Python loop that torch has."""
    parameters = list(model.parameters())
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"], group["fused"], group["foreach"] = rate, False, False
    optimizer.step()
    optimizer.zero_grad()
    return norm


@pytest.mark.parametrize("clip", [1.0, 0.0, 0.05, 1e9])
def test_an_update_is_torchs_clipping_and_then_torchs_adamw(made, clip):
    ours, theirs = toy(), toy()
    one, other = made(ours, 0.3), adamw(theirs, 0.3)
    for number in range(1, 9):
        rate = 1e-3 * number
        put_gradients(ours, number), put_gradients(theirs, number)
        norm, expected = update(one, rate, clip, SOUND), by_torch(theirs, other, rate, clip)
        assert float(norm) == pytest.approx(float(expected), rel=1e-6)  # before clipping
        assert all(p.grad is None for p in ours.parameters())
        for a, b in zip(numbers_of(ours, one), numbers_of(theirs, other), strict=True):
            torch.testing.assert_close(a, b, rtol=3e-6, atol=1e-6)


def test_clipping_cuts_the_norm_and_no_clipping_does_not(made):
    # a step's first moment is a tenth of its gradient
    for clip, expected in ((1.0, 1.0), (0.0, None), (1e9, None)):
        model = toy()
        optimizer = made(model, 0.0)
        put_gradients(model, 1)
        norm = update(optimizer, 1e-3, clip, SOUND)
        moments = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in model.parameters()])
        assert float(10 * moments.norm()) == pytest.approx(expected or float(norm), rel=1e-5) and norm > 10


@pytest.mark.parametrize("fault", ["nan", "inf", "-inf", "overflow", "not sound"])
@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize("before", [0, 3])
def test_what_is_not_finite_changes_nothing_now_or_in_any_later_step(made, fault, clip, before):
    model = toy()
    optimizer = made(model, 0.3)
    for number in range(before):
        put_gradients(model, number)
        update(optimizer, 1e-3, clip, SOUND)
    weights, known = [p.detach().clone() for p in model.parameters()], numbers_of(model, optimizer)
    put_gradients(model, 7)
    (bias,) = [p for name, p in model.named_parameters() if name == "transformer.ln_f.bias"]
    if fault == "overflow":
        bias.grad.fill_(3e38)  # each is finite, their norm is not
    elif fault != "not sound":
        bias.grad[5] = float(fault)
    norm = update(optimizer, 1e-3, clip, BROKEN if fault == "not sound" else SOUND)
    assert bool(norm.isfinite()) == (fault == "not sound")  # what is told is what was found
    for number in range(8, 12):
        put_gradients(model, number)
        assert update(optimizer, 1e-3, clip, SOUND).isfinite()
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    after = numbers_of(model, optimizer)
    if before:
        assert all(torch.equal(a, b) for a, b in zip(known, after, strict=True))
    else:
        assert not any(value.any() for value in after[len(weights) :])  # nothing was counted or averaged


def test_an_optimizer_that_was_not_stopped_goes_on_after_its_state_was_saved_and_loaded(made):
    model = toy()
    optimizer = made(model, 0.3)
    put_gradients(model, 1)
    update(optimizer, 1e-3, 1.0, SOUND)
    twin = toy()
    twin.load_state_dict(model.state_dict())
    other = made(twin, 0.3)
    other.load_state_dict(deepcopy(optimizer.state_dict()))  # it would share the moments
    for one, its in ((model, optimizer), (twin, other)):
        put_gradients(one, 2)
        update(its, 1e-3, 1.0, SOUND)
    assert all(torch.equal(a, b) for a, b in zip(numbers_of(model, optimizer), numbers_of(twin, other), strict=True))


# The rate


def test_the_rate_rises_in_a_straight_line_then_falls_by_half_a_cosine():
    # 100 updates, 20 of them warmup: 1/20 of the peak at first, all of it at update 20
    rates = [learning_rate(step, 100, 0.5, 0.2) for step in range(1, 101)]
    assert rates[:20] == pytest.approx([0.5 * n / 20 for n in range(1, 21)])
    # 0 would come at update 101, 81 after the peak: a third of the way is update 47, where half a cosine is 3/4
    assert rates[47 - 1] == pytest.approx(0.5 * 0.75)
    assert rates[74 - 1] == pytest.approx(0.5 * 0.25)
    assert learning_rate(101, 100, 0.5, 0.2) == pytest.approx(0, abs=1e-12)
    assert learning_rate(15, 19, 0.5, 0.5) == pytest.approx(0.25)  # peak at 10, 0 at 20, half-way at 15


def test_without_warmup_the_first_update_is_already_on_the_cosine():
    rates = [learning_rate(step, 3, 1.0, 0.0) for step in (1, 2, 3)]  # quarters of the way from 1 at 0 to 0 at 4
    assert rates == pytest.approx([(1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


def test_warmup_over_all_updates_ends_at_the_peak():
    assert [learning_rate(step, 4, 1.0, 1.0) for step in (1, 2, 3, 4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_a_run_of_one_update_has_a_rate_above_zero():
    for warmup in (0.0, 0.1, 1.0):
        assert learning_rate(1, 1, 1.0, warmup) > 0


@settings(deadline=None, max_examples=150)
@given(steps=st.integers(1, 300), percent=st.integers(0, 100), peak=st.floats(1e-8, 1))
def test_the_rate_is_above_zero_up_to_the_peak_and_has_one_summit(steps, percent, peak):
    rates = [learning_rate(step, steps, peak, percent / 100) for step in range(1, steps + 1)]
    top = rates.index(max(rates))
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)  # peak * 3 / 3 may round above the peak
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert percent == 0 or rates[top] == pytest.approx(peak, rel=1e-12)


@pytest.mark.parametrize("steps, percent", [(100, 7), (100, 10), (100, 28), (100, 55), (10, 30), (1000, 7)])
def test_the_peak_is_at_the_fraction_of_the_updates_that_warmup_names(steps, percent):
    # 0.07 * 100 is 7.000000000000001 in floating point; the warmup is 7 updates all the same
    rates = [learning_rate(step, steps, 1.0, percent / 100) for step in range(1, steps + 1)]
    assert rates.index(1.0) + 1 == steps * percent // 100


def test_a_peak_of_zero_is_a_rate_of_zero():
    assert [learning_rate(step, 5, 0.0, 0.4) for step in range(1, 6)] == [0.0] * 5


def test_the_default_rate_is_inverse_to_the_size_between_its_bounds_and_20_times_that_for_sft():
    assert default_learning_rate(124_000_000, preference=True) == pytest.approx(1e-6)
    assert default_learning_rate(62_000_000, preference=True) == pytest.approx(2e-6)
    assert default_learning_rate(1_558_000_000, preference=True) == 5e-7
    assert default_learning_rate(1_000, preference=True) == 1e-4
    for parameters in (1_000, 62_000_000, 1_558_000_000):
        twentieth = default_learning_rate(parameters, preference=False) / 20
        assert twentieth == pytest.approx(default_learning_rate(parameters, preference=True))
