"""dpo/rows.py: the pictures of its docstring, and that pairs which share a row say what they say in rows of their own."""

import os
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pairs import Pair
from dpo import rows as module
from dpo.plain import get_log_probs
from dpo.rows import CHOSEN, REJECTED, TRUNK, Batch, Ids, answer_sums, batch_of, collate, make_row
from dpo.store import encode
from gpt.attention import looking, may_look
from gpt.model import GPT, IGNORE

V = 40  # the toy's vocabulary
CPU = torch.device("cpu")


def ids(longest: int = 8):
    return st.lists(st.integers(0, V - 1), min_size=1, max_size=longest)


pairs_of_ids = st.builds(Ids, ids(), ids(6), ids(6))


@st.composite
def pairs_that_begin_alike(draw, most: int = 4) -> list[Ids]:
    """Pairs whose prompts begin with nothing, something or all in common, some with one answer alone."""
    begin = draw(st.lists(st.integers(0, V - 1), max_size=5))
    ends = draw(
        st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=most)
    )  # more of it may be common
    whole = [[*begin, *end] or [7] for end in ends]
    answers = st.tuples(ids(5), ids(5) | st.just([]))
    return [Ids(prompt, *draw(answers)) for prompt in whole]


def answer_of(pairs: list[Ids], number: int) -> tuple[list[int], list[int]]:
    """Prompt and answer of the answer `number`: 2 x pair, + 1 for rejected."""
    pair = pairs[number // 2]
    return pair.prompt, pair.rejected if number % 2 else pair.chosen


# The pictures


def cells(name: str) -> list[list[str]]:
    """The cells of each line of this name in the docstring's pictures: `tokens     10 11 | 12 20 21 | ...`"""
    found = re.findall(rf"^ *{name} {{2,}}(.*)$", module.__doc__, re.MULTILINE)
    return [re.split(" {4,}", line)[0].split("|") for line in found]  # what stands far to the right is a legend


def columns(name: str, picture: int) -> list[str]:
    return " ".join(cells(name)[picture]).split()


def words(name: str) -> list[int]:
    """The ids of the first picture's prompt or answer."""
    return [int(n) for n in re.search(rf"\b{name} +((\d+ ?)+)", module.__doc__)[1].split()]


def second_pair() -> list[list[int]]:
    text = re.search(r"A second pair, prompt ([\d ]+), chosen ([\d ]+), rejected ([\d ]+):", module.__doc__)
    return [[int(n) for n in part.split()] for part in text.groups()]


def test_the_first_picture_of_the_docstring_is_the_row_column_for_column():
    row = make_row(words("prompt"), words("chosen"), words("rejected"))
    for name, column in row._asdict().items():
        assert column == [IGNORE if cell == "." else int(cell) for cell in columns(name, 0)], name


def test_the_second_picture_of_the_docstring_is_the_batch_column_for_column():
    first, second = [words(name) for name in ("prompt", "chosen", "rejected")], second_pair()
    assert (first[0], second[0]) == ([10, 11, 12], [10, 13])
    batch = collate([make_row(*first), make_row(*second)])
    for name in ("tokens", "targets", "positions"):
        expected = [IGNORE if cell == "." else int(cell) for cell in columns(name, 1)]
        assert getattr(batch, name).tolist() == [expected], name
    answer = columns("answer", 0)
    places = [place for place, cell in enumerate(answer) if cell != "."]
    assert batch.places.tolist() == places and batch.answer.tolist() == [int(answer[place]) for place in places]
    # its cells are the pieces, but for the second pair's trunk, of which nothing is left
    sizes = [len(cell.split()) for cell in cells("tokens")[1]]
    assert [size for size in batch.tree.sizes if size] == sizes
    assert batch.tree.sizes[:8] == (1, 1, 3, 2, 0, 2, 1, 0) and batch.tree.parents == (-1, 0, 1, 1, 0, 4, 4, 0)
    assert batch.lengths.tolist() == [7, 4] and batch.pairs == 2 and batch.padding == 0


def test_a_row_with_one_answer_is_plain_text_from_left_to_right():
    row = make_row([10, 11, 12], [20, 21, 0])
    assert row.tokens == [10, 11, 12, 20, 21] and row.positions == list(range(5))
    assert row.targets == [IGNORE, IGNORE, 20, 21, 0] and row.branch == [TRUNK] * 2 + [CHOSEN] * 3


@given(pairs_of_ids)
def test_a_row_has_the_length_that_is_promised_and_each_place_of_a_branch_one_target(pair):
    row = make_row(*pair)
    assert (
        {len(column) for column in row}
        == {pair.length}
        == {len(pair.prompt) - 1 + len(pair.chosen) + len(pair.rejected)}
    )
    for branch, answer in ((CHOSEN, pair.chosen), (REJECTED, pair.rejected)):
        places = [i for i, b in enumerate(row.branch) if b == branch]
        text = [*pair.prompt, *answer]
        assert [row.targets[i] for i in places] == answer
        # each place says which token of the text it holds, and predicts the next one
        assert [row.tokens[i] for i in places] == [text[row.positions[i]] for i in places]
        assert [row.targets[i] for i in places] == [text[row.positions[i] + 1] for i in places]


# The batch


@given(st.lists(pairs_of_ids, min_size=1, max_size=4), st.data())
def test_a_batch_holds_the_rows_that_were_asked_for_one_behind_the_other_and_padding_behind_them(pairs, data):
    indices = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=4))
    multiple = data.draw(st.sampled_from([1, 2, 8, 128]))
    batch = batch_of(pairs, indices, multiple)
    rows = [make_row(*pairs[i]) for i in indices]
    trunks = [pairs[i].prompt[:-1] for i in indices]
    shared = 0
    while all(len(trunk) > shared and trunk[shared] == trunks[0][shared] for trunk in trunks):
        shared += 1
    for name, filler in (("tokens", 0), ("targets", IGNORE), ("positions", 0)):
        expected = getattr(rows[0], name)[:shared]
        for row in rows:
            expected = expected + getattr(row, name)[shared:]
        assert batch.padding == -len(expected) % multiple
        assert getattr(batch, name).tolist() == [expected + [filler] * batch.padding]
    assert batch.tree.sizes[0] == shared and batch.tree.sizes[-1] == batch.padding
    assert sum(batch.tree.sizes) == batch.tokens.shape[1] and batch.tokens.shape[1] % multiple == 0
    assert batch.lengths.tolist() == [pairs[i].length for i in indices] and batch.pairs == len(indices)


