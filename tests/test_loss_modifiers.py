"""dpo/losses/modifiers.py: divergences, length, margins and weights by hand, alone, together, and through a model."""

import math
from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.pairs import Pair
from dpo.examples import Examples, in_memory
from dpo.losses import LOSSES, Scores, parse_loss
from dpo.losses.family import TAKES
from dpo.losses.modifiers import DIVERGENCES, desensitized, diverging, weighted, widened
from dpo.reference import no_reference
from dpo.rows import Ids
from dpo.step import add_gradients
from tests.by_hand import by_hand, gains, random_scores, scores, softplus
from tests.test_step import plan_of, said_by

# Divergences

# f of each divergence, the mean over the reference of f(u), u = pi / pi_ref, and its alpha
F = {
    "reverse_kl": lambda u, a: u * log(u),
    "forward_kl": lambda u, a: -log(u),
    "js": lambda u, a: u * log(u) - (u + 1) * log((u + 1) / 2),
    "alpha": lambda u, a: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)),
}


def derivative(f, u: float) -> float:
    """By differences of fourth order, of a function that is smooth for u > 0."""
    h = 1e-3 * u
    return (8 * (f(u + h) - f(u - h)) - (f(u + 2 * h) - f(u - 2 * h))) / (12 * h)


@pytest.mark.parametrize("name", DIVERGENCES)
@given(st.floats(-4, 4), st.floats(0.05, 0.95))
def test_a_divergence_puts_the_derivative_of_f_in_the_place_of_the_gain(name, gain, alpha):
    # up to what both answers have in common: f' is 0 at u = 1
    expected = derivative(lambda u: F[name](u, alpha), exp(gain)) - derivative(lambda u: F[name](u, alpha), 1.0)
    s = diverging(gains([gain], [0.0]), name, alpha)
    assert s.gain_chosen.item() == pytest.approx(expected, rel=1e-6, abs=1e-8) and s.gain_rejected.item() == 0


@pytest.mark.parametrize("name", DIVERGENCES)
@given(st.floats(-30, 30), st.floats(0.05, 1))
def test_every_divergence_rises_from_0_with_slope_1_or_js_with_a_half(name, gain, alpha):
    score = DIVERGENCES[name]
    near = torch.tensor([-1e-4, 1e-4], dtype=torch.double)
    assert torch.allclose(score(near, alpha), near * (0.5 if name == "js" else 1), rtol=1e-3, atol=0)
    at = torch.tensor([gain - 0.01, gain], dtype=torch.double)
    assert score(at, alpha).diff() >= 0
    if name != "js":
        assert score(at, alpha)[1] <= gain + 1e-12  # never more than reverse_kl gives


def test_what_the_docstring_says_of_each_divergence():
    gain = torch.tensor([-10.0, -1.0, 1.0, 10.0], dtype=torch.double)
    assert DIVERGENCES["forward_kl"](gain, 0.5)[0].item() == pytest.approx(1 - exp(10))
    assert torch.equal(DIVERGENCES["alpha"](gain, 1.0), DIVERGENCES["forward_kl"](gain, 0.5))
    assert torch.allclose(DIVERGENCES["alpha"](gain, 1e-6), gain, rtol=1e-4)
    assert torch.equal(DIVERGENCES["reverse_kl"](gain, 0.5), gain)
    tops = {name: DIVERGENCES[name](torch.tensor(1e3, dtype=torch.double), 0.5).item() for name in DIVERGENCES}
    assert tops == pytest.approx({"reverse_kl": 1e3, "forward_kl": 1, "js": log(2), "alpha": 2})


@pytest.mark.parametrize("name", sorted(TAKES["divergence"]))
@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_a_loss_with_a_divergence_is_the_loss_of_what_it_puts_for_the_gains(name, divergence):
    s = random_scores(2, scale=1.0)
    alpha = 0.3 if divergence == "alpha" else 0.5
    spec = f"{name}(divergence={divergence}{', alpha=0.3' if divergence == 'alpha' else ''})"
    (found,) = parse_loss(spec)(s).values()

    def score(gain: float) -> float:
        at_1 = derivative(lambda u: F[divergence](u, alpha), 1.0)
        return derivative(lambda u: F[divergence](u, alpha), exp(gain)) - at_1

    chosen, rejected = ([score(gain) for gain in side.tolist()] for side in (s.gain_chosen, s.gain_rejected))
    instead = gains(chosen, rejected)._replace(chosen_len=s.chosen_len, rejected_len=s.rejected_len)
    assert found.tolist() == pytest.approx(by_hand(name, instead, **parse_loss(name).terms[0].keywords), rel=1e-5)


