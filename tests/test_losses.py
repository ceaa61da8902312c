"""dpo/losses: each loss against its formula in plain floats, and what the formulas promise whatever the keywords.

What they do not see is held in tests/test_loss_invariance.py, what the docstrings say of single losses in
tests/test_loss_claims.py, what modifies them in tests/test_loss_modifiers.py, the grammar in tests/test_loss_spec.py.
"""

import math
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo.losses import LOSSES, Scores
from dpo.losses.family import COUPLED, NO_REFERENCE, ONE_ANSWER, own_keywords
from tests.by_hand import COUPLING, FORMULA, KEYWORDS, TRIED, by_hand, gains, pulls, random_scores, scores, softplus

PREFERENCE = sorted(set(LOSSES) - ONE_ANSWER)


def test_every_loss_has_its_formula_here():
    assert {*FORMULA, *COUPLING} == set(LOSSES) and set(COUPLING) == COUPLED


@pytest.mark.parametrize("name", LOSSES)
@given(st.integers(0, 2**31), st.data())
def test_each_loss_is_its_formula_in_plain_floats(name, seed, data):
    s = random_scores(seed)
    keywords = {key: data.draw(TRIED[key], label=key) for key in own_keywords(name)}
    assert LOSSES[name](s, **keywords).tolist() == pytest.approx(by_hand(name, s, **keywords), rel=1e-9, abs=1e-12)


def test_gains_and_log_ratio_are_differences_to_the_reference():
    s = Scores(*(torch.tensor([x]) for x in (-1.0, -4.0, -3.0, -4.5, 2.0, 3.0)))
    assert (s.gain_chosen.item(), s.gain_rejected.item(), s.log_ratio.item()) == (2.0, 0.5, 1.5)
    assert (s.mean_chosen.item(), s.mean_rejected.item()) == (-0.5, pytest.approx(-4 / 3))


# Gradients


# all answers likelier than the reference's, some, all unlikelier; where z of kto is not 0 it moves, but has no gradient
SHIFTS = [(name, shift) for name in LOSSES for shift in (-30.0, 0.0, 30.0) if name != "kto" or shift > 0]


@pytest.mark.parametrize("name, shift", SHIFTS)
def test_gradients_are_those_of_finite_differences(name, shift):
    s = random_scores(1)
    parts = [part.requires_grad_() for part in (*s[:2], s.ref_chosen + shift, s.ref_rejected + shift)]
    assert torch.autograd.gradcheck(lambda *four: LOSSES[name](Scores(*four, *s[4:]), **KEYWORDS[name]), parts)


@pytest.mark.parametrize("shift", [-30.0, 0.0])
def test_the_gradient_of_kto_takes_z_for_a_constant(shift):
    s = random_scores(1)
    s = s._replace(ref_chosen=s.ref_chosen + shift, ref_rejected=s.ref_rejected + shift)
    of_chosen, of_rejected = s.gain_chosen.mean().clamp(min=0), s.gain_rejected.mean().clamp(min=0)
    assert of_chosen > 0 or of_rejected > 0

    def written_out(chosen, rejected):
        good = 1.3 * torch.sigmoid(0.3 * (of_rejected - (chosen - s.ref_chosen)))
        return (good + 0.7 * torch.sigmoid(0.3 * (rejected - s.ref_rejected - of_chosen))).sum() / 2

    expected = torch.autograd.functional.jacobian(written_out, (s.chosen, s.rejected))
    for found, wanted in zip(pulls("kto", s, **KEYWORDS["kto"]), expected):
        assert found == pytest.approx(wanted.tolist())


# (chosen, rejected) at the default keywords where the policy is the reference, in closed form
AT_THE_START = {
    "dpo": lambda beta: (-beta / 2, beta / 2),
    "dpo_norm": lambda beta: (-beta / 2 / 3, beta / 2 / 5),  # of answers of 3 and 5 tokens
    "cdpo": lambda beta, label_smoothing: (beta * (label_smoothing - 0.5), beta * (0.5 - label_smoothing)),
    "robust": lambda beta, label_smoothing: (-beta / (2 - 4 * label_smoothing), beta / (2 - 4 * label_smoothing)),
    "ipo": lambda beta: (-1 / beta / 3, 1 / beta / 5),
    "hinge": lambda beta: (-beta, beta),
    "exo": lambda beta, label_smoothing: tuple(
        sign * beta / 4 * log((1 - label_smoothing) / label_smoothing) for sign in (-1, 1)
    ),
    "discopop": lambda beta, tau: tuple(sign * beta * ((1 - log(2)) / (4 * tau) - 0.75) for sign in (1, -1)),
    "nca": lambda beta: (-beta / 4, beta / 4),
    "bco": lambda beta, delta: (-beta / 2, beta / 2),
    "sppo": lambda beta: (-1 / beta, 1 / beta),
    "apo_zero": lambda beta: (-beta / 4, beta / 4),
    "apo_down": lambda beta: (0, beta / 4),
    "dpop": lambda beta, penalty: (-beta / 2, beta / 2),
    "aot": lambda beta, label_smoothing: (-beta / 2, beta / 2),
    "aot_unpaired": lambda beta, label_smoothing: (-beta / 2, beta / 2),
    "kto": lambda beta, desirable, undesirable: (-beta / 8, beta / 8),
}
WRONG_WAY = {"discopop"}  # and says so