@given(pairs_that_begin_alike(), st.sampled_from([1, 4, 16]))
def test_expanding_each_line_of_the_tree_gives_back_each_pairs_text_with_its_positions_and_targets(pairs, multiple):
    batch = batch_of(pairs, range(len(pairs)), multiple)
    tokens, targets, positions = batch.tokens[0], batch.targets[0], batch.positions[0]
    mask = may_look(batch.tree)
    found: dict[int, list[int]] = {}
    for place, number in zip(batch.places.tolist(), batch.answer.tolist()):
        prompt, answer = answer_of(pairs, number)
        line = mask[place].nonzero()[:, 0]  # all that this place looks at, itself the last of it
        length = len(prompt) + len(found.setdefault(number, []))
        assert line[-1] == place and tokens[line].tolist() == (prompt + answer)[:length]
        assert positions[line].tolist() == list(range(length))
        found[number].append(int(targets[place]))
    assert found == {
        2 * i + side: answer
        for i, pair in enumerate(pairs)
        for side, answer in enumerate((pair.chosen, pair.rejected))
        if answer
    }
    # and nothing else has a target
    assert batch.places.tolist() == (targets != IGNORE).nonzero()[:, 0].tolist()


@given(pairs_that_begin_alike())
def test_what_is_read_once_is_the_longest_beginning_that_all_trunks_have_in_common(pairs):
    batch = batch_of(pairs, range(len(pairs)))
    shared = len(os.path.commonprefix([pair.prompt[:-1] for pair in pairs]))
    assert batch.tree.sizes[0] == shared and batch.tree.paths[0] == [0]
    assert batch.tokens.shape[1] == sum(pair.length for pair in pairs) - shared * (len(pairs) - 1)


