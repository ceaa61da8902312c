"""What the docstrings of dpo/losses say of single losses, number by number."""

import math
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo.losses import LOSSES, Scores, parse_loss
from dpo.losses.family import own_keywords
from gpt.command import UserError
from tests.by_hand import FORMULA, discopop, gains, pulls, random_scores, scores


def pull(name: str, x: float, **keywords: float) -> float:
    """-d loss / dx at x = beta * log_ratio: above 0 where a step widens the margin."""
    beta = (own_keywords(name) | keywords)["beta"]
    return -pulls(name, scores(x / beta), **keywords)[0][0] / beta


def value(name: str, x: float, **keywords: float) -> float:
    return LOSSES[name](scores(x / (own_keywords(name) | keywords)["beta"]), **keywords).item()


# dpo, cdpo, robust


@pytest.mark.parametrize("beta", [0.05, 0.5, 2.0])
def test_dpo_falls_to_0_on_the_right_side_and_rises_in_a_straight_line_on_the_wrong_one(beta):
    losses = LOSSES["dpo"](scores(1e4, -1e4, 1e8, -1e8), beta=beta)
    assert losses[0] < 1e-100 and losses[2] == 0
    assert losses[1].item() == pytest.approx(beta * 1e4) and losses[3].item() == pytest.approx(beta * 1e8)


@given(st.floats(-50, 50), st.floats(0.01, 5))
def test_exchanging_the_answers_changes_dpo_by_beta_times_the_log_ratio(ratio, beta):
    there, back = LOSSES["dpo"](scores(ratio, -ratio), beta=beta).tolist()
    assert there - back == pytest.approx(-beta * ratio, abs=1e-9)


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "cdpo", "hinge"])
def test_a_higher_beta_pulls_less_once_the_policy_has_moved_away_for_what_it_pulls_at_the_start(name):
    # why a higher beta stays closer to the reference: its gradient dies out after a smaller log-ratio
    def pulled(beta: float, ratio: float) -> float:
        return -pulls(name, scores(ratio), beta=beta)[0][0]

    assert pulled(1.0, 8.0) / pulled(1.0, 0.0) < pulled(0.1, 8.0) / pulled(0.1, 0.0)


@pytest.mark.parametrize("beta, smoothing", [(0.1, 0.1), (0.5, 0.2), (2.0, 0.01)])
def test_cdpo_is_smallest_at_the_margin_its_docstring_names_and_pulls_back_beyond_it(beta, smoothing):
    best = log((1 - smoothing) / smoothing) / beta
    least, *others = LOSSES["cdpo"](
        scores(best, best - 0.01, best + 0.01, 0, 10 * best), beta=beta, label_smoothing=smoothing
    ).tolist()
    assert least < min(others)
    chosen, rejected = pulls("cdpo", scores(best - 1, best + 1), beta=beta, label_smoothing=smoothing)
    assert chosen[0] < 0 < chosen[1] and rejected[1] < 0 < rejected[0]


@given(st.integers(0, 2**31), st.floats(0, 0.49))
def test_robust_is_dpo_of_the_right_labels_on_average_over_the_wrong_ones(seed, noise):
    s = random_scores(seed)
    exchanged = Scores(s.rejected, s.chosen, s.ref_rejected, s.ref_chosen, s.rejected_len, s.chosen_len)
    there, back = (LOSSES["robust"](one, beta=0.3, label_smoothing=noise) for one in (s, exchanged))
    assert torch.allclose((1 - noise) * there + noise * back, LOSSES["dpo"](s, beta=0.3))


def test_robust_falls_for_ever_and_never_stops_pulling():
    found = [value("robust", x) for x in (0, 5, 50, 500)]
    assert found == sorted(found, reverse=True) and found[2] == pytest.approx(-6.25)  # -e x / (1-2e)
    assert pull("robust", 500) == pytest.approx(0.125) and pull("robust", 0) == pytest.approx(0.625)


# ipo, hinge, exo, discopop


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_ipo_is_0_at_a_margin_of_one_over_two_beta_of_means_and_nowhere_else(beta):
    n, m = 4, 4
    best = n / (2 * beta)  # a log-ratio of sums is n times one of means
    assert LOSSES["ipo"](scores(best, n=n, m=m), beta=beta).tolist() == pytest.approx([0])
    assert (LOSSES["ipo"](scores(best - 1, best + 1, n=n, m=m), beta=beta) > 0).all()
    (near, far), _ = pulls("ipo", scores(best - 1, best - 10, n=n, m=m), beta=beta)
    assert far == pytest.approx(10 * near)  # the gradient grows with the distance


