"""gpt/sampling.py against transformers' processors and warpers, and choices against probabilities."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt.command import UserError, parse
from gpt.generate import AnswerFlags
from gpt.sampling import GREEDY, Sampling, choose, penalized, probabilities

V = 31
BELOW_1 = math.nextafter(1.0, 0.0)  # the largest number that torch.rand draws in float64

seeds = st.integers(0, 2**32 - 1)
hundredths = st.integers(1, 100).map(lambda n: n / 100)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.1, 5.0),
    top_k=st.integers(0, V + 2),
    top_p=hundredths,
    min_p=st.just(0.0) | hundredths,
    repetition_penalty=st.just(1.0) | st.floats(0.5, 2.0),
)


def random_logits(seed: int, rows: int = 3, columns: int = V, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def seen_of(texts: Tensor) -> Tensor:
    """(B, V): whether each token stands in the row's text."""
    return torch.stack([torch.isin(torch.arange(V), text) for text in texts])


def by_transformers(logits: Tensor, s: Sampling, texts: Tensor) -> Tensor:
    """(B, V) logits as its `generate` warps them, in its order, each warper only where it is on."""
    warpers = [
        (s.repetition_penalty != 1, lambda: RepetitionPenaltyLogitsProcessor(s.repetition_penalty)),
        (True, lambda: TemperatureLogitsWarper(s.temperature)),
        (s.top_k > 0, lambda: TopKLogitsWarper(s.top_k)),
        (s.top_p < 1, lambda: TopPLogitsWarper(s.top_p)),
        (s.min_p > 0, lambda: MinPLogitsWarper(s.min_p)),
    ]
    return LogitsProcessorList([make() for is_on, make in warpers if is_on])(texts, logits)


@settings(max_examples=300)
@given(seed=seeds, sampling=samplings, spread=st.sampled_from([0.3, 3.0, 10.0]))
def test_the_same_tokens_stay_with_the_same_probabilities_as_in_transformers(seed, sampling, spread):
    logits = random_logits(seed, spread=spread)
    texts = torch.randint(V, (3, 9), generator=torch.Generator().manual_seed(seed))
    warped = by_transformers(logits.clone(), sampling, texts)
    theirs = warped.softmax(-1)
    ours = probabilities(penalized(logits, sampling.repetition_penalty, seen_of(texts)), sampling)
    torch.testing.assert_close(ours, theirs)
    assert not ours[warped == -torch.inf].any() and ours[theirs > 1e-30].all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_with_the_temperature_alone_it_is_the_softmax(temperature):
    logits = random_logits(0)
    torch.testing.assert_close(probabilities(logits, Sampling(temperature)), (logits / temperature).softmax(-1))


@pytest.mark.parametrize(
    "off", [Sampling(1.0, top_k=V), Sampling(1.0, top_k=V + 9), Sampling(1.0, top_p=1.0), Sampling(1.0, min_p=0.0)]
)
def test_a_setting_at_its_end_leaves_every_token(off):
    logits = random_logits(1)
    assert torch.equal(probabilities(logits, off), logits.softmax(-1))


@pytest.mark.parametrize("only", [Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9), Sampling(1.0, min_p=1.0)])
def test_a_setting_at_its_other_end_leaves_the_likeliest_token(only):
    logits = random_logits(2)
    chosen = choose(logits, only.check(), torch.tensor([0.0, 0.5, BELOW_1], dtype=torch.double))
    assert chosen.tolist() == logits.argmax(-1).tolist()


def test_the_penalty_makes_tokens_that_stand_there_less_likely_whatever_their_sign_and_no_other():
    logits, seen = random_logits(3), seen_of(torch.arange(0, V, 2).expand(3, -1))
    found = penalized(logits, 1.5, seen)
    assert (found[seen] < logits[seen]).all() and torch.equal(found[~seen], logits[~seen])
    assert penalized(logits, 1.5, None) is logits and penalized(logits, 1.0, seen) is logits


# choices


