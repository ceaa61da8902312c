"""dpo/losses/spec.py: the grammar of --loss, what it refuses, and what a loss that was read says of itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo.losses import LOSSES, Loss, Term, parse_loss
from dpo.losses.family import (
    COUPLED,
    MODIFIERS,
    NO_REFERENCE,
    ONE_ANSWER,
    PER_TOKEN,
    TAKES,
    modifiers_of,
    own_keywords,
)
from gpt.command import UserError
from tests.by_hand import TRIED, random_scores


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
        (
            "bco(delta=-0.5)+kto(desirable=1.3,undesirable=2)",
            [(1, "bco", {"delta": -0.5}), (1, "kto", {"undesirable": 2})],
        ),
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
    for name in LOSSES:
        loss = parse_loss(name)
        assert loss.needs_reference == (name not in NO_REFERENCE) and loss.coupled == (name in COUPLED)
        assert loss.needs_rejected == (name not in ONE_ANSWER)
        mixed = parse_loss(f"sft + {name}" if name != "sft" else "sft + simpo")
        assert mixed.needs_rejected and mixed.coupled == loss.coupled and mixed.needs_reference == loss.needs_reference


def test_a_loss_needs_what_a_modifier_of_one_of_its_terms_needs_and_nothing_where_it_changes_nothing():
    loss = parse_loss("dpo(wpo=true) + 0.5*hinge(margin=true) + nca(ld_alpha=0)")
    assert all(loss.needs(modifier) for modifier in ("wpo", "margin", "ld_alpha")) and not loss.needs("divergence")
    still = parse_loss("dpo(wpo=false, margin=false, ld_alpha=1, divergence=reverse_kl)")
    assert not any(still.needs(modifier) for modifier in MODIFIERS) and still == parse_loss("dpo")


@pytest.mark.parametrize(
    "spec, modifiers",
    [
        ("dpo(divergence=js)", {"divergence": "js"}),
        ("dpo(divergence=alpha)", {"divergence": "alpha", "alpha": 0.5}),
        ("ipo(beta=0.2, divergence=alpha, alpha=0.3)", {"divergence": "alpha", "alpha": 0.3}),
        ("dpo(ld_alpha=0.5, wpo=true, margin=true)", {"ld_alpha": 0.5, "wpo": True, "margin": True}),
        ("cpo(alpha=0.5, wpo=true)", {"wpo": True}),  # whose alpha is a weight of its own
    ],
)
def test_modifiers_stand_among_the_keywords(spec, modifiers):
    (term,) = parse_loss(spec).terms
    assert term.modifiers == modifiers and term.keywords.keys() == own_keywords(term.name).keys()


positive = st.floats(1e-6, 1e6)


@given(st.lists(st.sampled_from(sorted(LOSSES)), min_size=1, max_size=3, unique=True), st.data())
def test_a_loss_written_out_is_read_back_as_the_same_loss(names, data):
    terms = []
    for name in names:
        keywords = {key: data.draw(positive if key == "beta" else TRIED[key]) for key in own_keywords(name)}
        modifiers = {}
        for key in data.draw(st.sets(st.sampled_from(sorted(modifiers_of(name)) or [""]))) - {"alpha", ""}:
            modifiers[key] = data.draw(st.floats(0, 0.9)) if key == "ld_alpha" else True
            if key == "divergence":
                modifiers[key] = data.draw(st.sampled_from(["forward_kl", "js", "alpha"]))
                if modifiers[key] == "alpha":
                    modifiers["alpha"] = data.draw(st.floats(1e-3, 1))
        terms.append(Term(data.draw(positive), name, keywords, modifiers))
    loss = Loss(tuple(terms))
    assert parse_loss(str(loss)) == loss and parse_loss(str(loss), beta=9.0) == loss


def test_a_loss_written_out_names_every_keyword():
    assert str(parse_loss("2*sft + cdpo", beta=0.25)) == "2*sft + cdpo(beta=0.25, label_smoothing=0.1)"


WRONG = [
    ("", ["--loss '': it names no loss", "a term is a name"]),
    ("dpo +", ["a loss is missing beside a +"]),
    ("dpo ++ sft", ["--loss 'dpo ++ sft': a loss is missing beside a +"]),
    ("dpo - sft", ["'dpo - sft'"]),
    ("0.5 dpo", ["'0.5 dpo'"]),
    ("dpo(beta=0.1", ["dpo(beta=0.1"]),
    ("hing", ["no loss 'hing'", "did you mean hinge?", *LOSSES]),
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
    ("robust(label_smoothing=0.5)", ["label_smoothing is 0.5", "at least 0 and below 0.5"]),
    ("exo(label_smoothing=0)", ["label_smoothing is 0", "above 0 and below 0.5"]),
    ("discopop(tau=0)", ["tau is 0", "above 0"]),
    ("discopop(tau=1.1)", ["tau is 1.1", "at most 1"]),
    ("dpop(penalty=-1)", ["penalty is -1", "at least 0"]),
    ("bco(delta=inf)", ["delta is inf", "finite"]),
    ("bco(delta=nan)", ["delta is nan", "finite"]),
    ("simpo(gamma=-0.1)", ["gamma is -0.1", "at least 0"]),
    ("kto(desirable=0)", ["desirable is 0", "above 0"]),
    ("cpo(alpha=-1)", ["alpha is -1", "at least 0"]),
    ("dpo(divergence=kl)", ["dpo(divergence=...)", "reverse_kl, forward_kl, js, alpha", "'kl'"]),
    ("dpo(divergence=alpha, alpha=0)", ["alpha is 0", "above 0 and at most 1"]),
    ("dpo(divergence=alpha, alpha=1.5)", ["alpha is 1.5", "at most 1"]),
    ("dpo(alpha=0.5)", ["alpha in dpo", "divergence=alpha"]),
    ("dpo(divergence=js, alpha=0.5)", ["alpha in dpo", "divergence=alpha"]),
    ("dpo(ld_alpha=1.1)", ["ld_alpha is 1.1", "at least 0 and at most 1"]),
    ("dpo(wpo=1)", ["dpo(wpo=...)", "true, false", "'1'"]),
    ("dpo(margin=0.5)", ["dpo(margin=...)", "true, false", "'0.5'"]),
    ("nca(divergence=js)", ["nca", "'divergence'", "ld_alpha"]),
    ("ipo(margin=true)", ["ipo", "'margin'"]),
    ("aot(wpo=true)", ["aot", "'wpo'"]),
    ("sft(wpo=true)", ["sft", "'wpo'", "none"]),
    ("simpo(ld_alpha=0.5)", ["simpo", "'ld_alpha'"]),
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
    with pytest.raises(UserError, match="^--beta is"):
        parse_loss("sft + dpo", beta=beta)


def test_a_modifier_is_taken_by_the_losses_that_say_so_and_refused_by_the_others():
    given = {"divergence": "js", "ld_alpha": "0.5", "margin": "true", "wpo": "true"}
    for name in LOSSES:
        for key, value in given.items():
            if name in TAKES[key]:
                assert parse_loss(f"{name}({key}={value})").needs(key)
            else:
                with pytest.raises(UserError, match=f"{name} has no keyword '{key}'"):
                    parse_loss(f"{name}({key}={value})")


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