def test_ipo_wants_5_nats_a_token_by_default():
    assert LOSSES["ipo"](gains([15.0], [-50.0], n=6, m=20)).item() == pytest.approx(0, abs=1e-12)  # 2.5 and -2.5


def test_the_hinge_teaches_nothing_from_a_log_ratio_of_one_over_beta_on():
    chosen, _ = pulls("hinge", scores(9.9, 10.1, 50.0), beta=0.1)
    assert chosen == pytest.approx([-0.1, 0, 0])


def test_the_hinge_pulls_a_wrong_label_with_one_force_for_ever():
    assert pull("hinge", -1e6) == pull("hinge", 0) == pytest.approx(1)


def test_exo_gives_up_a_hopeless_pair_where_dpo_pulls_most():
    assert value("exo", -60) == pytest.approx(-log(1e-3)) == pytest.approx(6.9078, abs=1e-4)
    assert abs(pull("exo", -60)) < 1e-20 and pull("dpo", -60) == pytest.approx(1)


def test_exo_is_smallest_at_69_nats_by_default_and_pulls_3_and_a_half_times_as_hard_as_dpo_at_the_start():
    best = log(0.999 / 0.001) / 0.1
    assert round(best) == 69 and LOSSES["exo"](scores(best)).item() == pytest.approx(0, abs=1e-12)
    assert LOSSES["exo"](scores(best - 1, best + 1)).min() > 0
    assert value("exo", 0) == pytest.approx(2.76, abs=0.005)
    assert pull("exo", 0) / pull("dpo", 0) == pytest.approx(3.45, abs=0.005)


def test_discopop_has_a_pit_and_a_hump_and_starts_between_them():
    x = [k / 10_000 for k in range(-3000, 3001)]
    found = [discopop(at, 0, 0, 0, 1, 1, beta=1, tau=0.05) for at in x]
    turns = [k for k in range(1, 6000) if (found[k] - found[k - 1]) * (found[k + 1] - found[k]) < 0]
    assert [x[k] for k in turns] == pytest.approx([-0.119, 0.072], abs=5e-4)
    assert found[turns[0]] < found[turns[1]]  # first the pit
    assert value("discopop", 0) == pytest.approx(0.85, abs=0.005)
    # a step narrows the margin between the two, and widens it outside
    assert [pull("discopop", at) > 0 for at in (-0.13, -0.11, 0, 0.06, 0.08)] == [True, False, False, False, True]


def test_the_wrong_side_of_discopop_is_a_straight_line_up_to_the_largest_tau_that_is_taken():
    with pytest.raises(UserError, match="at most 1"):
        parse_loss("discopop(tau=1.001)")
    s = Scores(*(part.float() for part in scores(-2e4, -1e4)[:6]))
    for tau in (1e-3, 0.5, 1.0):
        far, near = LOSSES["discopop"](s, beta=1.0, tau=tau).tolist()
        assert far - near == pytest.approx(1e4)


# nca, bco, sppo


def test_nca_draws_the_chosen_reward_to_ln_2_and_pushes_the_rejected_one_down_without_end():
    at = [(log(2) + shift) / 0.01 for shift in (-0.1, 0, 0.1, 5)]
    chosen, _ = pulls("nca", gains(at, [0.0] * 4))
    assert chosen[0] < 0 and chosen[1] == pytest.approx(0, abs=1e-15) and 0 < chosen[2] < chosen[3]
    far = [500.0, 0.0, -500.0, -5000.0]
    _, rejected = pulls("nca", gains([0.0] * 4, far))
    assert min(rejected) > 0 and rejected == sorted(rejected, reverse=True)


@given(st.integers(0, 2**31), st.floats(-20, 20), st.floats(0.01, 2))
def test_bco_is_an_upper_bound_of_dpo_whatever_delta_is(seed, delta, beta):
    s = random_scores(seed)
    assert (LOSSES["bco"](s, beta=beta, delta=delta) > LOSSES["dpo"](s, beta=beta)).all()


def test_where_all_rewards_fall_only_chosen_answers_teach_in_bco_unless_delta_falls_too():
    fallen = gains([-3000.0], [-3100.0])
    (chosen,), (rejected,) = pulls("bco", fallen)
    assert chosen == pytest.approx(-0.01) and rejected < 1e-12
    (chosen,), (rejected,) = pulls("bco", fallen, delta=-30.5)
    assert -chosen == pytest.approx(rejected) and rejected > 0.003


