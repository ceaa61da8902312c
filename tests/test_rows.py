"""dpo/rows.py: the picture of its docstring, the mask, and that a shared row says what separate rows say."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pairs import Pair
from dpo import rows as module
from dpo.plain import get_log_probs
from dpo.rows import (
    CHOSEN,
    PADDING,
    REJECTED,
    TRUNK,
    Batch,
    Ids,
    answer_sums,
    batch_of,
    collate,
    make_row,
    may_look,
    token_logps,
)
from dpo.store import encode
from gpt.model import GPT, IGNORE

V = 40  # the toy's vocabulary


def ids(longest: int = 8):
    return st.lists(st.integers(0, V - 1), min_size=1, max_size=longest)


pairs_of_ids = st.builds(Ids, ids(), ids(6), ids(6))


# The picture


def columns(name: str) -> list[str]:
    """The cells of one line of the docstring's picture: `tokens     10 11 | 12 20 21 | ...`"""
    (line,) = re.findall(rf"^ *{name} +(.*)$", module.__doc__, re.MULTILINE)
    return re.split(" {4,}", line)[0].replace("|", " ").split()  # what stands far to the right is a legend


def test_the_picture_of_the_docstring_is_the_row_column_for_column():
    words = {
        name: [int(n) for n in re.search(rf"\b{name} +((\d+ ?)+)", module.__doc__)[1].split()]
        for name in ("prompt", "chosen", "rejected")
    }
    longer = make_row([1, 2, 3], [4, 5, 0], [6, 7, 0])  # beside it the picture's row has one column of padding
    batch = collate([make_row(words["prompt"], words["chosen"], words["rejected"]), longer])
    assert batch.tokens.shape == (2, 8)
    for name, column in batch._asdict().items():
        expected = [IGNORE if cell == "." else int(cell) for cell in columns(name)]
        assert column[0].tolist() == expected, name
    assert (batch.branch[1] != PADDING).all()


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


@given(st.lists(pairs_of_ids, min_size=1, max_size=4), st.data())
def test_a_batch_holds_the_rows_that_were_asked_for_and_padding_behind_them(pairs, data):
    indices = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=4))
    batch = batch_of(pairs, indices)
    assert batch.tokens.shape == (len(indices), max(pairs[i].length for i in indices))
    for row, i in enumerate(indices):
        for column, expected, filler in zip(batch, make_row(*pairs[i]), (0, IGNORE, 0, PADDING), strict=True):
            assert column[row].tolist() == expected + [filler] * (column.shape[1] - len(expected))


def test_a_pair_without_a_rejected_answer_becomes_a_row_with_one_branch():
    assert set(batch_of([Ids([1, 2], [3, 0], [])], [0]).branch[0].tolist()) == {TRUNK, CHOSEN}


# The mask


@given(st.lists(pairs_of_ids, min_size=1, max_size=3))
def test_a_key_is_seen_if_it_is_not_later_and_in_the_trunk_or_in_the_querys_own_branch(pairs):
    batch = batch_of(pairs, range(len(pairs)))
    mask = may_look(batch.branch)
    B, T = batch.branch.shape
    assert mask.shape == (B, 1, T, T) and mask.dtype == torch.bool
    for b, branch in enumerate(batch.branch.tolist()):
        for query in range(T):
            for key in range(T):
                expected = key <= query and (branch[key] == 0 or branch[key] == branch[query])
                assert mask[b, 0, query, key] == expected


@given(st.lists(pairs_of_ids, min_size=1, max_size=3))
def test_every_query_sees_something_and_no_answer_sees_padding(pairs):
    batch = batch_of(pairs, range(len(pairs)))
    mask = may_look(batch.branch)[:, 0]
    assert mask.any(-1).all()
    assert not (mask & (batch.branch == PADDING)[:, None, :] & (batch.branch != PADDING)[:, :, None]).any()


# A shared row against separate rows


