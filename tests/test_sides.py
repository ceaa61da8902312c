"""data/sides.py: no prompt on both sides, and the same side whatever else is there."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import pairs as data_pairs
from data.pairs import Pair, read_pairs, write_rows
from data.sides import firsts, split
from gpt.command import UserError


def test_it_is_found_beside_the_pairs_too():
    assert data_pairs.split is split


def pairs_of(prompts: list[int], groups_of: int) -> list[Pair]:
    """A pair per prompt; with groups_of > 0 that many neighbouring prompts make a group."""
    return [
        Pair(f"prompt {p}", f"chosen {i}", "rejected", group=f"group {p // groups_of}" if groups_of else None)
        for i, p in enumerate(prompts)
    ]


prompts = st.lists(st.integers(0, 30), max_size=60)
fractions = st.integers(0, 20).map(lambda twentieths: twentieths / 20)


@given(prompts, st.integers(0, 3), fractions)
def test_a_split_has_every_pair_once_in_order_and_no_prompt_or_group_on_both_sides(prompts, groups_of, fraction):
    pairs = pairs_of(prompts, groups_of)
    training, held_out = split(pairs, fraction)
    assert Counter(training + held_out) == Counter(pairs)
    for side in (training, held_out):
        assert side == [pair for pair in pairs if pair in side]
    assert not {pair.prompt for pair in training} & {pair.prompt for pair in held_out}
    assert groups_of == 0 or not {pair.group for pair in training} & {pair.group for pair in held_out}


@given(prompts, prompts, st.integers(0, 3), fractions, st.randoms(use_true_random=False))
def test_neither_order_nor_other_data_moves_a_pair_to_the_other_side(prompts, others, groups_of, fraction, random):
    pairs = pairs_of(prompts, groups_of)
    held_out = set(split(pairs, fraction)[1])
    more = pairs + [pair._replace(chosen="of another file") for pair in pairs_of(others, groups_of)]
    random.shuffle(more)
    assert set(split(more, fraction)[1]) & set(pairs) == held_out


@given(prompts, st.integers(0, 3), fractions, fractions)
def test_a_larger_fraction_keeps_all_that_a_smaller_one_held_out(prompts, groups_of, one, other):
    pairs = pairs_of(prompts, groups_of)
    small, large = (set(split(pairs, fraction)[1]) for fraction in sorted((one, other)))
    assert small <= large


def test_a_group_of_several_prompts_stays_together_and_groups_are_what_a_fraction_counts():
    training, held_out = split(pairs_of(list(range(300)), 3), 0.3)
    groups = Counter(pair.group for pair in held_out)
    assert set(groups.values()) == {3} and abs(len(groups) - 30) < 4 * math.sqrt(100 * 0.3 * 0.7)


def test_a_fraction_of_0_holds_nothing_out_and_1_everything():
    pairs = pairs_of(list(range(200)), 0)
    assert split(pairs, 0) == (pairs, []) and split(pairs, 1) == ([], pairs)


def test_the_real_rows_split_as_asked(shared):
    pairs = read_pairs(shared / "data" / "instruction-data-with-preference.json")
    groups = len({pair.prompt for pair in pairs})
    for fraction in (0.05, 0.1, 0.3, 0.5):
        held_out = len({pair.prompt for pair in split(pairs, fraction)[1]})
        # a hash is a coin: four standard deviations of a binomial
        assert abs(held_out - fraction * groups) < 4 * math.sqrt(groups * fraction * (1 - fraction))


def test_shuffled_rows_of_a_file_give_the_same_split(tmp_path):
    rows = [{"prompt": f"prompt {i}", "chosen": "Good morning!", "rejected": "What?"} for i in range(100)]
    prompts = []
    for seed in (None, 1, 2):
        if seed:
            Random(seed).shuffle(rows)
        write_rows(tmp_path / "pairs.jsonl", rows)
        prompts.append({pair.prompt for pair in split(read_pairs(tmp_path / "pairs.jsonl"), 0.3)[1]})
    assert prompts[0] == prompts[1] == prompts[2] and prompts[0]


def test_a_prompt_in_two_groups_is_refused_naming_both_rows():
    pairs = [Pair("p", "a", "b", 3, group="g"), Pair("q", "a", "b", 4), Pair("p", "c", "d", 9, group="h")]
    with pytest.raises(UserError, match="rows 3 and 9 have one prompt and two groups"):
        split(pairs, 0.5)


@given(st.lists(st.integers(0, 5), max_size=20))
def test_firsts_are_where_a_loop_finds_each_key(keys):
    assert firsts(np.array(keys, np.uint64)).tolist() == [keys.index(key) for key in keys]