def test_the_targets_of_sppo_are_500_nats_away_and_on_the_way_it_is_nearly_a_line_of_slope_1000():
    assert LOSSES["sppo"](gains([500.0], [-500.0])).item() == 0
    for near in (0.0, 5.0):
        (chosen,), (rejected,) = pulls("sppo", gains([near], [-near]))
        assert chosen == pytest.approx(-1000, rel=0.011) and rejected == pytest.approx(1000, rel=0.011)


# Descents: discopop, apo; and dpop


def descended(name: str, steps: int = 2000) -> tuple[float, float]:
    """Rewards of one pair after gradient descent on them, from 0."""
    good = bad = 0.0
    for _ in range(steps):
        (chosen,), (rejected,) = pulls(name, gains([good], [bad]), beta=1.0)
        good, bad = good - 0.01 * chosen, bad - 0.01 * rejected
    return good, bad


def test_discopop_goes_into_its_pit_and_stays_there():
    good, bad = descended("discopop")
    assert good - bad == pytest.approx(-0.119, abs=5e-4)


def test_apo_zero_raises_the_chosen_answer_and_lowers_the_other():
    good, bad = descended("apo_zero")
    assert good > 1 and bad < -1


def test_apo_zero_gives_up_a_chosen_answer_far_below_the_reference():
    chosen, rejected = pulls("apo_zero", gains([-500.0, 0.0], [500.0, 0.0]))
    assert abs(chosen[0]) < 1e-20 and abs(rejected[0]) < 1e-20 and chosen[1] < 0 < rejected[1]


def test_apo_down_lowers_both_the_rejected_answer_faster():
    (chosen,), (rejected,) = pulls("apo_down", gains([0.0], [0.0]))
    assert chosen == 0 and rejected == pytest.approx(0.1 / 4)
    good, bad = descended("apo_down")
    assert bad < 2 * good < -1


def test_where_the_chosen_answer_has_fallen_dpop_weighs_it_51_to_1_and_at_the_start_it_is_dpo():
    (fallen, risen, start), (other, *_) = pulls("dpop", gains([-0.01, 0.01, 0.0], [0.0, 0.0, 0.0]))
    assert -fallen / other == pytest.approx(51)
    dpo = pulls("dpo", gains([-0.01, 0.01, 0.0], [0.0, 0.0, 0.0]), beta=0.3)[0]
    assert [risen, start] == pytest.approx(dpo[1:])


def test_the_penalty_of_dpop_is_subtracted_inside_beta():
    s = gains([-2.0], [-5.0])  # a margin of 3, and 2 nats lost
    expected = LOSSES["dpo"](scores(3 - 50 * 2.0), beta=0.3)
    assert LOSSES["dpop"](s).tolist() == pytest.approx(expected.tolist())


# kto and losses without a reference


def test_both_ends_of_kto_saturate():
    # z is that of the whole step: the third and fourth pair bring the means back to 0
    chosen, rejected = pulls("kto", gains([900.0, -900.0, 0.0], [-900.0, 900.0, 0.0]))
    assert [abs(one) < 1e-30 for one in chosen] == [abs(one) < 1e-30 for one in rejected] == [True, True, False]


def test_what_matched_answers_say_of_z_is_too_high():
    # both answers of a pair became likelier, as after SFT on them; answers to other prompts did not
    s = gains([8.0, 8.0], [4.0, 4.0])
    with_z, without = LOSSES["kto"](s), LOSSES["apo_zero"](s) / 2
    assert with_z.tolist() != pytest.approx(without.tolist())
    expected = (torch.sigmoid(torch.tensor(0.1 * (4 - 8))) + torch.sigmoid(torch.tensor(0.1 * (4 - 8)))) / 2
    assert with_z.tolist() == pytest.approx([expected.item()] * 2)


def test_the_margin_of_simpo_is_a_quarter_of_beta_and_asked_for_after_it():
    assert own_keywords("simpo") == {"beta": 2.0, "gamma": 0.5}
    one = torch.ones(1, dtype=torch.double)
    s = Scores(-2 * one, -3 * one, one * math.nan, one * math.nan, 4 * one, 4 * one)  # 0.25 nats a token apart
    assert LOSSES["simpo"](s).item() == pytest.approx(log(2))


