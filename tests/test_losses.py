"""dpo/losses.py: each loss against its formula in plain floats, what the formulas promise, and the grammar of --loss."""

import math
from math import log, log1p

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo.losses import LOSSES, ONE_ANSWER, PER_TOKEN, Loss, Scores, Term, parse_loss
from dpo.plain import compute_dpo_loss
from gpt.command import UserError


def softplus(x: float) -> float:
    """-log sigmoid(-x) = log(1 + e^x), without overflow."""
    return max(x, 0.0) + log1p(math.exp(-abs(x)))


# Each formula in plain floats: c, r the policy's sums, C, R the reference's, n, m the lengths.
FORMULA = {
    "dpo": lambda c, r, C, R, n, m, beta: softplus(-beta * ((c - C) - (r - R))),
    "dpo_norm": lambda c, r, C, R, n, m, beta: softplus(-beta * ((c - C) / n - (r - R) / m)),
    "cdpo": lambda c, r, C, R, n, m, beta, label_smoothing: (
        (1 - label_smoothing) * softplus(-beta * ((c - C) - (r - R)))
        + label_smoothing * softplus(beta * ((c - C) - (r - R)))
    ),
    "ipo": lambda c, r, C, R, n, m, beta: ((c - C) / n - (r - R) / m - 0.5 / beta) ** 2,
    "hinge": lambda c, r, C, R, n, m, beta: max(0.0, 1 - beta * ((c - C) - (r - R))),
    "sft": lambda c, r, C, R, n, m: -c,
}
KEYWORDS = {
    name: {} if name == "sft" else {"beta": 0.3} | ({"label_smoothing": 0.2} if name == "cdpo" else {})
    for name in FORMULA
}
PREFERENCE = sorted(set(LOSSES) - ONE_ANSWER)
LOGISTIC = ["dpo", "dpo_norm", "cdpo"]


def scores(*log_ratios: float, n: float = 1, m: float = 1) -> Scores:
    """Pairs whose chosen answer gained half the log-ratio and whose rejected one lost half; lengths n and m."""
    gain = torch.tensor(log_ratios, dtype=torch.double) / 2
    zero = torch.zeros_like(gain)
    return Scores(gain - 5, -gain - 7, zero - 5, zero - 7, zero + n, zero + m)


def random_scores(seed: int, B: int = 4, scale: float = 5.0) -> Scores:
    g = torch.Generator().manual_seed(seed)
    four = [-20 + scale * torch.randn(B, generator=g, dtype=torch.double) for _ in range(4)]
    return Scores(*four, *(torch.randint(1, 30, (B,), generator=g).double() for _ in range(2)))


def test_every_loss_has_its_formula_here():
    assert set(FORMULA) == set(LOSSES)


@pytest.mark.parametrize("name", FORMULA)
@given(st.integers(0, 2**31), st.floats(0.01, 10), st.floats(0, 0.49))
def test_each_loss_is_its_formula_in_plain_floats(name, seed, beta, smoothing):
    s = random_scores(seed)
    keywords = {key: {"beta": beta, "label_smoothing": smoothing}[key] for key in KEYWORDS[name]}
    expected = [FORMULA[name](*pair, **keywords) for pair in zip(*(part.tolist() for part in s))]
    assert LOSSES[name](s, **keywords).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_gains_and_log_ratio_are_differences_to_the_reference():
    s = Scores(*(torch.tensor([x]) for x in (-1.0, -4.0, -3.0, -4.5, 2.0, 3.0)))
    assert (s.gain_chosen.item(), s.gain_rejected.item(), s.log_ratio.item()) == (2.0, 0.5, 1.5)


# What the formulas promise


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    s = random_scores(1)
    parts = [part.requires_grad_() for part in s[:4]]
    assert torch.autograd.gradcheck(lambda *four: LOSSES[name](Scores(*four, *s[4:]), **KEYWORDS[name]), parts)


@pytest.mark.parametrize("name", PREFERENCE)
def test_before_the_first_update_the_gradient_raises_chosen_and_lowers_rejected(name):
    s = scores(0.0, 0.0, n=3, m=5)
    chosen, rejected = s.chosen.requires_grad_(), s.rejected.requires_grad_()
    LOSSES[name](s, **KEYWORDS[name]).sum().backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()


@pytest.mark.parametrize("name", LOGISTIC)
@pytest.mark.parametrize("beta", [0.01, 0.1, 3.0])
def test_logistic_losses_are_ln_2_where_the_policy_is_the_reference(name, beta):
    assert LOSSES[name](scores(0.0), beta=beta).tolist() == pytest.approx([log(2)])


