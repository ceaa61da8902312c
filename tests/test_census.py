"""data/census.py: what is found by sorted hashes, against loops over the texts; the memory that a pair costs."""

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.census import KEPT, NAMES, ODDITIES, Census, asked, count_name, oddities, on_both_sides
from data.normal import normalized, normalized_prompt
from data.pairs import Pair, instruction_prompt
from data.rules import preference_rows, row_pairs
from data.sides import firsts, side
from data.tally import Tally

# Few texts, so that sets made of them are full of repeats, near repeats and opposites
PROMPTS, ANSWERS = ["p", "P!", " p", "q", "q-r"], ["a", "A", "a. ", "b", "b\n b"]
GROUPS = [None, "", "g", "p"]
PAIRS = [(p, c, r, g) for p, c, r, g in product(PROMPTS, ANSWERS, [*ANSWERS, None], GROUPS) if c != r]


@st.composite
def some_pairs(draw, groups: bool = True) -> list[Pair]:
    """Pairs of these texts in rows of a file of which some were dropped."""
    row, pairs = 0, []
    for prompt, chosen, rejected, group in draw(st.lists(st.sampled_from(PAIRS), max_size=25)):
        row += draw(st.integers(1, 3))
        pairs.append(Pair(prompt, chosen, rejected, row, group=group if groups else None))
    return pairs


def census_of(pairs: list[Pair], *how) -> Census:
    census = Census(*how)
    for pair in pairs:
        census.add(pair)
    return census


def near(pair: Pair) -> tuple:
    return tuple(None if text is None else normalized(text) for text in pair[:3])


@given(some_pairs())
def test_repeats_of_whole_pairs_are_those_that_a_loop_finds(pairs):
    census = census_of(pairs)
    assert len(census) == len(pairs) and census.rows.tolist() == [pair.row for pair in pairs]
    for keys, same in (
        (census.keys(), lambda pair: pair[:3]),
        (np.array(census.near), near),
        (np.array(census.near_prompts), lambda pair: normalized(pair.prompt)),
    ):
        expected = [next(i for i in range(k + 1) if same(pairs[i]) == same(pairs[k])) for k in range(len(pairs))]
        assert firsts(keys).tolist() == expected


@given(some_pairs())
@example([Pair("p", "a", "b", 1), Pair("p", "b", "a", 2), Pair("p", "a", "b", 3), Pair("q", "b", "a", 4)])
def test_opposites_are_those_that_a_loop_finds(pairs):
    expected = []
    for k, pair in enumerate(pairs):
        if pair.rejected is None:
            continue
        before = [one.row for one in pairs[:k] if one[:3] == (pair.prompt, pair.rejected, pair.chosen)]
        if before:
            expected.append([before[0], pair.row])
    assert census_of(pairs).swapped().tolist() == expected