# Length

TOKENS = [  # of one pair: log p of each token of policy and reference, chosen and rejected
    ([-1.0, -2.0, -0.5], [-3.0, -0.2, -0.4, -1.1, -2.5], [-1.5, -1.0, -0.7], [-2.0, -0.9, -0.1, -1.3, -2.0]),
    ([-0.3, -0.1, -2.2, -4.0], [-1.0, -2.0], [-0.5, -0.5, -1.2, -3.0], [-1.4, -1.7]),
    ([-0.3, -0.1], [-1.0, -2.0], [-0.9, -0.3], [-0.1, -2.2]),
]


def long_scores() -> Scores:
    """TOKENS as Scores, the sums over the shorter length beside them."""
    common = [min(len(chosen), len(rejected)) for chosen, rejected, *_ in TOKENS]
    sums = torch.tensor([[sum(part) for part in pair] for pair in TOKENS], dtype=torch.double).T
    heads = [[sum(part[:n]) for part in pair] for pair, n in zip(TOKENS, common)]
    lengths = torch.tensor([[len(part) for part in pair[:2]] for pair in TOKENS]).T
    return Scores(*sums, *lengths, heads=torch.tensor(heads, dtype=torch.double).T)


@pytest.mark.parametrize("ld_alpha", [0.0, 0.3, 1.0])
def test_what_the_longer_answer_has_more_counts_ld_alpha_times(ld_alpha):
    expected = []
    for pair in TOKENS:
        n = min(len(pair[0]), len(pair[1]))
        expected.append([sum(part[:n]) + ld_alpha * sum(part[n:]) for part in pair])
    found = desensitized(long_scores(), ld_alpha)
    assert torch.stack(found[:4]).T.tolist() == [pytest.approx(line) for line in expected]
    assert torch.equal(found.chosen_len, long_scores().chosen_len)  # the whole lengths, where a loss divides by them
    chosen, rejected, before, other = expected[0]
    (losses,) = parse_loss(f"dpo(beta=0.4, ld_alpha={ld_alpha})")(long_scores()).values()
    assert losses[0].item() == pytest.approx(softplus(-0.4 * (chosen - before - rejected + other)))


def test_ld_alpha_changes_nothing_at_1_and_for_answers_of_one_length():
    s = long_scores()
    assert torch.allclose(torch.stack(desensitized(s, 1.0)[:4]), torch.stack(s[:4]))
    assert not parse_loss("dpo(ld_alpha=1)").needs("ld_alpha")
    (half,), (full,) = (parse_loss(spec)(s).values() for spec in ("dpo(ld_alpha=0)", "dpo"))
    assert half[2] == full[2] and half[0] != full[0] and half[1] != full[1]


# Margin


@given(st.integers(0, 2**31), st.floats(0.05, 3), st.lists(st.floats(-3, 9), min_size=4, max_size=4))
@pytest.mark.parametrize("name", sorted(TAKES["margin"]))
def test_the_margin_is_subtracted_inside_after_beta(name, seed, beta, margins):
    s = random_scores(seed)._replace(margin=torch.tensor(margins, dtype=torch.double))
    (found,) = parse_loss(f"{name}(beta={beta:f}, margin=true)")(s).values()
    x = [float(f"{beta:f}") * ratio - margin for ratio, margin in zip(s.log_ratio.tolist(), margins)]
    e = 0.1
    formula = {
        "dpo": lambda x: softplus(-x),
        "cdpo": lambda x: (1 - e) * softplus(-x) + e * softplus(x),
        "robust": lambda x: ((1 - e) * softplus(-x) - e * softplus(x)) / (1 - 2 * e),
        "hinge": lambda x: max(0.0, 1 - x),
    }[name]
    assert found.tolist() == pytest.approx([formula(one) for one in x], abs=1e-9)