@pytest.mark.parametrize("mean", [0.0, -1e-9, -1e-7, -1e-5])
def test_orpo_of_a_certain_answer_has_a_finite_loss_and_gradient(mean):
    # a memorized answer of one token: 1 - p is 0 in float32
    one = torch.ones(2)
    s = Scores(one * mean, torch.tensor([-5.0, mean]), 0 * one, 0 * one, one, one)
    assert LOSSES["orpo"](s).isfinite().all()
    chosen, rejected = pulls("orpo", s)
    assert all(math.isfinite(one) for one in chosen + rejected) and max(chosen) <= -1 + 1e-6


def test_a_longer_rejected_answer_makes_the_preference_term_of_cpo_small_before_anything_is_learned():
    one = torch.ones(1, dtype=torch.double)
    alike, longer = (
        Scores(-40 * one, -2 * n * one, 0 * one, 0 * one, 20 * one, n * one) for n in (20, 60)
    )  # 2 nats a token
    assert LOSSES["cpo"](alike, alpha=0).item() == pytest.approx(log(2))
    assert LOSSES["cpo"](longer, alpha=0).item() < 0.001
    assert LOSSES["cpo"](longer, alpha=1).item() == pytest.approx(2, abs=0.001)  # the likelihood alone is left


def test_sft_is_the_log_probability_of_the_chosen_answer_alone():
    s = random_scores(1)
    assert torch.equal(LOSSES["sft"](s), -s.chosen) and pulls("sft", s) == ([-1] * 4, [0] * 4)


# Values that one can check on paper


@pytest.mark.parametrize(
    "name, s, keywords, expected",
    [
        ("dpo", scores(log(3) / 0.1), {"beta": 0.1}, log(4 / 3)),
        ("dpo_norm", scores(2 * log(3), n=2, m=2), {"beta": 1}, log(4 / 3)),
        ("cdpo", scores(log(3)), {"beta": 1, "label_smoothing": 0.25}, 0.75 * log(4 / 3) + 0.25 * log(4)),
        ("robust", scores(log(3)), {"beta": 1, "label_smoothing": 0.25}, 1.5 * log(4 / 3) - 0.5 * log(4)),
        ("ipo", gains([6.0], [-2.0], n=2, m=2), {"beta": 0.5}, 9),
        ("hinge", scores(4.0), {"beta": 0.1}, 0.6),
        ("exo", scores(log(3)), {"beta": 1, "label_smoothing": 0.25}, 0),
        ("discopop", scores(-log(3)), {"beta": 1, "tau": 1}, 0.75 * log(4) + 0.25 * 3),
        ("nca", gains([log(3)], [-log(3)]), {"beta": 1}, log(4 / 3) + 0.5 * log(4) + 0.5 * log(4 / 3)),
        ("bco", gains([1 + log(3)], [1 - log(3)]), {"beta": 1, "delta": 1}, 2 * log(4 / 3)),
        ("sppo", gains([7.0], [-2.0]), {"beta": 0.1}, 13),
        ("apo_zero", gains([log(3)], [-log(3)]), {"beta": 1}, 0.5),
        ("apo_down", gains([log(3)], [2 * log(3)]), {"beta": 1}, 1.5),
        ("dpop", gains([-1.0], [-1 - log(3) / 0.5 - 4]), {"beta": 0.5, "penalty": 4}, log(4 / 3)),
        ("aot", scores(log(3)), {"beta": 1}, log(4 / 3)),
        ("aot_unpaired", gains([2.0, 1.0], [1.0, 2.0]), {"beta": 1}, log(2)),  # sorted, good and bad are alike
        (
            "kto",
            gains([log(3)], [-log(3)]),
            {"beta": 1},
            (0.25 + 0.1) / 2,
        ),  # z is 0 for the chosen answer, ln 3 for the other
    ],
)
def test_values_on_paper(name, s, keywords, expected):
    assert LOSSES[name](s, **keywords).tolist() == pytest.approx([expected] * len(s.chosen), abs=1e-12)


def test_the_odds_of_orpo_on_paper():
    one = torch.ones(1, dtype=torch.double)
    s = Scores(2 * log(0.75) * one, 3 * log(0.5) * one, 0 * one, 0 * one, 2 * one, 3 * one)  # odds 3 : 1 and 1 : 1
    assert LOSSES["orpo"](s, beta=0.1).item() == pytest.approx(log(4 / 3) + 0.1 * log(4 / 3))
    assert FORMULA["orpo"](2 * log(0.75), 3 * log(0.5), 0, 0, 2, 3, beta=0.1) == pytest.approx(1.1 * log(4 / 3))