def alone(model: GPT, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p of an answer's tokens, (C,), from a row of its own and logits: nothing of rows.py, no mask, no targets."""
    logits = model(torch.tensor([prompt + answer[:-1]]))[0, len(prompt) - 1 :]
    return logits.log_softmax(-1)[torch.arange(len(answer)), answer]


def from_logits(model: GPT, batch: Batch) -> torch.Tensor:
    """token_logps without its float32: the model's logits at the same places, in the model's own precision."""
    logp = model(batch.tokens, positions=batch.positions, mask=may_look(batch.branch)).log_softmax(-1)
    scored = batch.targets != IGNORE
    return logp.gather(-1, batch.targets.where(scored, 0)[..., None])[..., 0] * scored


def gradients(model: GPT, value: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(value, list(model.parameters()))


def close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> bool:
    """Equal to `tolerance` of the largest entry of all."""
    scale = max(float(tensor.abs().max()) for tensor in expected)
    return all(float((a - b).abs().max()) <= tolerance * scale for a, b in zip(found, expected, strict=True))


@settings(max_examples=30)
@given(st.lists(pairs_of_ids, min_size=1, max_size=3), st.integers(0, 3))
def test_a_shared_row_gives_answers_the_log_probability_and_parameters_the_gradient_of_separate_rows(
    make_gpt, pairs, seed
):
    model = make_gpt(seed, double=True)
    batch = batch_of(pairs, range(len(pairs)))
    shared = torch.stack(answer_sums(from_logits(model, batch), batch.branch), 1)  # (B, 2)
    separate = torch.stack(
        [torch.stack([alone(model, p.prompt, p.chosen).sum(), alone(model, p.prompt, p.rejected).sum()]) for p in pairs]
    )
    assert torch.allclose(shared, separate, rtol=0, atol=1e-10)
    weights = torch.randn(shared.shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    assert close(gradients(model, (weights * shared).sum()), gradients(model, (weights * separate).sum()), 1e-10)


@settings(max_examples=30)
@given(st.lists(pairs_of_ids, min_size=1, max_size=3), st.integers(0, 3))
def test_token_logps_is_the_log_probability_of_each_answer_token_in_float32_and_0_elsewhere(make_gpt, pairs, seed):
    model = make_gpt(seed)
    batch = batch_of(pairs, range(len(pairs)))
    logp = token_logps(model, batch)
    assert logp.dtype == torch.float32 and logp.shape == batch.tokens.shape
    assert (logp[batch.targets == IGNORE] == 0).all()
    for row, pair in enumerate(pairs):
        for branch, answer in ((CHOSEN, pair.chosen), (REJECTED, pair.rejected)):
            assert torch.allclose(logp[row, batch.branch[row] == branch], alone(model, pair.prompt, answer), atol=2e-4)


def test_the_gradient_of_token_logps_is_that_of_separate_rows(make_gpt, random_ids):
    model, pairs = make_gpt(2), random_ids(6, seed=2)
    batch = batch_of(pairs, range(6))
    shared = torch.stack(answer_sums(token_logps(model, batch), batch.branch), 1)
    separate = torch.stack(
        [torch.stack([alone(model, p.prompt, a).sum() for a in (p.chosen, p.rejected)]) for p in pairs]
    )
    weights = torch.randn(6, 2)
    assert close(gradients(model, (weights * shared).sum()), gradients(model, (weights * separate).sum()), 1e-5)


def test_the_sums_of_answers_are_what_the_plain_path_gets_from_padded_sequences(make_gpt, random_ids):
    model, pairs = make_gpt(1), random_ids(7, seed=1)
    batch = batch_of(pairs, range(7))
    for side, found in zip(("chosen", "rejected"), answer_sums(token_logps(model, batch), batch.branch)):
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
    before, after = (from_logits(model, batch_of([p], [0]))[0] for p in (pair, pair._replace(rejected=other)))
    chosen = torch.tensor(make_row(*pair).branch) == CHOSEN
    assert torch.allclose(before[chosen], after[chosen], rtol=0, atol=1e-12)
    # nor does the rejected answer see the chosen one: with the two exchanged, each says what it said
    exchanged = batch_of([Ids(pair.prompt, pair.rejected, pair.chosen)], [0])
    swapped = answer_sums(from_logits(model, exchanged), exchanged.branch)
    batch = batch_of([pair], [0])
    assert torch.allclose(
        torch.stack(swapped).flip(0), torch.stack(answer_sums(from_logits(model, batch), batch.branch)), atol=1e-10
    )


@given(pairs_of_ids, pairs_of_ids, st.integers(0, V - 1))
def test_neither_the_row_beside_nor_what_stands_in_the_padding_changes_an_answer(make_gpt, pair, beside, filler):
    model = make_gpt(0, double=True)
    by_itself = from_logits(model, batch_of([pair], [0]))[0]
    batch = batch_of([pair, beside], [0, 1])
    tokens = batch.tokens.where(batch.branch != PADDING, filler)
    positions = batch.positions.where(batch.branch != PADDING, 1)
    for one in (batch, batch._replace(tokens=tokens, positions=positions)):
        found = from_logits(model, one)[0]
        assert torch.isfinite(found).all()
        assert torch.allclose(found[: pair.length], by_itself, rtol=0, atol=1e-10) and (found[pair.length :] == 0).all()


def test_the_sums_of_ones_are_the_lengths_of_the_answers(random_ids):
    pairs = random_ids(5)
    branch = batch_of(pairs, range(5)).branch
    chosen, rejected = answer_sums(torch.ones(branch.shape), branch)
    assert chosen.tolist() == [len(p.chosen) for p in pairs] and rejected.tolist() == [len(p.rejected) for p in pairs]


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
        token_logps(make_gpt(vocab_size=tokenizer.vocab_size, n_positions=max_length), batch)
