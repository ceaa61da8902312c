"""What the formulas of dpo/losses do not see, and which losses are others at the end of a keyword."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo.forward import Way
from dpo.job import Job
from dpo.losses import LOSSES, Scores, parse_loss
from dpo.losses.family import COUPLED, NO_REFERENCE, ONE_ANSWER
from dpo.order import Limit
from dpo.plain import compute_dpo_loss
from dpo.train import Flags
from gpt.parallel import World
from tests.by_hand import KEYWORDS, pulls, random_scores

OF_THE_DIFFERENCE = ["dpo", "cdpo", "robust", "hinge", "exo", "discopop", "aot"]  # of log_ratio and nothing else
OF_MEANS = ["dpo_norm", "ipo"]  # the same of log-probabilities a token
ANCHORED = ["nca", "bco", "sppo", "apo_zero", "apo_down", "dpop"]


def pair(s: Scores, i: int) -> Scores:
    """One of the pairs, as a step of its own."""
    return Scores(*(part[i : i + 1] for part in s[:6]))


def shifted(s: Scores, chosen: torch.Tensor | float, rejected: torch.Tensor | float) -> Scores:
    """The policy finds answers likelier by these."""
    return s._replace(chosen=s.chosen + chosen, rejected=s.rejected + rejected)


@pytest.mark.parametrize("name", OF_THE_DIFFERENCE)
@given(st.integers(0, 2**31), st.lists(st.floats(-50, 50), min_size=4, max_size=4))
def test_losses_of_the_difference_do_not_see_what_both_answers_gain(name, seed, added):
    s, added = random_scores(seed), torch.tensor(added, dtype=torch.double)
    found = LOSSES[name](shifted(s, added, added), **KEYWORDS[name])
    assert torch.allclose(found, LOSSES[name](s, **KEYWORDS[name]))


@pytest.mark.parametrize("name", [*OF_MEANS, "simpo"])
@given(st.integers(0, 2**31), st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_losses_of_means_do_not_see_what_every_token_of_both_answers_gains(name, seed, added):
    s, added = random_scores(seed), torch.tensor(added, dtype=torch.double)
    found = LOSSES[name](shifted(s, added * s.chosen_len, added * s.rejected_len), **KEYWORDS[name])
    assert torch.allclose(found, LOSSES[name](s, **KEYWORDS[name]))


@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_aot_unpaired_does_not_see_what_all_answers_of_the_step_gain_and_bco_not_if_delta_does(seed, added):
    s = random_scores(seed)
    for name, keywords in (("aot_unpaired", {}), ("bco", {"delta": 0.7 + 0.3 * added})):
        found = LOSSES[name](shifted(s, added, added), **KEYWORDS[name] | keywords)
        assert torch.allclose(found, LOSSES[name](s, **KEYWORDS[name]))


@given(st.integers(0, 2**31), st.floats(0, 50))
def test_kto_does_not_see_what_all_answers_of_the_step_gain_while_both_means_are_above_0(seed, added):
    s = shifted(random_scores(seed), 40, 40)  # gains of 40 +- 10
    assert s.gain_chosen.mean() > 0 and s.gain_rejected.mean() > 0
    assert torch.allclose(LOSSES["kto"](shifted(s, added, added)), LOSSES["kto"](s))


@pytest.mark.parametrize("name", [*ANCHORED, "aot_unpaired"])
def test_anchored_losses_do_see_what_both_answers_gain(name):
    s, added = random_scores(2), torch.tensor([3.0, -3.0, 2.0, -1.0])
    found = LOSSES[name](shifted(s, added, added), **KEYWORDS[name])
    assert not torch.allclose(found, LOSSES[name](s, **KEYWORDS[name]))


@pytest.mark.parametrize("name", sorted({*LOSSES} - NO_REFERENCE - {"aot"}))
@given(st.integers(0, 2**31), st.floats(-50, 50), st.floats(-50, 50))
def test_what_policy_and_reference_alike_give_an_answer_is_not_seen(name, seed, chosen, rejected):
    s = random_scores(seed)
    easier = shifted(s, chosen, rejected)._replace(
        ref_chosen=s.ref_chosen + chosen, ref_rejected=s.ref_rejected + rejected
    )
    assert torch.allclose(LOSSES[name](easier, **KEYWORDS[name]), LOSSES[name](s, **KEYWORDS[name]))


@pytest.mark.parametrize("name", sorted(NO_REFERENCE))
def test_losses_without_a_reference_do_not_look_at_one(name):
    s = random_scores(3)
    nan = torch.full_like(s.chosen, math.nan)
    assert torch.equal(LOSSES[name](s), LOSSES[name](s._replace(ref_chosen=nan, ref_rejected=nan)))
    assert not parse_loss(name).needs_reference


def test_a_run_without_a_reference_loads_none_and_asks_none():
    job = Job(Flags(loss="+".join(sorted(NO_REFERENCE)), reference="nowhere"))
    assert job.reference is None
    way = Way(Limit(1, 1), "fp32", World(0, 1, torch.device("cpu")))
    for known in job.references(*job.models(way.world), {}, way):
        assert known.computed == 0 and not known.logps.any()


def test_losses_with_one_answer_do_not_look_at_the_other():
    s = random_scores(3)
    nan = torch.full_like(s.chosen, math.nan)
    for name in ONE_ANSWER:
        assert torch.equal(LOSSES[name](s), LOSSES[name](s._replace(rejected=nan, rejected_len=nan)))


@pytest.mark.parametrize("name", sorted({*LOSSES} - COUPLED))
def test_what_a_pair_costs_does_not_depend_on_the_others(name):
    s = random_scores(6)
    alone = [LOSSES[name](pair(s, i), **KEYWORDS[name]).item() for i in range(4)]
    assert LOSSES[name](s, **KEYWORDS[name]).tolist() == pytest.approx(alone)


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_but_in_a_coupled_loss_it_does(name):
    s = random_scores(6)
    alone = [LOSSES[name](pair(s, i), **KEYWORDS[name]).item() for i in range(4)]
    assert LOSSES[name](s, **KEYWORDS[name]).tolist() != pytest.approx(alone)


@pytest.mark.parametrize("name", LOSSES)
@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_the_order_of_pairs_is_that_of_their_losses_and_pulls_and_nothing_else(name, seed, order):
    s = random_scores(seed, B=6)
    mixed = Scores(*(part[order] for part in s[:6]))
    assert torch.allclose(LOSSES[name](mixed, **KEYWORDS[name]), LOSSES[name](s, **KEYWORDS[name])[order])
    for there, back in zip(pulls(name, mixed, **KEYWORDS[name]), pulls(name, s, **KEYWORDS[name])):
        assert there == pytest.approx([back[i] for i in order])


@given(
    st.integers(0, 2**31),
    st.floats(0.1, 10),
    st.sampled_from([*OF_THE_DIFFERENCE[:-1], "nca", "bco", "apo_zero", "apo_down", "dpop"]),
)
def test_gains_twice_as_large_are_a_beta_twice_as_high(seed, factor, name):
    s = random_scores(seed)
    rest = {key: value for key, value in KEYWORDS[name].items() if key != "beta"}
    larger = shifted(s, (factor - 1) * s.gain_chosen, (factor - 1) * s.gain_rejected)
    assert torch.allclose(LOSSES[name](larger, beta=0.2, **rest), LOSSES[name](s, beta=0.2 * factor, **rest))


# Losses that are one another


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


@given(st.integers(0, 2**31), st.floats(0.01, 2))
def test_at_the_end_of_a_keyword_losses_are_dpo_or_one_another(seed, beta):
    s = random_scores(seed)
    dpo = LOSSES["dpo"](s, beta=beta)
    for name in ("cdpo", "robust"):
        assert torch.allclose(LOSSES[name](s, beta=beta, label_smoothing=0.0), dpo)
    assert torch.allclose(LOSSES["dpop"](s, beta=beta, penalty=0.0), dpo)
    for name in ("aot", "aot_unpaired"):
        alone = [LOSSES[name](pair(s, i), beta=beta, label_smoothing=0.2).item() for i in range(4)]
        assert alone == pytest.approx(LOSSES["cdpo"](s, beta=beta, label_smoothing=0.2).tolist())
    without = s._replace(ref_chosen=0 * s.chosen, ref_rejected=0 * s.chosen)  # a uniform reference
    assert torch.allclose(LOSSES["cpo"](s, beta=beta, alpha=0.0), LOSSES["dpo"](without, beta=beta))
    assert torch.allclose(LOSSES["simpo"](s, beta=beta, gamma=0.0), LOSSES["dpo_norm"](without, beta=beta))
    fallen = shifted(s, -100, -100)  # no answer is likelier than it was: z is 0
    assert torch.allclose(2 * LOSSES["kto"](fallen, beta=beta), LOSSES["apo_zero"](fallen, beta=beta))


@given(st.integers(0, 2**31))
def test_smoothing_is_a_mixture_of_the_pair_and_the_pair_exchanged(seed):
    s = random_scores(seed)
    exchanged = Scores(s.rejected, s.chosen, s.ref_rejected, s.ref_chosen, s.rejected_len, s.chosen_len)
    there, back = (LOSSES["dpo"](one, beta=0.3) for one in (s, exchanged))
    assert torch.allclose(LOSSES["cdpo"](s, beta=0.3, label_smoothing=0.2), 0.8 * there + 0.2 * back)
    assert torch.allclose(LOSSES["robust"](s, beta=0.3, label_smoothing=0.2), (0.8 * there - 0.2 * back) / 0.6)