def in_a_thousand(degrees: int) -> float:
    """The chi square that one honest sampler in a thousand is above (Wilson and Hilferty 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(3.0, top_k=7),
        Sampling(2.0, top_p=0.8),
        Sampling(2.0, min_p=0.05, repetition_penalty=1.4),
    ],
    ids=str,
)
def test_choices_are_as_frequent_as_their_probabilities(sampling):
    rows, logits, seen = 40_000, random_logits(4, 1, 12, 1.5), torch.arange(12)[None] % 3 == 0
    expected = rows * probabilities(penalized(logits, sampling.repetition_penalty, seen), sampling)[0].double()
    chance = torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    chosen = choose(logits.expand(rows, -1), sampling, chance, seen.expand(rows, -1))
    counts, likely = chosen.bincount(minlength=12), expected > 0
    assert expected[likely].min() > 5 and not counts[~likely].any()
    chi_square = float(((counts - expected)[likely] ** 2 / expected[likely]).sum())
    assert chi_square < in_a_thousand(int(likely.sum()) - 1)
    even = (torch.arange(rows, dtype=torch.double) + 0.5) / rows  # without luck each gets its share, rounded
    counts = choose(logits.expand(rows, -1), sampling, even, seen.expand(rows, -1)).bincount(minlength=12)
    assert (counts - expected).abs().max() < 1.01


@given(
    seed=seeds,
    sampling=samplings,
    columns=st.sampled_from([2, V, 5000]),
    never=st.sets(st.integers(-V, V - 1)),
    chance=st.sampled_from([0.0, 5e-324, 1e-12, 0.5, 1 - 2**-24, BELOW_1]) | st.floats(0, BELOW_1),
)
def test_a_token_of_probability_0_is_never_chosen(seed, sampling, columns, never, chance):
    logits = random_logits(seed, 2, columns)
    logits[:, [i % columns for i in never if i % columns != 1]] = -torch.inf  # also the first and the last
    chosen = choose(logits, sampling, torch.full((2,), chance, dtype=torch.double))
    assert (probabilities(logits, sampling).gather(1, chosen[:, None]) > 0).all()


@given(seed=seeds, sampling=samplings)
def test_what_a_row_gets_does_not_depend_on_its_batch_mates(seed, sampling):
    logits, seen = random_logits(seed, 5), random_logits(seed + 1, 5) > 0
    chance = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    together = choose(logits, sampling, chance, seen)
    alone = [choose(logits[i : i + 1], sampling, chance[i : i + 1], seen[i : i + 1]) for i in range(5)]
    assert together.tolist() == torch.cat(alone).tolist()


@given(seed=seeds, chance=st.floats(0, BELOW_1), penalty=st.floats(0.5, 2.0))
def test_greedy_ignores_chance(seed, chance, penalty):
    logits, seen = random_logits(seed), random_logits(seed + 1) > 0
    chances = torch.full((3,), chance, dtype=torch.double)
    assert choose(logits, GREEDY, chances).tolist() == logits.argmax(-1).tolist()
    likeliest = penalized(logits, penalty, seen).argmax(-1)
    assert choose(logits, Sampling(repetition_penalty=penalty), chances, seen).tolist() == likeliest.tolist()


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-38, 1e-40, 1e-300, 5e-324])
def test_a_temperature_however_close_to_0_chooses_the_likeliest_or_is_refused(temperature):
    try:
        sampling = Sampling(temperature).check()
    except UserError:
        return
    logits = random_logits(5)
    chance = torch.tensor([0.0, 0.5, BELOW_1], dtype=torch.double)
    assert choose(logits, sampling, chance).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision_are_chosen_from_in_float32(dtype):
    logits, chance = random_logits(6).to(dtype), torch.tensor([0.1, 0.5, 0.9])
    for sampling in (GREEDY, Sampling(1.0, 9, 0.9)):
        assert choose(logits, sampling, chance).tolist() == choose(logits.float(), sampling, chance).tolist()


# what is refused

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "name, value",
    [(name, value) for name in Sampling._fields for value in (NAN, INF, -INF, -1, -1e-9)]
    + [("top_p", 0), ("top_p", 1.01), ("min_p", 1.01), ("repetition_penalty", 0)],
)
def test_a_setting_out_of_its_range_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} is {value}, it must be "):
        Sampling(**{"temperature": 1.0, name: value}).check()


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(1e-3, 1, 1e-6, 0.0, 0.1), Sampling(100.0, 10**6, 1.0, 1.0, 50.0), Sampling(0, 0, 1, 0, 1)],
)
def test_what_is_within_its_range_comes_back_from_the_check(sampling):
    assert sampling.check() is sampling


def test_flags_become_the_settings_of_the_same_names():
    words = "--temperature 0.9 --top-k 5 --top-p 0.8 --min-p 0.1 --repetition-penalty 1.2"
    assert parse(AnswerFlags, words.split()).sampling == Sampling(0.9, 5, 0.8, 0.1, 1.2)
    names = {f.name for f in fields(AnswerFlags)}
    assert names.issuperset(Sampling._fields)


@pytest.mark.parametrize(
    "words, named",
    [
        ("--temperature nan", "--temperature"),
        ("--top-p 0", "--top-p"),
        ("--top-k -1", "--top-k"),
        ("--min-p 2", "--min-p"),
        ("--repetition-penalty 0", "--repetition-penalty"),
        ("--max-new 0", "--max-new"),
        ("--seed -1", "--seed"),
        (f"--seed {2**63}", "--seed"),
    ],
)
def test_a_flag_out_of_its_range_is_refused_by_name(words, named):
    with pytest.raises(UserError, match=f"^{named} is "):
        _ = parse(AnswerFlags, words.split()).sampling