def test_at_the_start_a_margin_costs_its_softplus_and_pulls_harder_than_none():
    s = scores(0.0, 0.0, 0.0)._replace(margin=torch.tensor([0.0, 1.0, 3.0], dtype=torch.double))
    chosen = s.chosen.clone().requires_grad_()
    losses = LOSSES["dpo"](widened(s._replace(chosen=chosen), 0.1))
    assert losses.tolist() == pytest.approx([log(2), softplus(1.0), softplus(3.0)])
    losses.sum().backward()
    assert chosen.grad.tolist() == sorted(chosen.grad.tolist(), reverse=True) and chosen.grad[0] < 0


# Weights


def test_a_weight_multiplies_the_loss_and_has_no_gradient():
    s = random_scores(1)._replace(weight=torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.double))
    for name in sorted(TAKES["wpo"]):
        (found,), (plain,) = (parse_loss(spec)(s).values() for spec in (f"{name}(wpo=true)", name))
        assert found.tolist() == pytest.approx((plain * s.weight).tolist())
    assert weighted(torch.ones(4), s._replace(weight=s.weight)).tolist() == [0.0, 0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    "p, low, high", [([0.25] * 4, 1, 1), ([1 - 3e-9, 1e-9, 1e-9, 1e-9], 1, 1), ([0.6, 0.3, 0.1], 0.8, 0.95)]
)
def test_what_the_policy_samples_weighs_1_where_it_is_sure_of_all_or_of_nothing_and_less_between(p, low, high):
    p = torch.tensor(p, dtype=torch.double)
    squares = (p**2).sum()
    assert (p * p / squares).sum().item() == pytest.approx(1)  # of each token, on average over what is sampled
    assert low - 1e-6 <= (p * (p / squares).log()).sum().exp().item() <= high + 1e-6  # of a long answer


# Every loss with everything that it takes

EVERY = [
    *(f"{name}(divergence={which})" for name in sorted(TAKES["divergence"]) for which in ("forward_kl", "js")),
    *(f"{name}(divergence=alpha, alpha={a})" for name in sorted(TAKES["divergence"]) for a in (0.02, 0.5, 1)),
    *(f"{name}(ld_alpha=0.5)" for name in sorted(TAKES["ld_alpha"])),
    *(f"{name}(margin=true)" for name in sorted(TAKES["margin"])),
    *(f"{name}(wpo=true)" for name in sorted(TAKES["wpo"])),
    "dpo(divergence=js, ld_alpha=0.5, margin=true, wpo=true)",
    "hinge(divergence=alpha, ld_alpha=0, margin=true, wpo=true)",
]


def with_everything(s: Scores) -> Scores:
    """Scores with margins, weights and, in the heads, seven tenths of everything."""
    four = torch.stack(s[:4])
    fraction = torch.linspace(0.1, 1, len(s.chosen), dtype=four.dtype)
    return s._replace(heads=0.7 * four, weight=fraction, margin=2 * fraction)


def four_and_heads(spec: str, s: Scores):
    """The spec as a function of the four log-probabilities and of their heads, and what to call it with."""

    def function(*parts):
        (found,) = parse_loss(spec)(
            s._replace(**dict(zip(("chosen", "rejected", "ref_chosen", "ref_rejected"), parts[:4])), heads=parts[4])
        ).values()
        return found

    return function, [part.clone().requires_grad_() for part in (*s[:4], s.heads)]


@pytest.mark.parametrize("spec", [spec for spec in EVERY if not spec.startswith("kto")])
def test_gradients_are_those_of_finite_differences(spec):
    assert torch.autograd.gradcheck(*four_and_heads(spec, with_everything(random_scores(1, scale=1.0))))


FAR = [1e4, -1e4, 88.0, -104.0, 0.0]