def test_pairs_of_one_prompt_share_all_of_it_but_its_last_token():
    batch = batch_of([Ids([1, 2, 3], [4], [5]), Ids([1, 2, 3], [6, 7], [])], [0, 1])
    assert batch.tokens.tolist() == [[1, 2, 3, 3, 3, 6]] and batch.positions.tolist() == [[0, 1, 2, 2, 2, 3]]
    assert batch.tree.sizes == (2, 0, 1, 1, 0, 2, 0, 0) and batch.answer.tolist() == [0, 1, 2, 2]


def test_a_pair_without_a_rejected_answer_has_one_branch():
    batch = batch_of([Ids([1, 2], [3, 0], [])], [0])
    assert batch.answer.tolist() == [0, 0] and batch.tree.sizes == (1, 0, 2, 0, 0)
    assert answer_sums(torch.ones(2), batch).tolist() == [[2], [0]]


def test_to_a_device_goes_all_that_a_device_needs():
    batch = batch_of([Ids([1, 2], [3, 0], [4])], [0], 8)
    moved = batch.to("meta")
    for name, part in batch._asdict().items():
        other = getattr(moved, name)
        assert (other.device.type, other.shape) == ("meta", part.shape) if torch.is_tensor(part) else other == part


# The mask


@given(st.lists(pairs_of_ids, min_size=1, max_size=3), st.sampled_from([1, 8]))
def test_a_key_is_seen_if_it_is_not_later_and_of_the_common_beginning_the_own_trunk_or_the_own_branch(pairs, multiple):
    batch = batch_of(pairs, range(len(pairs)), multiple)
    shared = batch.tree.sizes[0]
    whose = [("all", 0)] * shared  # pair and branch of each token
    for i, pair in enumerate(pairs):
        whose += [(i, branch) for branch in make_row(*pair).branch[shared:]]
    whose += [("nobody", 0)] * batch.padding
    mask = may_look(batch.tree)
    T = len(whose)
    assert mask.shape == (T, T) and mask.dtype == torch.bool
    for query in range(T):
        for key in range(T):
            (pair, branch), (own, mine) = whose[key], whose[query]
            seen = pair == "all" or pair == own and branch in (TRUNK, mine)
            assert mask[query, key] == (key <= query and seen)


@given(st.lists(pairs_of_ids, min_size=1, max_size=3), st.sampled_from([8, 128]))
def test_every_query_sees_something_and_no_answer_sees_padding(pairs, multiple):
    batch = batch_of(pairs, range(len(pairs)), multiple)
    mask = may_look(batch.tree)
    assert mask.any(-1).all()
    end = batch.tokens.shape[1] - batch.padding
    assert not mask[:end, end:].any()


# A shared row against separate rows