@pytest.mark.parametrize("beta", [0.05, 0.5, 2.0])
def test_dpo_falls_to_0_on_the_right_side_and_rises_in_a_straight_line_on_the_wrong_one(beta):
    losses = LOSSES["dpo"](scores(1e4, -1e4, 1e8, -1e8), beta=beta)
    assert losses[0] < 1e-100 and losses[2] == 0
    assert losses[1].item() == pytest.approx(beta * 1e4) and losses[3].item() == pytest.approx(beta * 1e8)


@pytest.mark.parametrize("name", PREFERENCE)
def test_no_loss_or_gradient_overflows_in_float32(name):
    s = Scores(*(part.float() for part in scores(1e4, -1e4, 88.0, -104.0)))
    chosen = s.chosen.requires_grad_()
    loss = LOSSES[name](s, **KEYWORDS[name])
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(chosen.grad).all()


@given(st.floats(-50, 50), st.floats(0.01, 5))
def test_exchanging_the_answers_changes_dpo_by_beta_times_the_log_ratio(ratio, beta):
    there, back = LOSSES["dpo"](scores(ratio, -ratio), beta=beta).tolist()
    assert there - back == pytest.approx(-beta * ratio, abs=1e-9)


@given(st.integers(0, 2**31))
def test_smoothing_is_a_mixture_of_the_pair_and_the_pair_exchanged(seed):
    s = random_scores(seed)
    exchanged = Scores(s.rejected, s.chosen, s.ref_rejected, s.ref_chosen, s.rejected_len, s.chosen_len)
    mixed = 0.8 * LOSSES["dpo"](s, beta=0.3) + 0.2 * LOSSES["dpo"](exchanged, beta=0.3)
    assert torch.allclose(LOSSES["cdpo"](s, beta=0.3, label_smoothing=0.2), mixed)
    assert torch.equal(LOSSES["cdpo"](s, beta=0.3, label_smoothing=0.0), LOSSES["dpo"](s, beta=0.3))


@pytest.mark.parametrize("beta, smoothing", [(0.1, 0.1), (0.5, 0.2), (2.0, 0.01)])
def test_cdpo_is_smallest_at_the_margin_its_docstring_names(beta, smoothing):
    best = log((1 - smoothing) / smoothing) / beta
    least, *others = LOSSES["cdpo"](
        scores(best, best - 0.01, best + 0.01, 0, 10 * best), beta=beta, label_smoothing=smoothing
    ).tolist()
    assert least < min(others)


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_ipo_is_0_at_a_margin_of_one_over_two_beta_of_means_and_nowhere_else(beta):
    n, m = 4, 4
    best = n / (2 * beta)  # a log-ratio of sums is n times one of means
    assert LOSSES["ipo"](scores(best, n=n, m=m), beta=beta).tolist() == pytest.approx([0])
    assert (LOSSES["ipo"](scores(best - 1, best + 1, n=n, m=m), beta=beta) > 0).all()


def test_the_hinge_teaches_nothing_from_a_log_ratio_of_one_over_beta_on():
    s = scores(9.9, 10.1, 50.0)
    chosen = s.chosen.requires_grad_()
    LOSSES["hinge"](s, beta=0.1).sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.1, 0, 0])


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "cdpo", "hinge"])
def test_a_higher_beta_pulls_less_once_the_policy_has_moved_away_for_what_it_pulls_at_the_start(name):
    # why a higher beta stays closer to the reference: its gradient dies out after a smaller log-ratio
    def pull(beta: float, ratio: float) -> float:
        s = scores(ratio)
        LOSSES[name](s._replace(chosen=(chosen := s.chosen.requires_grad_())), beta=beta).sum().backward()
        return -chosen.grad.item()

    assert pull(1.0, 8.0) / pull(1.0, 0.0) < pull(0.1, 8.0) / pull(0.1, 0.0)


@given(st.integers(0, 2**31), st.floats(0.01, 5))
def test_dpo_norm_is_the_books_loss_on_means(seed, beta):
    s = random_scores(seed)
    book = compute_dpo_loss(
        s.chosen / s.chosen_len,
        s.rejected / s.rejected_len,
        s.ref_chosen / s.chosen_len,
        s.ref_rejected / s.rejected_len,
        beta,
    )
    assert torch.allclose(LOSSES["dpo_norm"](s, beta=beta).mean(), book[0])