@pytest.mark.parametrize("spec", EVERY)
def test_no_loss_or_gradient_overflows_in_float32(spec):
    for n, m in ((1, 1), (1, 400), (400, 1)):
        s = gains(*zip(*((chosen, rejected) for chosen in FAR for rejected in FAR)), n, m)
        s = with_everything(Scores(*(part.float() for part in s[:6])))
        function, parts = four_and_heads(spec, s)
        losses = function(*parts)
        found = torch.autograd.grad(losses.sum(), parts, allow_unused=True)
        assert losses.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in found if gradient is not None)


# Through a model: every number by hand, from logits


def of_tokens(model, pair: Ids, side: str) -> tuple[list[float], list[float]]:
    """(log p, log sum p^2) at each token of an answer, from the logits of the whole text."""
    answer, whole = getattr(pair, side), pair.prompt + getattr(pair, side)
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([whole]))[0].double(), dim=-1)
    places = range(len(pair.prompt) - 1, len(whole) - 1)
    return (
        [logp[place, token].item() for place, token in zip(places, answer)],
        [math.log((logp[place].exp() ** 2).sum()) for place in places],
    )


def examples_with_margins(ids: list[Ids], margins: list[float]) -> Examples:
    return in_memory([Pair("", "", "", row, margin=m) for row, m in enumerate(margins, 1)], ids)


@pytest.mark.parametrize("micro", [1, 3, 9])
def test_through_a_model_each_modifier_gives_what_its_tokens_give_by_hand(make_gpt, random_ids, micro):
    ids, policy, reference = random_ids(6, seed=2), make_gpt(1), make_gpt(2)
    assert sum(len(pair.chosen) != len(pair.rejected) for pair in ids) > 3
    margins = [0.0, 0.5, 1.0, -0.5, 3.0, 2.0]
    expected = {"ld_alpha=0.3": [], "wpo=true": [], "margin=true": []}
    weights = []
    for pair, margin in zip(ids, margins):
        said = [of_tokens(model, pair, side) for model in (policy, reference) for side in ("chosen", "rejected")]
        (c, c2), (r, r2), (C, _), (R, _) = said
        n, common = len(c), min(len(c), len(r))
        short = [sum(part[:common]) + 0.3 * sum(part[common:]) for part in (c, r, C, R)]
        x = 0.2 * (sum(c) - sum(C) - sum(r) + sum(R))
        weights.append(exp((sum(c) - sum(c2)) / n + (sum(r) - sum(r2)) / len(r)))
        expected["ld_alpha=0.3"].append(softplus(-0.2 * (short[0] - short[2] - short[1] + short[3])))
        expected["margin=true"].append(softplus(margin - x))
        expected["wpo=true"].append(min(1.0, weights[-1]) * softplus(-x))
    assert len(set(expected["ld_alpha=0.3"])) == 6 and min(weights) < 0.9
    for modifier, losses in expected.items():
        plan = plan_of(f"dpo(beta=0.2, {modifier})", micro)
        totals, _ = add_gradients(
            policy, examples_with_margins(ids, margins), said_by(reference, ids), list(range(6)), plan
        )
        assert totals.averages(plan.loss)["loss"] == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_the_weight_of_a_pair_is_never_above_1(make_gpt):
    # answers of the likeliest tokens: p / sum p^2 is above 1 for each
    policy, prompt = make_gpt(1), [3, 1, 4, 1, 5]
    answers = []
    for first in (2, 7):
        text = [*prompt, first]
        while len(text) < len(prompt) + 9:
            with torch.no_grad():
                text.append(int(policy(torch.tensor([text]))[0, -1].argmax()))
        answers.append(text[len(prompt) :])
    pair = Ids(prompt + answers[0][:1], answers[0][1:], answers[1][1:])
    (c, c2), (r, r2) = (of_tokens(policy, pair, side) for side in ("chosen", "rejected"))
    assert (sum(c) - sum(c2)) / len(c) + (sum(r) - sum(r2)) / len(r) > 0.1
    found = {}
    for spec in ("cpo(wpo=true)", "cpo"):
        plan = plan_of(spec, 1)
        examples = examples_with_margins([pair], [0.0])
        totals, _ = add_gradients(policy, examples, no_reference(examples), [0], plan)
        found[spec] = totals.averages(plan.loss)["loss"]
    assert found["cpo(wpo=true)"] == pytest.approx(found["cpo"], rel=1e-6)