@pytest.mark.parametrize("name", PREFERENCE)
def test_before_the_first_update_the_gradient_raises_chosen_and_lowers_rejected(name):
    s = scores(0.0, 0.0, n=3, m=5)
    chosen, rejected = pulls(name, s, **own_keywords(name))
    if name in AT_THE_START:
        expected = AT_THE_START[name](**own_keywords(name))
        assert chosen == pytest.approx([expected[0]] * 2) and rejected == pytest.approx([expected[1]] * 2)
    else:
        assert name in NO_REFERENCE  # for which there is no start
    sign = -1 if name in WRONG_WAY else 1
    assert all(sign * pull <= 0 for pull in chosen) and all(sign * pull > 0 for pull in rejected)
    assert name == "apo_down" or all(sign * pull < 0 for pull in chosen)


@given(st.integers(0, 2**31), st.data())
@pytest.mark.parametrize(
    "name", sorted({*PREFERENCE} - {"cdpo", "ipo", "exo", "discopop", "nca", "sppo", "apo_down", "aot"})
)
def test_most_losses_never_pull_the_wrong_way(name, seed, data):
    keywords = {key: data.draw(TRIED[key], label=key) for key in own_keywords(name)}
    if name == "aot_unpaired":
        keywords["label_smoothing"] = 0.0
    chosen, rejected = pulls(name, random_scores(seed), **keywords)
    assert max(chosen) <= 0 <= min(rejected)


# The start and the limits

# of a pair whose answers are as likely as the reference's, at any beta
START = {
    "dpo": lambda: log(2),
    "dpo_norm": lambda: log(2),
    "cdpo": lambda label_smoothing: log(2),
    "robust": lambda label_smoothing: log(2),
    "hinge": lambda: 1.0,
    "exo": lambda label_smoothing: 0.5 * log(0.25 / (label_smoothing * (1 - label_smoothing))),
    "discopop": lambda tau: (log(2) + 1) / 2,
    "nca": lambda: 2 * log(2),
    "bco": lambda delta: softplus(delta) + softplus(-delta),
    "apo_zero": lambda: 1.0,
    "apo_down": lambda: 1.0,
    "dpop": lambda penalty: log(2),
    "aot": lambda label_smoothing: log(2),
    "aot_unpaired": lambda label_smoothing: log(2),
    "kto": lambda desirable, undesirable: (desirable + undesirable) / 4,
}


def without_beta(name: str) -> dict[str, float]:
    return {key: value for key, value in KEYWORDS[name].items() if key != "beta"}


@pytest.mark.parametrize("name", sorted(START))
@pytest.mark.parametrize("beta", [0.01, 0.1, 3.0])
def test_where_the_policy_is_the_reference_a_loss_has_one_value_whatever_beta(name, beta):
    rest = without_beta(name)
    found = LOSSES[name](scores(0.0, 0.0, n=3, m=5), beta=beta, **rest)
    assert found.tolist() == pytest.approx([START[name](**rest)] * 2)


@pytest.mark.parametrize("name", sorted(START))
def test_as_beta_goes_to_0_every_pair_costs_what_it_does_at_the_start(name):
    rest = without_beta(name)
    assert LOSSES[name](random_scores(3), beta=1e-9, **rest).tolist() == pytest.approx(
        [START[name](**rest)] * 4, rel=1e-6
    )


