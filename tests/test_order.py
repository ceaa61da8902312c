"""dpo/order.py: every pair once an epoch, the same work for every process, nothing but (seed, step) decides."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.pairs import Pair
from dpo.examples import Examples, in_memory
from dpo.forward import ANY
from dpo.order import Limit, micro_batches, pairs_met, pairs_of_step, steps_in_epochs, steps_of
from dpo.rows import Ids
from gpt.parallel import World

counts = st.integers(1, 60)
batches = st.integers(1, 70)
seeds = st.integers(0, 2**32)


def pairs_of(lengths) -> Examples:
    """Pairs whose rows have these lengths, all with one prompt, so that nothing but length orders them."""
    ids = [Ids([7], [1] * int(n - 1), [1]) for n in lengths]
    assert [one.length for one in ids] == list(lengths)
    return in_memory([Pair("", "", "", row) for row in range(1, len(ids) + 1)], ids)


def worlds(size: int) -> list[World]:
    return [World(rank, size, torch.device("cpu")) for rank in range(size)]


# Steps


@given(counts, batches, seeds, st.integers(0, 3))
def test_every_pair_comes_exactly_once_an_epoch_in_batches_of_the_size_asked(pairs, batch, seed, epoch):
    steps = steps_in_epochs(pairs, batch, 1)
    found = [pairs_of_step(epoch * steps + step, pairs, batch, seed) for step in range(1, steps + 1)]
    assert Counter(i for indices in found for i in indices) == Counter(range(pairs))
    assert all(len(indices) == batch for indices in found[:-1]) and 0 < len(found[-1]) <= batch
    assert len(found[-1]) == pairs - batch * (steps - 1)


@given(counts, batches, st.integers(1, 5))
def test_the_steps_of_several_epochs_are_those_of_each(pairs, batch, epochs):
    each = len(range(0, pairs, batch))
    assert steps_in_epochs(pairs, batch, epochs) == epochs * each == epochs * math.ceil(pairs / batch)


@given(counts, batches, seeds, st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_a_step_has_the_same_pairs_whichever_steps_were_asked_for_before(pairs, batch, seed, asked):
    forward = {step: pairs_of_step(step, pairs, batch, seed) for step in asked}
    assert all(pairs_of_step(step, pairs, batch, seed) == forward[step] for step in reversed(asked))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(pairs_of_step(epoch + 1, 40, 40, seed)) for epoch in range(5) for seed in range(5)]
    assert len(set(orders)) == 25
    assert tuple(range(40)) not in orders


def test_a_pair_comes_early_as_often_as_late():
    # where pair 0 stands in 400 epochs of 10 pairs: each place about 40 times, four standard deviations of 6
    places = Counter(pairs_of_step(epoch + 1, 10, 10, 7).index(0) for epoch in range(400))
    assert all(abs(places[place] - 40) <= 24 for place in range(10))


# Micro-batches


@given(st.lists(st.integers(2, 50), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 8), st.data())
def test_processes_share_a_step_without_loss_and_do_the_same_number_of_passes(lengths, size, micro, data):
    lengths = np.array(lengths)
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True, min_size=1))
    found = [micro_batches(indices, pairs_of(lengths), Limit(micro, ANY), world) for world in worlds(size)]
    assert Counter(i for process in found for some in process for i in some) == Counter(indices)
    assert len({len(process) for process in found}) == 1  # FSDP and DDP wait for each other's passes
    shares = [sum(map(len, process)) for process in found]
    assert max(shares) - min(shares) <= 1
    for process, share in zip(found, shares):
        assert len(process[0]) <= micro and len(process) <= math.ceil(max(shares) / micro)
        # full ones first, then a partial one, then empty ones
        assert [len(some) for some in process] == [max(0, min(micro, share - micro * n)) for n in range(len(process))]
        assert [lengths[i] for some in process for i in some] == sorted(lengths[i] for some in process for i in some)


@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 120),
    st.data(),
)
def test_a_pass_takes_no_more_than_its_limit_and_as_much_as_it_may(lengths, size, most, tokens, data):
    lengths = np.array(lengths)
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True, min_size=1))
    found = [micro_batches(indices, pairs_of(lengths), Limit(most, tokens), world) for world in worlds(size)]
    assert Counter(i for process in found for some in process for i in some) == Counter(indices)
    assert len({len(process) for process in found}) == 1
    shares = [sum(map(len, process)) for process in found]
    assert max(shares) - min(shares) <= 1

    def long(some: list[int]) -> int:
        return sum(lengths[i] for i in some)

    for process in found:
        full = [some for some in process if some]
        assert process == full + [[]] * (len(process) - len(full))  # empty ones at the end
        assert all(len(some) <= most for some in full)
        assert all(long(some) <= tokens or len(some) == 1 for some in full)  # one pair goes whatever its length
        # cut only where the next pair would have been too much
        assert all(len(a) == most or long([*a, b[0]]) > tokens for a, b in zip(full, full[1:]))
        in_order = [lengths[i] for some in full for i in some]
        assert in_order == sorted(in_order)


@given(st.lists(st.integers(2, 50), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 60), st.data())
def test_pairs_that_are_left_out_leave_the_others_together_as_they_were(lengths, size, tokens, data):
    indices, pairs, limit = list(range(len(lengths))), pairs_of(np.array(lengths)), Limit(5, tokens)
    without = data.draw(st.sets(st.sampled_from(indices)))
    every = [micro_batches(indices, pairs, limit, world) for world in worlds(size)]
    found = [micro_batches(indices, pairs, limit, world, without) for world in worlds(size)]
    assert len({len(process) for process in found}) == 1 and any(process[-1:] != [[]] for process in found)
    for process, whole in zip(found, every):
        left = [[i for i in some if i not in without] for some in whole]
        assert [some for some in process if some] == [some for some in left if some]


@given(counts, batches, seeds, st.integers(1, 80))
def test_the_pairs_that_a_run_will_meet_are_those_of_all_its_steps(pairs, batch, seed, steps):
    met = {i for step in range(1, steps + 1) for i in pairs_of_step(step, pairs, batch, seed)}
    assert pairs_met(steps, pairs, batch, seed) == sorted(met)


@given(st.lists(st.integers(2, 50), min_size=4, max_size=30), st.integers(2, 4))
def test_every_process_gets_short_and_long_pairs_alike(lengths, size):
    # the n-th pair of one process is never longer than the n+1-th of another
    lengths = np.array(lengths)
    shares = [
        [
            lengths[some[0]]
            for some in micro_batches(list(range(len(lengths))), pairs_of(lengths), Limit(1, ANY), world)
            if some
        ]
        for world in worlds(size)
    ]
    for one in shares:
        for other in shares:
            assert all(a <= b for a, b in zip(one, other[1:]))


def test_one_process_with_micro_batches_as_large_as_the_step_does_one_pass():
    lengths = np.array([5, 3, 9])
    assert micro_batches([0, 1, 2], pairs_of(lengths), Limit(3, ANY), *worlds(1)) == [[1, 0, 2]]
    assert micro_batches([0, 1, 2], pairs_of(lengths), Limit(99, ANY), *worlds(1)) == [[1, 0, 2]]


def test_a_step_without_pairs_has_no_micro_batches():
    assert [micro_batches([], pairs_of([5]), Limit(2, ANY), world) for world in worlds(3)] == [[], [], []]


@pytest.mark.parametrize(
    "indices, shares", [([3, 0, 6, 1], [[[6], [3]], [[1], [0]]]), ([5, 2, 4], [[[5], [4]], [[2], []]])]
)
def test_the_picture_of_the_docstring(indices, shares):
    lengths = {6: 2, 1: 3, 3: 4, 0: 5, 5: 2, 2: 3, 4: 4}  # so that the first step is sorted 6 1 3 0, the second 5 2 4
    lengths = np.array([lengths[i] for i in range(7)])
    assert [micro_batches(indices, pairs_of(lengths), Limit(1, ANY), world) for world in worlds(2)] == shares
    assert [len(pairs_of_step(step, 7, 4, 0)) for step in (1, 2, 3, 4)] == [4, 3, 4, 3]


@given(counts, batches, seeds, st.integers(1, 40), st.integers(0, 40))
def test_steps_asked_for_in_a_row_are_those_asked_for_one_by_one_and_the_shuffle_is_numpys(
    pairs, batch, seed, first, more
):
    found = list(steps_of(first, first + more, pairs, batch, seed))
    assert found == [(step, pairs_of_step(step, pairs, batch, seed)) for step in range(first, first + more + 1)]
    each = len(range(0, pairs, batch))
    for step, indices in found:
        order = np.random.default_rng((seed, (step - 1) // each)).permutation(pairs)
        assert indices == order[(step - 1) % each * batch :][:batch].tolist()


def test_no_steps_are_none():
    assert list(steps_of(5, 4, 10, 2, 0)) == []  # a run that is finished


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=20), st.integers(1, 3))
def test_prompts_that_begin_alike_are_asked_together(prompts, size):
    ids = [Ids(prompt, [1], [2]) for prompt in prompts]
    examples = in_memory([Pair("", "", "", row) for row in range(1, len(ids) + 1)], ids)
    for world in worlds(size):
        asked = [
            prompts[i] for some in micro_batches(list(range(len(ids))), examples, Limit(3, ANY), world) for i in some
        ]
        assert asked == sorted(asked)
