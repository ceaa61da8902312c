"""data/ngrams.py: hashes of runs of words against the runs; in how many prompts each was met against sets."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import ngrams
from data.ngrams import Met, Runs, places

words = st.lists(st.sampled_from("a b c".split()), max_size=9)


@given(words, words, st.integers(0, 4))
def test_two_texts_have_in_common_the_runs_that_they_have_in_common(one, other, length):
    def runs(text: list[str]) -> list[tuple]:
        return [tuple(text[i : i + length]) for i in range(len(text) - length + 1)] if length else []

    hashed = Runs(length)
    found = places(np.unique(hashed.of(" ".join(other))), hashed.of(" ".join(one))) >= 0
    assert found.tolist() == [run in runs(other) for run in runs(one)]


met = st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=6), st.integers(0, 2**64 - 1) | st.integers(0, 9)))


@given(met, st.integers(1, 4) | st.just(10**30), st.integers(1, 8))
def test_prompts_are_counted_exactly_however_often_what_waits_is_counted(rows, common, waiting):
    prompts = defaultdict(set)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "WAITING", waiting)
        found = Met(5, common)
        for runs, prompt in rows:
            assert found.add(np.array(runs, np.int64), prompt) == bool(runs)
            for run in runs:
                prompts[run].add(prompt)
        assert len(found.met) <= max(waiting, len(found.runs))
    assert found.telling_runs().tolist() == [0 < len(prompts[run]) <= common for run in range(5)]
    assert found.common_runs().tolist() == [len(prompts[run]) > common for run in range(5)]
    assert len(found.runs) == sum(len(some) for some in prompts.values() if len(some) <= common)


def test_prompts_whose_hashes_share_their_last_bits_are_not_one():
    found = Met(1, 10)
    for i in range(11):
        found.add(np.array([0]), 64 * i)
    assert found.common_runs().all()


def test_of_a_run_that_is_common_nothing_more_is_kept():
    found = Met(2, 3)
    for prompt in range(4):
        found.add(np.array([0, 1]), prompt if prompt < 3 else 2)
    found.add(np.array([0]), 4)
    found.settle()
    assert found.is_common.tolist() == [True, False] and found.runs.tolist() == [1, 1, 1]
    assert found.add(np.array([0] * 1000), 5) and not len(found.met)