def alone(model: GPT, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p of an answer's tokens, (C,), from a row of its own and logits: nothing of rows.py, no mask, no targets."""
    logits = model(torch.tensor([prompt + answer[:-1]]))[0, len(prompt) - 1 :]
    return logits.log_softmax(-1)[torch.arange(len(answer)), answer]


def separate(model: GPT, pairs: list[Ids]) -> torch.Tensor:
    """Sums over each answer from rows of their own, (2, B); 0 for an answer that is not there."""
    both = [
        [alone(model, p.prompt, a).sum() if a else torch.tensor(0.0) for a in (p.chosen, p.rejected)] for p in pairs
    ]
    return torch.stack([torch.stack(one) for one in both], 1)


def from_logits(model: GPT, batch: Batch) -> torch.Tensor:
    """log p of the answer tokens, (S,), without float32: the model's logits and the mask, in the model's own precision."""
    logp = model(batch.tokens, positions=batch.positions, look=may_look(batch.tree))[0, batch.places].log_softmax(-1)
    return logp.gather(-1, batch.targets[0, batch.places, None])[:, 0]


def asked(model: GPT, batch: Batch) -> torch.Tensor:
    """log p of the answer tokens, (S,), as training asks for it."""
    look = looking(batch.tree, CPU, torch.float32)
    return model(batch.tokens, batch.targets, batch.positions, look, batch.places)[0, batch.places]


def gradients(model: GPT, value: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(value, list(model.parameters()))


def close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> bool:
    """Equal to `tolerance` of the largest entry of all."""
    scale = max(float(tensor.abs().max()) for tensor in expected)
    return all(float((a - b).abs().max()) <= tolerance * scale for a, b in zip(found, expected, strict=True))


some_pairs = st.lists(pairs_of_ids, min_size=1, max_size=3) | pairs_that_begin_alike()


@settings(max_examples=30)
@given(some_pairs, st.integers(0, 3), st.sampled_from([1, 16]))
def test_a_shared_row_gives_answers_the_log_probability_and_parameters_the_gradient_of_separate_rows(
    make_gpt, pairs, seed, multiple
):
    model = make_gpt(seed, double=True)
    batch = batch_of(pairs, range(len(pairs)), multiple)
    shared = answer_sums(from_logits(model, batch), batch)  # (2, B)
    expected = separate(model, pairs).double()
    assert shared.shape == expected.shape and torch.allclose(shared, expected, rtol=0, atol=1e-10)
    weights = torch.randn(shared.shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    assert close(gradients(model, (weights * shared).sum()), gradients(model, (weights * expected).sum()), 1e-10)


@settings(max_examples=30)
@given(some_pairs, st.integers(0, 3), st.sampled_from([1, 16]))
def test_what_is_asked_is_the_log_probability_of_each_answer_token_in_float32_and_0_elsewhere(
    make_gpt, pairs, seed, multiple
):
    model = make_gpt(seed)
    batch = batch_of(pairs, range(len(pairs)), multiple)
    look = looking(batch.tree, CPU, torch.float32)
    logp = model(batch.tokens, batch.targets, batch.positions, look, batch.places)
    assert logp.dtype == torch.float32 and logp.shape == batch.tokens.shape
    assert (logp[batch.targets == IGNORE] == 0).all()
    assert torch.equal(logp, model(batch.tokens, batch.targets, batch.positions, look))  # which finds the places itself
    for number in set(batch.answer.tolist()):
        found = logp[0, batch.places[batch.answer == number]]
        assert torch.allclose(found, alone(model, *answer_of(pairs, number)), atol=2e-4)


@pytest.mark.parametrize("begin", [[], [3, 1, 4, 1, 5]])
def test_the_gradient_of_what_is_asked_is_that_of_separate_rows(make_gpt, random_ids, begin):
    model, pairs = make_gpt(2), [pair._replace(prompt=begin + pair.prompt) for pair in random_ids(6, seed=2)]
    batch = batch_of(pairs, range(6), 16)
    shared, expected = answer_sums(asked(model, batch), batch), separate(model, pairs)
    weights = torch.randn(2, 6)
    assert close(gradients(model, (weights * shared).sum()), gradients(model, (weights * expected).sum()), 1e-5)


def test_the_sums_of_answers_are_what_the_plain_path_gets_from_padded_sequences(make_gpt, random_ids):
    model, pairs = make_gpt(1), random_ids(7, seed=1)
    batch = batch_of(pairs, range(7))
    for side, found in zip(("chosen", "rejected"), answer_sums(asked(model, batch), batch), strict=True):
        whole = [[*pair.prompt, *getattr(pair, side)] for pair in pairs]
        labels = torch.full((7, max(map(len, whole))), -100)
        tokens = torch.randint(V, labels.shape)  # the padding is any token
        for row, (pair, text) in enumerate(zip(pairs, whole)):
            tokens[row, : len(text)] = torch.tensor(text)
            labels[row, len(pair.prompt) : len(text)] = torch.tensor(getattr(pair, side))
        assert torch.allclose(found, get_log_probs(model(tokens), labels), atol=1e-4)


@given(pairs_of_ids, st.data())
def test_no_answer_sees_a_token_of_the_other_branch(make_gpt, pair, data):
    model = make_gpt(0, double=True)
    other = data.draw(st.lists(st.integers(0, V - 1), min_size=len(pair.rejected), max_size=len(pair.rejected)))
    before, after = (from_logits(model, batch_of([p], [0])) for p in (pair, pair._replace(rejected=other)))
    chosen = batch_of([pair], [0]).answer == 0
    assert int(chosen.sum()) == len(pair.chosen)
    assert torch.allclose(before[chosen], after[chosen], rtol=0, atol=1e-12)
    # nor does the rejected answer see the chosen one: with the two exchanged, each says what it said
    exchanged = batch_of([Ids(pair.prompt, pair.rejected, pair.chosen)], [0])
    swapped = answer_sums(from_logits(model, exchanged), exchanged)
    batch = batch_of([pair], [0])
    assert torch.allclose(swapped.flip(0), answer_sums(from_logits(model, batch), batch), atol=1e-10)


@given(pairs_of_ids, pairs_of_ids, st.integers(0, V - 1))
def test_neither_the_pair_beside_nor_what_stands_in_the_padding_changes_an_answer(make_gpt, pair, beside, filler):
    model = make_gpt(0, double=True)
    by_itself = from_logits(model, batch_of([pair], [0]))
    batch = batch_of([pair, beside], [0, 1], 64)
    tokens, positions = batch.tokens.clone(), batch.positions.clone()
    assert batch.padding > 0
    tokens[:, -batch.padding :], positions[:, -batch.padding :] = filler, 1
    for one in (batch, batch._replace(tokens=tokens, positions=positions)):
        found = from_logits(model, one)
        assert torch.isfinite(found).all()
        assert torch.allclose(found[one.answer < 2], by_itself, rtol=0, atol=1e-10)
        told = model.float()(one.tokens, one.targets, one.positions, looking(one.tree, CPU, torch.float32), one.places)
        assert (told[0, -batch.padding :] == 0).all() and torch.isfinite(told).all()
        model.double()


# Sums


def test_the_sums_of_ones_are_the_lengths_of_the_answers(random_ids):
    pairs = random_ids(5)
    batch = batch_of(pairs, range(5))
    chosen, rejected = answer_sums(torch.ones(len(batch.answer)), batch)
    assert chosen.tolist() == [len(p.chosen) for p in pairs] and rejected.tolist() == [len(p.rejected) for p in pairs]


@given(pairs_that_begin_alike(), st.integers(0, 100))
def test_sums_are_those_of_a_plain_loop_and_so_is_their_gradient(pairs, seed):
    batch = batch_of(pairs, range(len(pairs)))
    values = torch.randn(len(batch.answer), dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    expected = [[0.0] * len(pairs) for _ in range(2)]
    for value, number in zip(values.tolist(), batch.answer.tolist()):
        expected[number % 2][number // 2] += value
    found = answer_sums(values.requires_grad_(), batch)
    assert found.shape == (2, len(pairs)) and torch.allclose(found, torch.tensor(expected, dtype=torch.double))
    weights = torch.arange(1.0, 2 * len(pairs) + 1, dtype=torch.double).view(2, -1)
    (gradient,) = torch.autograd.grad((weights * found).sum(), values)
    assert gradient.tolist() == [weights[number % 2, number // 2] for number in batch.answer.tolist()]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_in_one_answer_is_in_no_sum_but_its_own(random_ids, broken):
    pairs = random_ids(5)
    batch = batch_of(pairs, range(5))
    values = torch.randn(len(batch.answer))
    expected = answer_sums(values, batch)
    values[batch.answer == 5] = broken  # the rejected answer of pair 2
    found = answer_sums(values, batch)
    assert not found[1, 2].isfinite()
    found[1, 2] = expected[1, 2]
    assert torch.equal(found, expected)


# Text to ids

TEXTS = [
    ("", "yes", "no"),
    ("Say hello.", "Good morning!", "What do you want?"),
    ("Add 2 + 3. " * 5, "5", "6, I think, or seven"),
    ("<|endoftext|> is text", "<|endoftext|>", " "),
    ("Count.", "one two three four five six seven eight nine ten", "1"),
]
PAIRS = [Pair(*texts, row) for row, texts in enumerate(TEXTS, 11)]


def test_prompt_and_answers_are_encoded_apart_and_each_answer_ends_with_one_end_of_text(tokenizer):
    counted, end = {}, tokenizer.end_of_text
    kept = encode(PAIRS, tokenizer, 500, False, counted)
    assert [pair for pair, _ in kept] == PAIRS
    literal = [p.row for p in PAIRS if "<|endoftext|>" in p.prompt + p.chosen + p.rejected]
    assert literal and list(counted.values()) == [literal]  # said, since it ends nothing
    for pair, found in kept:
        assert tokenizer.decode(found.prompt) == (pair.prompt or "<|endoftext|>")
        for answer, text in ((found.chosen, pair.chosen), (found.rejected, pair.rejected)):
            assert answer[-1] == end and end not in answer[:-1] and tokenizer.decode(answer[:-1]) == text
        assert (found.prompt == [end]) == (pair.prompt == "") and (pair.prompt == "" or end not in found.prompt)


def test_prompt_and_answer_are_not_joined_into_one_token_at_their_border(tokenizer):
    word = next(
        token.decode()
        for token in tokenizer.ids
        if token.isalpha() and len(token) > 3 and len(tokenizer.encode(token.decode())) == 1
    )
    ((_, found),) = encode([Pair(word[:2], word[2:], "no", 1)], tokenizer, 99, False, {})
    assert found.prompt == tokenizer.encode(word[:2]) and found.chosen == [
        *tokenizer.encode(word[2:]),
        tokenizer.end_of_text,
    ]


def test_with_gpt2s_vocabulary_a_literal_end_of_text_stays_text(shared, monkeypatch):
    from gpt.tokenizer import Tokenizer

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    ((_, found),) = encode([PAIRS[3]], Tokenizer.gpt2(), 99, False, {})
    assert (
        found.chosen.count(50256) == 1 == found.rejected.count(50256)
        and found.chosen[-1] == 50256
        and 50256 not in found.prompt
    )


@pytest.mark.parametrize("max_length", range(1, 60))
def test_a_prompt_is_cut_from_the_left_and_what_leaves_no_room_for_it_is_left_out_and_both_are_counted(
    tokenizer, max_length
):
    whole = encode(PAIRS, tokenizer, 10_000, False, {})
    counted = {}
    kept = dict(encode(PAIRS, tokenizer, max_length, False, counted))
    left_out, cut = [], []
    for pair, found in whole:
        room = max_length - max(len(found.chosen), len(found.rejected))
        if room < 1:
            left_out.append(pair.row)
            assert pair not in kept
        else:
            # answers are never cut; the prompt keeps its end, all of it if it fits exactly
            assert kept[pair] == found._replace(prompt=found.prompt[max(0, len(found.prompt) - room) :])
            cut += [pair.row] * (len(found.prompt) > room)
    literal = counted.pop("<|endoftext|> in the text, read as its letters", [])
    assert literal == [p.row for p in kept if "<|endoftext|>" in p.prompt + p.chosen + p.rejected]
    assert {name: rows for name, rows in counted.items()} == {
        name: rows for name in counted for rows in [left_out if "left out" in name else cut]
    }
    assert sorted(map(str, counted.values())) == sorted(str(rows) for rows in (left_out, cut) if rows)
    assert all(str(max_length) in name for name in counted)


def test_one_answer_leaves_the_rejected_one_away_and_its_length_then_binds_nothing(tokenizer):
    pair = PAIRS[2]
    length = len(tokenizer.encode(pair.prompt)) + len(tokenizer.encode(pair.chosen)) + 1
    counted = {}
    ((_, found),) = encode([pair], tokenizer, length, True, counted)
    assert found.rejected == [] and len(found.prompt) + len(found.chosen) == length and counted == {}
    ((_, found),) = encode([pair._replace(rejected=None)], tokenizer, length, False, counted)
    assert found.rejected == [] and counted == {}


def test_no_position_reaches_max_length_so_a_model_of_that_context_can_read_every_row(tokenizer, make_gpt):
    for max_length in (12, 20, 33):
        pairs = [found for _, found in encode(PAIRS, tokenizer, max_length, False, {})]
        batch = batch_of(pairs, range(len(pairs)))
        assert batch.positions.max() < max_length
        asked(make_gpt(vocab_size=tokenizer.vocab_size, n_positions=max_length), batch)
