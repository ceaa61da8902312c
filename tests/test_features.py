"""data/features.py: the regression against autograd, on sets made by hand that can and cannot be told apart."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.confidence import wilson
from data.features import FEATURES, FEWEST, Sample, fit, look, separability
from data.sides import text_hash


def looks(pairs: list[tuple[str, str]], prompts: int | None = None) -> list:
    """What is kept of these (chosen, rejected), each with a prompt of its own, or of so many prompts in turn."""
    return [look(text_hash(f"prompt {i % (prompts or len(pairs))}"), *pair) for i, pair in enumerate(pairs)]


def sentence(rng: Random) -> str:
    """Words at random, of which the length, the first and the last say nothing of the next sentence."""
    words = "a b c d e f, g. H I 7 8! j? k\n- l".split(" ")
    return " ".join(rng.choices(words, k=rng.randint(1, 30))).strip()


def told(right: list[bool]) -> list[tuple[str, str]]:
    """Pairs of sentences of which one is longer by half, and is chosen where `right` says so."""
    rng, pairs = Random(1), []
    for is_right in right:
        short, long = sentence(rng), sentence(rng)
        while min(len(short), len(long)) * 1.5 > max(len(short), len(long)):
            long = sentence(rng)
        short, long = sorted((short, long), key=len)
        pairs.append((long, short) if is_right else (short, long))
    return pairs


def test_what_the_docstring_shows_is_the_difference():
    found = look(7, "Certainly! 5", "5")
    difference = dict(zip(FEATURES, found.difference.round(2).tolist()))
    assert difference["characters"] == pytest.approx(1.87, abs=0.01)  # log(13 / 2)
    assert difference["exclamation marks"] == pytest.approx(0.69, abs=0.01)
    assert difference["digits"] == difference["line breaks"] == 0 and difference["a capital first"] == 1
    assert (found.chosen, found.rejected) == (("Certainly!", "5"), ("5", "5"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("I cannot help with that.", 1),
        ("I’m sorry, but no.", 1),
        ("As an AI, I have no taste.", 1),
        ("I'm unable to say.", 1),
        ("I apologise.", 1),
        ("You cannot be serious.", 0),
        ("I am glad.", 0),
    ],
)
def test_a_refusal_is_known_by_its_words(text, expected):
    assert FEATURES["a refusal"](text) == expected


def test_counts_are_logarithms_of_what_is_there():
    text = "A list:\n- one\n* two\n3. three\n# Four, five!"
    counts = {
        "list items": 4,
        "line breaks": 4,
        "commas": 1,
        "capitals": 2,
        "digits": 1,
        "words": 11,
        "characters": len(text),
    }
    for name, count in counts.items():
        assert FEATURES[name](text) == pytest.approx(np.log(count + 1)), name


def test_what_features_cost_grows_with_the_text_and_no_faster():
    """A pattern that tried again at each of a million line ends, or brackets, would take hours."""
    for piece in ("\n", " ", "\t\n", "- ", "1", "I ", "I am ", "I can", "<|", "'"):
        text = f"a{piece * 200_000}b"
        assert all(np.isfinite(feature(text)) for feature in FEATURES.values())


# The regression


def gradient(x: np.ndarray, w: np.ndarray, ridge: float) -> torch.Tensor:
    """Of the loss at w, by autograd."""
    weights = torch.tensor(w, requires_grad=True)
    loss = -torch.nn.functional.logsigmoid(torch.tensor(x) @ weights).sum() + ridge / 2 * weights @ weights
    return torch.autograd.grad(loss, weights)[0]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, 0.5, 5.0])  # at 5 the pairs can all be told apart
@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_at_the_weights_that_are_found_the_loss_is_flat(scale, shift, ridge):
    rng = np.random.default_rng(0)
    x = scale * (rng.normal(size=(200, 6)) + shift)
    x[:, 4] = 0  # never differs
    x[:, 5] = x[:, 0]  # says what another says
    w = fit(x, ridge)
    assert np.isfinite(w).all() and w[4] == 0 and w[5] == pytest.approx(w[0])
    assert gradient(x, w, ridge).abs().max() < 1e-3 * max(1, scale)


def test_with_one_feature_and_no_ridge_worth_speaking_of_the_weight_is_the_logit_of_the_fraction():
    x = np.array([[1.0]] * 80 + [[-1.0]] * 20)  # -log sigmoid(w) 80 times, of -w 20 times: sigmoid(w) = 0.8
    assert fit(x, ridge=1e-9)[0] == pytest.approx(np.log(0.8 / 0.2), rel=1e-6)


# What it says


def test_pairs_that_one_feature_tells_apart_are_told_apart_and_the_feature_is_named():
    rng = Random(0)
    pairs = [(sentence(rng).replace("!", "") + " !", sentence(rng).replace("!", "")) for _ in range(300)]
    found = separability(looks(pairs))
    assert found.accuracy == 1 and found.interval[0] > 0.95 and found.pairs + 0 < 300
    assert any(
        "exclamation marks (more is better)" in name or "the last word ('!' is good" in name
        for name, _ in found.strongest
    )
    assert found.strongest[0][1] == 1  # alone


def test_pairs_that_differ_by_chance_are_not_told_apart():
    rng = Random(0)
    found = separability(looks([(sentence(rng), sentence(rng)) for _ in range(2000)]))
    assert found.interval[0] < 0.5 < found.interval[1] and found.interval[1] - found.interval[0] < 0.07


def test_where_the_longer_answer_is_better_three_times_of_four_that_is_what_is_found():
    rng = Random(0)
    right = [rng.random() < 0.75 for _ in range(4000)]
    held_out = [is_right for i, is_right in enumerate(right) if text_hash(f"prompt {i}") % 2]
    found = separability(looks(told(right)))
    assert found.pairs == len(held_out) and 0.7 < found.accuracy < 0.8
    assert found.accuracy == pytest.approx(sum(held_out) / len(held_out), abs=0.03)  # no other rule is right more often


def test_who_swaps_the_answers_gets_the_same_accuracy_and_the_opposite_features():
    rng = Random(3)
    pairs = told([rng.random() < 0.8 for _ in range(500)])
    one, other = separability(looks(pairs)), separability(looks([(rejected, chosen) for chosen, rejected in pairs]))
    assert one.accuracy == other.accuracy and one.interval == other.interval
    opposite = {"more": "less", "less": "more"}
    for (name, alone), (swapped, alone_too) in zip(one.strongest, other.strongest):
        assert alone == alone_too
        if "is better" in name:
            head, word = name.split(" (")[0], name.split(" (")[1].split()[0]
            assert swapped == f"{head} ({opposite[word]} is better)"


def test_a_first_word_that_is_preferred_is_named_and_one_that_is_rare_is_no_feature():
    rng = Random(0)
    pairs = [(f"Sure {sentence(rng)}", f"Well {sentence(rng)}") for _ in range(300)]
    pairs += [(f"once{i} {sentence(rng)}", f"twice{i} {sentence(rng)}") for i in range(300)]
    found = separability(looks(pairs))
    name, alone = found.strongest[0]
    assert name == "the first word ('Sure' is good, 'Well' bad)" and alone == pytest.approx(0.75, abs=0.05)


def test_what_was_learned_of_a_prompt_is_never_asked_of_it():
    """Fifty pairs, each forty times: who asked about prompts that were learned would find them all."""
    rng = Random(0)
    fifty = [(sentence(rng), sentence(rng)) for _ in range(90)]
    found = separability(looks(fifty * 40, prompts=90))
    held_out = {text_hash(f"prompt {i}") for i in range(90) if text_hash(f"prompt {i}") % 2}
    assert found.pairs == 40 * len(held_out) and found.accuracy < 0.75


def test_few_pairs_say_nothing_and_answers_without_any_difference_in_features_are_ties():
    assert separability(looks([("a", "b")] * (FEWEST - 1))) is None
    found = separability(looks([("aa bb", "cc dd")] * 300, prompts=300))  # told apart by first words alone
    assert found.accuracy == 1
    rng = Random(0)
    words = [("".join(rng.choices("abcdefgh", k=8)), "".join(rng.choices("abcdefgh", k=8))) for _ in range(300)]
    found = separability(looks(words))
    assert found.accuracy == 0.5 and found.strongest == []


# Interval and sample


@given(st.integers(1, 10**6), st.data())
def test_the_interval_ends_where_what_was_seen_is_1_96_standard_errors_away(count, data):
    right = data.draw(st.integers(0, 2 * count)) / 2
    seen, ends = right / count, wilson(right / count, count)
    assert -1e-12 <= ends[0] <= seen + 1e-12 and seen - 1e-12 <= ends[1] <= 1 + 1e-12
    for end in ends:
        assert (seen - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / count, rel=1e-6, abs=1e-12)


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=60), st.integers(1, 20), st.randoms())
def test_a_sample_is_the_smallest_keys_in_whatever_order_they_come(keys, most, rng):
    sample, made = Sample(most), []
    shuffled = keys[:]
    rng.shuffle(shuffled)
    for i, key in enumerate(shuffled):
        sample.offer(key, lambda key=key: made.append(key) or key)
        assert sorted(sample.items) == sorted(shuffled[: i + 1])[:most]
    assert sample.items == sorted(keys)[:most] and sample.seen == len(keys)
    assert made == [key for i, key in enumerate(shuffled) if key in sorted(shuffled[: i + 1])[:most]]