@given(some_pairs(), st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
def test_prompts_on_both_sides_are_those_that_a_loop_finds(pairs, fraction):
    census = census_of(pairs)
    held = np.asarray(census.sides) / 2**64 < fraction
    assert held.tolist() == [side(pair) < fraction for pair in pairs]
    for keys, same in ((census.groups.prompts, str), (census.near_prompts, normalized_prompt)):
        places = on_both_sides(np.asarray(keys), held)
        on = {same(p.prompt) for p, h in zip(pairs, held) if h} & {same(p.prompt) for p, h in zip(pairs, held) if not h}
        assert len(places) == len(on) and {same(pairs[i].prompt) for i in places} == on


@given(some_pairs(groups=False), st.floats(0, 1))
def test_without_groups_no_prompt_is_on_both_sides(pairs, fraction):
    census = census_of(pairs)
    assert not len(on_both_sides(np.asarray(census.groups.prompts), np.asarray(census.sides) / 2**64 < fraction))


def test_lengths_are_those_of_training_with_end_of_text_and_a_sample_is_some_of_them(tokenizer):
    pairs = row_pairs(preference_rows(60)) + [Pair("", "yes", "no, never", 61), Pair("p", "one answer", None, 62)]
    expected = [
        (
            len(tokenizer.encode(p.prompt)) or 1,
            len(tokenizer.encode(p.chosen)) + 1,
            0 if p.rejected is None else len(tokenizer.encode(p.rejected)) + 1,
        )
        for p in pairs
    ]

    def measured(pairs: list[Pair], *how) -> list[list[int]]:
        rows, lengths = census_of(pairs, *how).measured()
        return np.column_stack([rows, lengths]).tolist()

    expected = [[pair.row, *lengths] for pair, lengths in zip(pairs, expected)]
    assert measured(pairs, tokenizer) == expected and sorted(measured(pairs, tokenizer, 100)) == expected
    some = measured(pairs, tokenizer, 20)
    assert len(some) == 20 and all(one in expected for one in some)
    assert measured(pairs[::-1], tokenizer, 20) == some  # whatever the order
    assert measured(pairs, None) == []


def test_what_a_row_says_of_itself_is_counted():
    pairs = [
        Pair("p", "a", "b", 1, output="a", family="x"),
        Pair("p", "a", "b", 2, output="b", family="y", margin=0.5),
        Pair("p", "да", "нет", 3, output="c", family="x", margin=-1),
        Pair("p", "1", "2", 4),
    ]
    census = census_of(pairs)
    assert dict(census.families) == {"x": 2, "y": 1} and census.plain == {"chosen": 1, "rejected": 1, "neither": 1}
    assert dict(census.scripts) == {"Latin": 2, "Cyrillic": 1, "none": 1}
    np.testing.assert_equal(np.array(census.margins).tolist(), [np.nan, 0.5, -1, np.nan])


def test_of_many_rows_and_many_names_the_first_are_kept():
    noted, names = Tally(KEPT), Counter()
    for row in range(1, 1001):
        noted.add(row)
        count_name(names, f"name {row}")
    count_name(names, "name 3")
    assert (noted.count, noted.rows) == (1000, list(range(1, KEPT + 1)))
    assert names.total() == 1001 and len(names) == NAMES + 1
    assert names["name 3"] == 2 and names["others"] == 1000 - NAMES


# Odd pairs

LONG = "Tell me about the sea"
ODD = [
    ((LONG, "It is wide.", "It is wet."), set()),
    ((LONG, "It is wide.", None), {"one answer"}),
    ((LONG, "wide", "It is wet."), {"short chosen"}),
    ((LONG, "It is wide.", " wet\n"), {"short rejected"}),
    ((LONG, "我们去学校", "他们去学校"), set()),
    ((LONG, "It is wide.", "It is wide. And wet."), {"prefix"}),
    ((LONG, "It is wide. And wet.", "It is wide."), {"prefix"}),
    ((LONG, "It is  wide.", "it is wide."), {"alike"}),
    ((LONG, "It is wide.", "It is wide. "), {"alike", "prefix"}),
    ((LONG, f"{LONG}: it is wide.", "It is wet."), {"prompt repeated"}),
    ((f"  {LONG}\n", "It is wet.", f"You say {LONG}"), {"prompt repeated"}),
    ((instruction_prompt("Name two seas.", "any"), "Name two seas. North, Red.", "Red or so."), {"prompt repeated"}),
    ((instruction_prompt("Name two seas.", "any"), "North, any.", "Red or so."), set()),
    (("wide seas", "The wide seas are.", "What are wide seas?"), set()),  # two words are often said again
    ((LONG, "It is wide.\n\nHuman: And?", "It is wet."), {"another turn"}),
    ((LONG, "It is wide.", "wet it is\n### Instruction:\nnext"), {"another turn"}),
    (("\n\nHuman: the sea\n\nAssistant:", "It is wide.", "It is wet."), set()),  # there it belongs
    ((LONG, "Оно большое", "It is wet."), {"other script"}),
    ((LONG, "42 - 7", "Оно большое"), set()),
    ((LONG, "It is \x07 wide.", "It is wet."), {"control"}),
    (("the \x1b[31m sea", "It is wide.", "It is wet."), {"control"}),
    ((LONG, "It is w\ufffdde.", "It is wet."), {"U+FFFD"}),
    ((LONG, "It is wide.", "\ufeffIt is wet."), {"invisible"}),
    ((LONG, "It is wide.\r\nYes.", "It is wet."), {"line ends"}),
    ((LONG, "It is wide.<|endoftext|>", "It is wet."), {"special tokens"}),
    ((f"[INST] {LONG} [/INST]", "It is wide.", "It is wet."), {"special tokens"}),
    ((LONG, "🌊 It is wide.", "It is wet."), set()),
    ((LONG, "yes\x00\r\n</s>", "yes\x00\r\n</s> "), {"alike", "prefix", "control", "line ends", "special tokens"}),
    (("", "It is wide.", "It is wet."), {"empty prompt"}),
    ((" \n", "It is wide.", "It is wet."), {"empty prompt"}),
    ((instruction_prompt(""), "It is wide.", "It is wet."), {"empty prompt"}),
    (("\n\nHuman: \n\nAssistant:", "It is wide.", "It is wet."), {"empty prompt"}),
    ((instruction_prompt("", "the sea"), "It is wide.", "It is wet."), set()),
]


@pytest.mark.parametrize("texts, expected", ODD, ids=range(len(ODD)))
def test_what_is_odd_about_a_pair(texts, expected):
    census = census_of([Pair(*texts, row=7)])
    assert {name for name, noted in census.noted.items() if noted.count} == expected
    assert all(noted.rows == [7] * noted.count for noted in census.noted.values())


def test_every_oddity_is_among_the_examples():
    assert set.union(*(found for _, found in ODD)) == set(ODDITIES)


@given(
    st.text(max_size=30), st.text(min_size=1, max_size=30), st.none() | st.text(min_size=1, max_size=30), st.booleans()
)
def test_no_text_breaks_it_and_every_name_is_known(prompt, chosen, rejected, alike):
    chosen, rejected = f"{chosen}.", rejected and f"{rejected}!"  # the reader drops what is empty or equal
    names = list(oddities(Pair(prompt, chosen, rejected, 1), alike))
    assert set(names) <= set(ODDITIES) and len(names) == len(set(names))
    assert len(census_of([Pair(prompt, chosen, rejected, 1)])) == 1


@pytest.mark.parametrize("text", ["Name two seas.", "Name\ntwo seas", "a ### b"])
@pytest.mark.parametrize("more", ["", "any", "1\n\n2"])
def test_the_instruction_is_found_in_its_template(text, more):
    assert asked(instruction_prompt(text, more)) == text
    assert asked(f" {text}\n") == text


# Memory


def stream(count: int) -> Iterator[Pair]:
    """Pairs that are made when they are asked for."""
    for i in range(count):
        yield Pair(f"Tell me {i}", f"It is wide {i}", f"It is wet {i}", i)


def test_a_pair_costs_some_tens_of_bytes():
    """Between 1,000 and 3,000 pairs, when the sample is full; the arrays grow in steps of an eighth."""
    peaks = []
    for count in (1000, 3000):
        census = Census(None, sample=10)
        tracemalloc.start()
        for pair in stream(count):
            census.add(pair)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 50 < (peaks[1] - peaks[0]) / 2000 < 120