def test_as_beta_goes_to_0_the_others_lose_their_preference_or_their_target_goes_to_infinity():
    s, beta = random_scores(3), 1e-9
    assert LOSSES["simpo"](s, beta=beta, gamma=0.7).tolist() == pytest.approx([softplus(0.7)] * 4)
    assert LOSSES["orpo"](s, beta=beta).tolist() == pytest.approx((-s.mean_chosen).tolist())
    assert LOSSES["cpo"](s, beta=beta, alpha=2.0).tolist() == pytest.approx((log(2) - 2 * s.mean_chosen).tolist())
    assert (4 * beta**2 * LOSSES["ipo"](s, beta=beta)).tolist() == pytest.approx([1] * 4)
    assert (2 * beta**2 * LOSSES["sppo"](s, beta=beta)).tolist() == pytest.approx([1] * 4)
    assert {*START, "simpo", "orpo", "cpo", "ipo", "sppo"} == {*PREFERENCE}


# What a pair costs as x = beta * log_ratio goes to minus and plus infinity, one half of it gained by the chosen answer and
# one lost by the rejected; the head of dpo/losses/pairwise.py has the first eight. e: label_smoothing, b: beta.
LIMITS = {
    "dpo": (lambda x, b: -x, lambda x, b: 0),
    "dpo_norm": (lambda x, b: -x, lambda x, b: 0),
    "cdpo": (lambda x, b, e: -(1 - e) * x, lambda x, b, e: e * x),
    "robust": (lambda x, b, e: -(1 - e) / (1 - 2 * e) * x, lambda x, b, e: -e / (1 - 2 * e) * x),
    "ipo": (lambda x, b: x**2 / b**2, lambda x, b: x**2 / b**2),
    "hinge": (lambda x, b: 1 - x, lambda x, b: 0),
    "exo": (lambda x, b, e: -log(e), lambda x, b, e: -log(1 - e)),
    "discopop": (lambda x, b, tau: -x, lambda x, b, tau: 0),
    "nca": (lambda x, b: -0.75 * x, lambda x, b: 0.25 * x),
    "bco": (lambda x, b, delta: -x, lambda x, b, delta: 0),
    "sppo": (lambda x, b: x**2 / (2 * b**2), lambda x, b: x**2 / (2 * b**2)),
    "apo_zero": (lambda x, b: 2, lambda x, b: 0),
    "apo_down": (lambda x, b: 1, lambda x, b: 1),
    "dpop": (lambda x, b, penalty: -(1 + penalty / 2) * x, lambda x, b, penalty: 0),
    "aot": (lambda x, b, e: -(1 - e) * x, lambda x, b, e: e * x),
    "aot_unpaired": (lambda x, b, e: -(1 - e) * x, lambda x, b, e: e * x),
    "kto": (lambda x, b, good, bad: (good + bad) / 2, lambda x, b, good, bad: 0),
    "simpo": (lambda x, b, gamma: -x, lambda x, b, gamma: 0),
}


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_far_from_the_start_a_loss_is_what_its_limit_says(name):
    beta, *rest = (keywords := KEYWORDS[name]).values()
    for x, limit in zip((-1e7, 1e7), LIMITS[name]):
        found = LOSSES[name](scores(x / beta), **keywords).item()
        assert found == pytest.approx(limit(x, beta, *rest), rel=1e-5, abs=1e-12)


def test_orpo_and_cpo_are_0_for_a_certain_chosen_answer_and_grow_in_a_straight_line_with_an_impossible_one():
    def of(name: str, chosen: float, rejected: float, **keywords) -> float:
        one = torch.ones(1, dtype=torch.double)
        return LOSSES[name](Scores(one * chosen, one * rejected, 0 * one, 0 * one, 4 * one, 4 * one), **keywords).item()

    assert of("orpo", -1e-9, -1e6, beta=0.3) == pytest.approx(0, abs=1e-6)
    assert of("orpo", -4e6, -1.0, beta=0.3) == pytest.approx(1.3e6, rel=1e-5)
    assert of("cpo", 0.0, -1e6, beta=0.3, alpha=0.6) == pytest.approx(0, abs=1e-6)
    assert of("cpo", -4e6, -1.0, beta=0.3, alpha=0.6) == pytest.approx(0.3 * 4e6 + 0.6 * 1e6, rel=1e-5)


FAR = [1e4, -1e4, 88.0, -104.0, 0.0]
EXTREME = [(chosen, rejected) for chosen in FAR for rejected in FAR]
LONG = [(1, 1), (1, 400), (400, 1)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("defaults", [True, False])
def test_no_loss_or_gradient_overflows_in_float32(name, defaults):
    keywords = own_keywords(name) if defaults else KEYWORDS[name]
    for n, m in LONG:
        s = Scores(*(part.float() for part in gains(*zip(*EXTREME), n, m)[:6]))
        assert torch.isfinite(LOSSES[name](s, **keywords)).all()
        assert all(math.isfinite(pull) for side in pulls(name, s, **keywords) for pull in side)