@given(st.integers(0, 2**31), st.floats(0.01, 5))
def test_dpo_is_the_books_loss_on_sums_and_on_answers_of_one_length_dpo_norm_with_beta_times_the_length(seed, beta):
    s = random_scores(seed)
    assert torch.allclose(LOSSES["dpo"](s, beta=beta).mean(), compute_dpo_loss(*s[:4], beta)[0])
    alike = s._replace(chosen_len=torch.full_like(s.chosen, 20), rejected_len=torch.full_like(s.chosen, 20))
    assert torch.allclose(LOSSES["dpo"](alike, beta=beta), LOSSES["dpo_norm"](alike, beta=20 * beta))


def test_losses_with_one_answer_do_not_look_at_the_other_or_at_the_reference():
    s = random_scores(3)
    nan = torch.full_like(s.chosen, math.nan)
    for name in ONE_ANSWER:
        assert torch.equal(
            LOSSES[name](s), LOSSES[name](s._replace(rejected=nan, ref_chosen=nan, ref_rejected=nan, rejected_len=nan))
        )


# The grammar of a spec


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("dpo", [(1, "dpo", {})]),
        ("  ipo( beta = 0.2 ) ", [(1, "ipo", {"beta": 0.2})]),
        ("dpo + 0.2*sft", [(1, "dpo", {}), (0.2, "sft", {})]),
        ("dpo(beta=0.2)+0.5 * sft", [(1, "dpo", {"beta": 0.2}), (0.5, "sft", {})]),
        (
            "2*cdpo(beta=0.2, label_smoothing=0.3) + sft + 1e-1*hinge(beta=1e+1)",
            [(2, "cdpo", {"beta": 0.2, "label_smoothing": 0.3}), (1, "sft", {}), (0.1, "hinge", {"beta": 10.0})],
        ),
        ("dpo()", [(1, "dpo", {})]),
    ],
)
def test_a_spec_is_a_sum_of_weights_names_and_keywords(spec, expected):
    found = parse_loss(spec)
    assert [(term.weight, term.name) for term in found.terms] == [case[:2] for case in expected]
    for term, (_, _, keywords) in zip(found.terms, expected):
        assert keywords.items() <= term.keywords.items()


@pytest.mark.parametrize("name", LOSSES)
def test_a_name_alone_means_the_functions_own_defaults(name):
    s = random_scores(2)
    (term,) = parse_loss(name)(s).values()
    assert torch.equal(term, LOSSES[name](s))


@pytest.mark.parametrize(
    "spec, betas",
    [
        ("dpo", [0.7]),
        ("dpo(beta=0.2)", [0.2]),
        ("sft + ipo", [None, 0.7]),
        ("hinge + dpo(beta=0.2)", [0.7, 0.2]),
        ("cdpo(label_smoothing=0.3)", [0.7]),
    ],
)
def test_beta_binds_to_every_term_that_takes_one_and_did_not_set_it(spec, betas):
    loss = parse_loss(spec, beta=0.7)
    assert [term.keywords.get("beta") for term in loss.terms] == betas
    assert loss.beta == next(beta for beta in betas if beta)


def test_rewards_without_any_beta_are_log_probabilities():
    assert parse_loss("sft").beta == 1 and parse_loss("sft", beta=0.7).beta == 1


def test_what_a_loss_needs_is_what_its_terms_need():
    needs = {
        spec: (parse_loss(spec).needs_reference, parse_loss(spec).needs_rejected)
        for spec in ("sft", "dpo", "sft + dpo", "ipo")
    }
    assert needs == {"sft": (False, False), "dpo": (True, True), "sft + dpo": (True, True), "ipo": (True, True)}


positive = st.floats(1e-6, 1e6)


@given(st.lists(st.sampled_from(sorted(LOSSES)), min_size=1, max_size=3, unique=True), st.data())
def test_a_loss_written_out_is_read_back_as_the_same_loss(names, data):
    terms = []
    for name in names:
        keywords = {
            key: data.draw(positive if key == "beta" else st.floats(0, 0.49))
            for key in parse_loss(name).terms[0].keywords
        }
        terms.append(Term(data.draw(positive), name, keywords))
    loss = Loss(tuple(terms))
    assert parse_loss(str(loss)) == loss and parse_loss(str(loss), beta=9.0) == loss


def test_a_loss_written_out_names_every_keyword():
    assert str(parse_loss("2*sft + cdpo", beta=0.25)) == "2*sft + cdpo(beta=0.25, label_smoothing=0.1)"


WRONG = [
    ("", ["''"]),
    ("dpo +", ["''"]),
    ("dpo - sft", ["'dpo - sft'"]),
    ("0.5 dpo", ["'0.5 dpo'"]),
    ("dpo(beta=0.1", ["dpo(beta=0.1"]),
    ("dop", ["no loss 'dop'", "did you mean dpo?", *LOSSES]),
    ("xyz", ["'xyz'", *LOSSES]),
    ("DPO", ["'DPO'", "dpo"]),
    ("dpo(bta=0.1)", ["dpo", "'bta'", "beta"]),
    ("sft(beta=0.1)", ["sft", "'beta'", "none"]),
    ("dpo(0.1)", ["dpo", "'0.1'", "beta"]),
    ("cdpo(beta=0.1, smoothing=0.2)", ["'smoothing'", "label_smoothing"]),
    ("dpo(beta=high)", ["beta", "number", "'high'"]),
    ("dpo(beta=)", ["beta", "number"]),
    ("dpo(beta=[1])", ["beta", "number"]),
    ("dpo(beta=1+2j)", ["beta", "number"]),
    ("x*dpo", ["weight", "'x'"]),
    ("0*sft", ["weight of sft", "0"]),
    ("-1*sft", ["weight of sft", "-1"]),
    ("dpo(beta=0)", ["beta", "above 0"]),
    ("dpo(beta=-0.1)", ["beta is -0.1", "above 0"]),
    ("dpo(beta=1e999)", ["beta is inf"]),
    ("cdpo(label_smoothing=0.5)", ["label_smoothing is 0.5", "below 0.5"]),
    ("cdpo(label_smoothing=-0.1)", ["label_smoothing", "at least 0"]),
    ("1e999*sft", ["weight of sft"]),
    ("dpo + sft + dpo", ["dpo stands twice"]),
    ("dpo(beta=1, beta=2)", ["beta", "twice"]),
    ("dpo(beta=" + "9" * 400 + ")", ["beta"]),
    ("9" * 400 + "*sft", ["weight"]),
    ("dpo\nsft", ["sft"]),
    ("dpo(beta='a\nb')", ["beta"]),
]


@pytest.mark.parametrize("spec, expected", WRONG, ids=[spec[:30] for spec, _ in WRONG])
def test_a_wrong_spec_is_refused_in_one_line_that_names_what_is_wrong(spec, expected):
    with pytest.raises(UserError) as caught:
        parse_loss(spec)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and repr(spec) in message
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_a_beta_out_of_range_is_refused_when_it_comes_from_the_flag_too(beta):
    with pytest.raises(UserError, match="beta is"):
        parse_loss("sft + dpo", beta=beta)


@given(st.text(alphabet="dposft*+()=,.0123456789 beta\n\x00[]'-_e", max_size=25))
def test_whatever_is_given_as_a_spec_is_a_loss_or_one_error_for_the_user(spec):
    try:
        assert parse_loss(spec).terms
    except UserError:
        pass


# Sums


def test_a_sum_divides_each_term_by_what_it_counts_and_weighs_it():
    sums = {"dpo": torch.tensor(6.0), "sft": torch.tensor(50.0)}
    assert parse_loss("dpo + 0.5*sft").total(sums, pairs=4, tokens=20).item() == pytest.approx(6 / 4 + 0.5 * 50 / 20)
    assert parse_loss("3*sft").total(sums, pairs=4, tokens=20).item() == pytest.approx(3 * 50 / 20)


@pytest.mark.parametrize("name", LOSSES)
def test_the_total_of_one_loss_is_the_mean_over_pairs_or_over_tokens(name):
    s = random_scores(4)
    losses = parse_loss(name)(s)[name]
    count = s.chosen_len.sum() if name == "sft" else len(losses)
    assert (name in PER_TOKEN) == (name == "sft")
    assert torch.allclose(
        parse_loss(name).total({name: losses.sum()}, len(losses), s.chosen_len.sum().item()), losses.sum() / count
    )


def test_calling_a_loss_gives_the_terms_unweighted_by_name():
    s = random_scores(5)
    found = parse_loss("0.25*ipo(beta=0.4) + 3*sft")(s)
    assert list(found) == ["ipo", "sft"]
    assert torch.equal(found["ipo"], LOSSES["ipo"](s, beta=0.4)) and torch.equal(found["sft"], LOSSES["sft"](s))
