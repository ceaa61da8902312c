"""dpo/rows.py: the pictures of its docstring, and that texts which share a tree say what they say in rows of their own."""

import os
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pairs import Pair
from dpo import rows as module
from dpo.plain import get_log_probs
from dpo.rows import Batch, Ids, answer_sums, collate, grow
from dpo.store import encode
from gpt import precision
from gpt.attention import Tree, looking, may_look
from gpt.model import GPT

V = 40  # the toy's vocabulary
CPU = torch.device("cpu")


def ids(longest: int = 8):
    return st.lists(st.integers(0, V - 1), min_size=1, max_size=longest)


pairs_of_ids = st.builds(Ids, ids(), ids(6), ids(6))
few = st.integers(0, 2)  # of so few tokens, texts often begin alike
texts_of_few = st.lists(st.lists(few, max_size=7), min_size=1, max_size=8)


@st.composite
def pairs_that_begin_alike(draw, most: int = 4) -> list[Ids]:
    """Pairs whose prompts, and whose answers, begin with nothing, something or all in common, some with one answer alone."""
    begin = draw(st.lists(st.integers(0, V - 1), max_size=5))
    ends = draw(st.lists(st.lists(few, max_size=4), min_size=1, max_size=most))  # more of it may be common
    answer = ids(5) | st.lists(few, min_size=1, max_size=5)
    return [Ids([*begin, *end] or [7], draw(answer), draw(answer | st.just([]))) for end in ends]


def answer_of(pairs: list[Ids], number: int) -> tuple[list[int], list[int]]:
    """Prompt and answer of the answer `number`: 2 x pair, + 1 for rejected."""
    pair = pairs[number // 2]
    return pair.prompt, pair.rejected if number % 2 else pair.chosen


def answers_of(pairs: list[Ids]) -> dict[int, tuple[list[int], list[int]]]:
    """All that are there, in the order of a batch."""
    every = {number: answer_of(pairs, number) for number in range(2 * len(pairs))}
    return {number: both for number, both in every.items() if both[1]}


def texts_of(pairs: list[Ids]) -> list[list[int]]:
    """What is read of each answer: all but its last token."""
    return [prompt + answer[:-1] for prompt, answer in answers_of(pairs).values()]


def prefixes(texts: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(text[:length]) for text in texts for length in range(1, len(text) + 1)}


def asked_places(batch: Batch) -> list[int]:
    """The place that each answer token is asked of, (S,)."""
    return batch.targets.places[batch.targets.of].tolist()


# The pictures


def cells(name: str) -> list[list[str]]:
    """The cells of each line of this name in the docstring's pictures: `tokens     10 11 | 12 20 21 | ...`"""
    found = re.findall(rf"^ *{name} {{2,}}(.*)$", module.__doc__, re.MULTILINE)
    return [re.split(" {6,}", line)[0].split("|") for line in found]  # what stands far to the right is a legend


def numbers(cells: list[str]) -> list[list[int]]:
    return [[-1 if cell == "none" else int(cell) for cell in cell.split()] for cell in cells]


def flat(some: list[list[int]]) -> list[int]:
    return [one for part in some for one in part]


def first_pair() -> Ids:
    return Ids(
        *(list(map(int, re.search(rf"\b{name} +((\d+ ?)+)", module.__doc__)[1].split())) for name in Ids._fields)
    )


def second_pair() -> Ids:
    text = re.search(r"A second pair, prompt ([\d ]+), chosen ([\d ]+), rejected ([\d ]+):", module.__doc__)
    return Ids(*([int(n) for n in part.split()] for part in text.groups()))


def asked_lines() -> list[tuple[list[int], list[tuple[int, int]], str]]:
    """Each line of `asked`: the places under the tokens, the places and what comes of them in the legend, whose it is."""
    found = re.findall(r"^ +(?:asked)?((?: +\d+)+) *\|? +(of place \d+ comes .*): (\w+)$", module.__doc__, re.MULTILINE)
    said = [[(int(a), int(b)) for a, b in re.findall(r"(\d+) comes (\d+)", legend)] for _, legend, _ in found]
    return [([int(n) for n in line.split()], pairs, whose) for (line, _, whose), pairs in zip(found, said)]


def test_the_first_picture_of_the_docstring_is_the_tree_of_a_pair_and_what_is_asked_of_it():
    pair = first_pair()
    assert pair == Ids([10, 11, 12], [20, 21, 0], [30, 0])
    tokens, positions, places, tree = grow(texts_of([pair]))
    shown = numbers(cells("tokens")[0])
    assert shown == [[10, 11, 12], [20, 21], [30]] and tokens == flat(shown)
    assert positions == flat(numbers(cells("positions")[0])) == [0, 1, 2, 3, 4, 3]
    assert tree == Tree(tuple(map(len, shown)), (-1, 0, 0)) and places == [[0, 1, 2, 3, 4], [0, 1, 2, 5]]
    batch = collate([pair])
    assert batch.tokens.tolist() == [tokens] and batch.positions.tolist() == [positions] and batch.tree == tree
    chosen, rejected = asked_lines()
    assert chosen == ([2, 3, 4], [(2, 20), (3, 21), (4, 0)], "chosen")
    assert rejected == ([2, 5], [(2, 30), (5, 0)], "rejected")
    assert asked_places(batch) == chosen[0] + rejected[0]
    assert list(zip(asked_places(batch), batch.targets.tokens.tolist())) == chosen[1] + rejected[1]
    assert batch.targets.places.tolist() == [2, 3, 4, 5] and batch.targets.of.tolist() == [0, 1, 2, 0, 3]
    assert batch.answer.tolist() == [0, 0, 0, 1, 1]
    # each number of `asked` stands under the token of that place
    lines = module.__doc__.splitlines()
    (above, line), *_ = [(i, line) for i, line in enumerate(lines) if re.match(" *tokens ", line)]
    under = {column: place for place, found in enumerate(re.finditer(r"\d+", line)) for column in range(*found.span())}
    for asked, shown in zip(lines[above + 2 : above + 4], (chosen[0], rejected[0])):
        numbered = re.finditer(r"\d+", asked[: max(under) + 1])
        assert [(under[n.end() - 1], int(n[0])) for n in numbered] == [(place, place) for place in shown]
    # what the docstring counts
    P, C, R = map(len, pair)
    assert len(tokens) == P + (C - 1) + (R - 1) and sum(map(len, texts_of([pair]))) == 2 * P + C + R - 2


def test_the_second_picture_of_the_docstring_is_the_tree_of_two_pairs():
    pairs = [first_pair(), second_pair()]
    assert pairs[1] == Ids([10, 13], [40, 0], [40, 41, 0])
    shown = numbers(cells("tokens")[1])
    assert shown == [[10], [11, 12], [20, 21], [30], [13, 40], [41]]
    (pieces,), (parents,) = (map(flat, map(numbers, cells(name))) for name in ("piece", "parent"))
    assert pieces == list(range(len(shown))) and parents == [-1, 0, 1, 1, 0, 4]
    tokens, positions, places, tree = grow(texts_of(pairs))
    assert tokens == flat(shown) and tree == Tree(tuple(map(len, shown)), tuple(parents))
    assert positions == [0, 1, 2, 3, 4, 3, 1, 2, 3]
    assert places == [[0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 6, 7], [0, 6, 7, 8]]
    batch = collate(pairs)
    assert batch.tokens.tolist() == [tokens] and batch.positions.tolist() == [positions] and batch.tree == tree
    assert asked_places(batch) == [2, 3, 4, 2, 5, 6, 7, 6, 7, 8]  # of 13 comes 40 twice, of 40 comes 0, and 41
    assert batch.targets.tokens.tolist() == [20, 21, 0, 30, 0, 40, 0, 40, 41, 0]
    assert batch.answer.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert batch.lengths.tolist() == [7, 6] and batch.pairs == 2 and batch.padding == 0


# The tree


@given(texts_of_few)
def test_who_follows_the_places_of_a_text_reads_it_from_left_to_right(texts):
    tokens, positions, places, tree = grow(texts)
    assert len(tokens) == len(positions) == sum(tree.sizes) and len(places) == len(texts)
    for text, line in zip(texts, places):
        assert [tokens[place] for place in line] == text
        assert [positions[place] for place in line] == list(range(len(text))) and line == sorted(line)


@given(texts_of_few)
def test_no_beginning_of_a_text_is_in_the_tree_twice_and_nothing_else_is(texts):
    tokens, _, places, _ = grow(texts)
    reached: dict[int, set[tuple[int, ...]]] = {}
    for text, line in zip(texts, places):
        for length, place in enumerate(line, 1):
            reached.setdefault(place, set()).add(tuple(text[:length]))
    assert sorted(reached) == list(range(len(tokens)))  # no place without a text
    assert all(len(paths) == 1 for paths in reached.values())
    assert set.union(set(), *reached.values()) == prefixes(texts) and len(tokens) == len(prefixes(texts))


@given(texts_of_few)
def test_what_a_place_may_look_at_is_the_text_up_to_it(texts):
    tokens, _, places, tree = grow(texts)
    mask = may_look(tree)
    assert mask.shape == (len(tokens), len(tokens)) and mask.dtype == torch.bool
    for line in places:
        for length, place in enumerate(line, 1):
            assert mask[place].nonzero()[:, 0].tolist() == line[:length]


@given(texts_of_few)
def test_the_pieces_are_a_tree_whose_parents_come_first_and_what_hangs_from_a_piece_follows_it_at_once(texts):
    _, _, places, tree = grow(texts)
    assert len(tree.sizes) == len(tree.parents) and tree.parents[0] == -1
    for piece, parent in enumerate(tree.parents[1:], 1):
        assert 0 <= parent < piece
        assert parent in tree.paths[piece - 1]  # it hangs from the piece before it, or from one above that
    # a piece is as long as can be: it ends where texts part, or where one ends
    assert tree.sizes[0] == len(os.path.commonprefix(texts)) and all(tree.sizes[1:])
    ends = {line[-1] for line in places if line}
    for piece, (_, after) in list(enumerate(tree.spans))[1:]:
        assert tree.parents.count(piece) != 1 or after - 1 in ends


@given(texts_of_few, st.randoms(use_true_random=False))
def test_the_order_of_the_texts_does_not_change_how_many_tokens_and_pieces_there_are(texts, random):
    shuffled = random.sample(texts, len(texts))
    (tokens, _, _, tree), (others, _, _, other) = grow(texts), grow(shuffled)
    assert sorted(tokens) == sorted(others) and sorted(tree.sizes) == sorted(other.sizes)


@pytest.mark.parametrize(
    "texts, tokens, places, tree",
    [
        ([[1, 2, 3]], [1, 2, 3], [[0, 1, 2]], Tree((3,), (-1,))),
        ([[1, 2], [1, 2]], [1, 2], [[0, 1], [0, 1]], Tree((2,), (-1,))),
        ([[1, 2], [1, 2, 3, 4]], [1, 2, 3, 4], [[0, 1], [0, 1, 2, 3]], Tree((2, 2), (-1, 0))),
        ([[1, 2, 3, 4], [1, 2]], [1, 2, 3, 4], [[0, 1, 2, 3], [0, 1]], Tree((2, 2), (-1, 0))),
        ([[1], [2], [1, 3]], [1, 3, 2], [[0], [2], [0, 1]], Tree((0, 1, 1, 1), (-1, 0, 1, 0))),
        # the same token at another depth, or behind another beginning, is another place
        ([[1, 1], [2, 1, 1]], [1, 1, 2, 1, 1], [[0, 1], [2, 3, 4]], Tree((0, 2, 3), (-1, 0, 0))),
    ],
)
def test_texts_that_are_equal_that_go_on_and_that_have_nothing_in_common(texts, tokens, places, tree):
    found = grow(texts)
    assert found == (tokens, found[1], places, tree)


# The batch


@given(pairs_that_begin_alike() | st.lists(pairs_of_ids, min_size=1, max_size=4), st.sampled_from([1, 2, 8, 128]))
def test_a_batch_is_the_tree_of_all_texts_and_padding_behind_it(pairs, multiple):
    batch = collate(pairs, multiple)
    tokens, positions, _, tree = grow(texts_of(pairs))
    assert batch.padding == -len(tokens) % multiple
    assert batch.tokens.tolist() == [tokens + [0] * batch.padding]
    assert batch.positions.tolist() == [positions + [0] * batch.padding]
    assert sum(batch.tree.sizes) == batch.tokens.shape[1] and batch.tokens.shape[1] % multiple == 0
    if batch.padding:  # it hangs from the root
        assert batch.tree == Tree((*tree.sizes, batch.padding), (*tree.parents, 0))
    else:
        assert batch.tree == tree
    assert batch.lengths.tolist() == [pair.length for pair in pairs] and batch.pairs == len(pairs)
    assert [p.length for p in pairs] == [len(p.prompt) - 1 + len(p.chosen) + len(p.rejected) for p in pairs]
    # a limit on rows is a limit on batches: no batch is larger than the rows in it
    assert len(tokens) == len(prefixes(texts_of(pairs))) <= int(batch.lengths.sum())


@given(pairs_that_begin_alike(), st.sampled_from([1, 4, 16]))
def test_what_each_answer_token_is_asked_of_looks_at_the_text_before_it_with_its_positions(pairs, multiple):
    batch = collate(pairs, multiple)
    tokens, positions, mask = batch.tokens[0], batch.positions[0], may_look(batch.tree)
    found: dict[int, list[int]] = {}
    places = asked_places(batch)
    assert len(places) == len(batch.answer) == len(batch.targets.tokens)
    for place, number, target in zip(places, batch.answer.tolist(), batch.targets.tokens.tolist()):
        prompt, answer = answer_of(pairs, number)
        line = mask[place].nonzero()[:, 0]  # all that this place looks at, itself the last of it
        length = len(prompt) + len(found.setdefault(number, []))
        assert line[-1] == place and tokens[line].tolist() == (prompt + answer)[:length]
        assert positions[line].tolist() == list(range(length))
        found[number].append(target)
    # chosen, then rejected, pair after pair, each whole
    expected = {number: answer for number, (_, answer) in answers_of(pairs).items()}
    assert found == expected and list(found) == list(expected)
    assert batch.answer.tolist() == [number for number, answer in expected.items() for _ in answer]


@given(pairs_that_begin_alike(), st.sampled_from([1, 16]))
def test_each_place_that_is_asked_is_asked_for_once_however_many_tokens_come_of_it(pairs, multiple):
    batch = collate(pairs, multiple)
    places, of, tokens = batch.targets
    before = [tuple(prompt + answer[:n]) for prompt, answer in answers_of(pairs).values() for n in range(len(answer))]
    assert places.tolist() == sorted(set(places.tolist())) and len(places) == len(set(before))
    assert of.shape == tokens.shape and sorted(set(of.tolist())) == list(range(len(places)))
    assert places.max() < batch.tokens.shape[1] - batch.padding  # padding is never asked
    assert {part.dtype for part in (*batch.targets, batch.tokens, batch.positions)} == {torch.long}


def test_an_sft_row_is_plain_text_from_left_to_right():
    batch = collate([Ids([10, 11, 12], [20, 21, 0], [])])
    assert batch.tokens.tolist() == [[10, 11, 12, 20, 21]] and batch.positions.tolist() == [list(range(5))]
    assert batch.tree == Tree((5,), (-1,)) and batch.lengths.tolist() == [5]
    assert asked_places(batch) == [2, 3, 4] and batch.targets.tokens.tolist() == [20, 21, 0]
    assert batch.answer.tolist() == [0, 0, 0]
    assert answer_sums(torch.ones(3), batch).tolist() == [[3], [0]]


@pytest.mark.parametrize(
    "pairs, tokens, asked",
    [
        # chosen and rejected that begin alike
        ([Ids([1, 2], [3, 4, 0], [3, 5, 0])], [1, 2, 3, 4, 5], [1, 2, 3, 1, 2, 4]),
        # one answer goes on where the other ends
        ([Ids([1, 2], [3, 0], [3, 4, 0])], [1, 2, 3, 4], [1, 2, 1, 2, 3]),
        # answers that are the same
        ([Ids([1, 2], [3, 0], [3, 0])], [1, 2, 3], [1, 2, 1, 2]),
        # of one token: nothing but the prompt is read
        ([Ids([1, 2], [0], [3])], [1, 2], [1, 1]),
        # pairs of one prompt
        ([Ids([1, 2, 3], [4], [5]), Ids([1, 2, 3], [6, 7], [])], [1, 2, 3, 6], [2, 2, 2, 3]),
        # a prompt that goes on with what is an answer of the other
        ([Ids([1], [2, 3, 0], [0]), Ids([1, 2], [3, 0], [4, 0])], [1, 2, 3, 4], [0, 1, 2, 0, 1, 2, 1, 3]),
        # what one chose another rejected
        ([Ids([1], [2, 0], [3, 0]), Ids([1], [3, 0], [2, 0])], [1, 2, 3], [0, 1, 0, 2, 0, 2, 0, 1]),
        # a pair twice
        ([Ids([1], [2, 0], [3, 0])] * 2, [1, 2, 3], [0, 1, 0, 2] * 2),
        # answers that are alike behind prompts that are not
        ([Ids([1], [3, 0], []), Ids([2], [3, 0], [])], [1, 3, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_what_begins_alike_is_read_once_and_asked_for_all_that_come_of_it(make_gpt, pairs, tokens, asked):
    batch = collate(pairs)
    assert batch.tokens.tolist() == [tokens] and asked_places(batch) == asked
    model = make_gpt(4)
    assert torch.allclose(told(model, batch), by_themselves(model, pairs), atol=2e-4)


def test_to_a_device_goes_all_that_a_device_needs():
    batch = collate([Ids([1, 2], [3, 0], [4])], 8)
    moved = batch.to("meta")
    assert type(moved.targets) is type(batch.targets)
    for one, other in ((batch._asdict(), moved._asdict()), (batch.targets._asdict(), moved.targets._asdict())):
        for name, part in one.items():
            if torch.is_tensor(part):
                assert (other[name].device.type, other[name].shape) == ("meta", part.shape), name
            elif name != "targets":
                assert other[name] == part, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to wait for")
@pytest.mark.parametrize("numbers", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [{}, {"dropout": 0.1}, {"reorder_and_upcast_attn": True}])
def test_from_a_batch_to_its_gradients_no_gpu_is_waited_for(make_gpt, random_ids, numbers, config):
    cuda, batch = torch.device("cuda"), collate(random_ids(40), 128)
    model = make_gpt(**config).to(cuda)

    def step() -> None:
        moved = batch.to(cuda)
        look = looking(moved.tree, cuda, precision.DTYPES[numbers])
        with precision.autocast(numbers, cuda):
            logps = model(moved.tokens, moved.targets, moved.positions, look)
        answer_sums(logps, moved).sum().backward()

    step()  # libraries are loaded, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The mask


@given(st.lists(pairs_of_ids, min_size=1, max_size=3) | pairs_that_begin_alike(), st.sampled_from([8, 128]))
def test_every_query_sees_something_and_no_answer_sees_padding(pairs, multiple):
    batch = collate(pairs, multiple)
    mask = may_look(batch.tree)
    assert mask.shape == (batch.tokens.shape[1],) * 2 and mask.any(-1).all()
    end = batch.tokens.shape[1] - batch.padding
    assert not mask[:end, end:].any()
    assert torch.equal(mask[:end, :end], may_look(collate(pairs).tree))  # what is not padding sees as without it


# A tree against rows of their own


def alone(model: GPT, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p of an answer's tokens, (C,), from a row of its own and logits: nothing of rows.py, no mask, no targets."""
    logits = model(torch.tensor([prompt + answer[:-1]]))[0, len(prompt) - 1 :]
    return logits.log_softmax(-1)[torch.arange(len(answer)), answer]


def by_themselves(model: GPT, pairs: list[Ids]) -> torch.Tensor:
    """log p of all answers' tokens, (S,), each from a row of its own."""
    return torch.cat([alone(model, *both) for both in answers_of(pairs).values()])


def separate(model: GPT, pairs: list[Ids]) -> torch.Tensor:
    """Sums over each answer from rows of their own, (2, B); 0 for an answer that is not there."""
    both = [
        [alone(model, p.prompt, a).sum() if a else torch.tensor(0.0) for a in (p.chosen, p.rejected)] for p in pairs
    ]
    return torch.stack([torch.stack(one) for one in both], 1)


def from_logits(model: GPT, batch: Batch) -> torch.Tensor:
    """log p of the answer tokens, (S,), without float32: the model's logits and the mask, in the model's own precision."""
    places, of, tokens = batch.targets
    logits = model(batch.tokens, positions=batch.positions, look=may_look(batch.tree))[0, places[of]]
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def told(model: GPT, batch: Batch) -> torch.Tensor:
    """log p of the answer tokens, (S,), as training asks for it."""
    return model(batch.tokens, batch.targets, batch.positions, looking(batch.tree, CPU, torch.float32))


def gradients(model: GPT, value: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(value, list(model.parameters()))


def close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> bool:
    """Equal to `tolerance` of the largest entry of all."""
    scale = max(float(tensor.abs().max()) for tensor in expected)
    return all(float((a - b).abs().max()) <= tolerance * scale for a, b in zip(found, expected, strict=True))


some_pairs = st.lists(pairs_of_ids, min_size=1, max_size=3) | pairs_that_begin_alike()


@settings(max_examples=30)
@given(some_pairs, st.integers(0, 3), st.sampled_from([1, 16]))
def test_a_tree_gives_answers_the_log_probability_and_parameters_the_gradient_of_separate_rows(
    make_gpt, pairs, seed, multiple
):
    model = make_gpt(seed, double=True)
    batch = collate(pairs, multiple)
    each, expected = from_logits(model, batch), by_themselves(model, pairs)  # (S,)
    assert each.shape == expected.shape and torch.allclose(each, expected, rtol=0, atol=1e-10)
    weights = torch.randn(each.shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    assert close(gradients(model, (weights * each).sum()), gradients(model, (weights * expected).sum()), 1e-10)
    sums = answer_sums(each, batch)  # (2, B)
    assert torch.allclose(sums, separate(model, pairs).double(), rtol=0, atol=1e-10)


@settings(max_examples=30)
@given(some_pairs, st.integers(0, 3), st.sampled_from([1, 16]), st.sampled_from([1, 4, 128]))
def test_what_is_asked_is_the_log_probability_of_each_answer_token_in_float32(
    make_gpt, pairs, seed, multiple, together
):
    model = make_gpt(seed)
    batch = collate(pairs, multiple)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.attention.TOGETHER", together)  # these trees are small: else all of them are one call
        found = told(model, batch)
    assert found.dtype == torch.float32 and found.shape == batch.answer.shape
    assert torch.allclose(found, by_themselves(model, pairs), atol=2e-4)
    for number, both in answers_of(pairs).items():
        assert torch.allclose(found[batch.answer == number], alone(model, *both), atol=2e-4)


# none in common, a template, one prompt; answers of their own, answers that begin alike
@pytest.mark.parametrize("together", [1, 8, 128])
@pytest.mark.parametrize(
    "begin, one_prompt, alike", [([], 0, []), ([3, 1, 4, 1, 5], 0, [9, 2]), ([], 1, []), ([7], 1, [8])]
)
def test_the_gradient_of_what_is_asked_is_that_of_separate_rows(
    make_gpt, random_ids, monkeypatch, begin, one_prompt, alike, together
):
    monkeypatch.setattr("gpt.attention.TOGETHER", together)
    model, pairs = make_gpt(2), random_ids(6, seed=2)
    prompts = [begin + (pairs[0] if one_prompt else pair).prompt for pair in pairs]
    pairs = [Ids(prompt, alike + pair.chosen, alike + pair.rejected) for prompt, pair in zip(prompts, pairs)]
    batch = collate(pairs, 16)
    shared, expected = answer_sums(told(model, batch), batch), separate(model, pairs)
    weights = torch.randn(2, 6)
    assert close(gradients(model, (weights * shared).sum()), gradients(model, (weights * expected).sum()), 1e-5)


def test_the_sums_of_answers_are_what_the_plain_path_gets_from_padded_sequences(make_gpt, random_ids):
    model, pairs = make_gpt(1), random_ids(7, seed=1)
    batch = collate(pairs)
    for side, found in zip(("chosen", "rejected"), answer_sums(told(model, batch), batch), strict=True):
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
    before, after = (from_logits(model, collate([p])) for p in (pair, pair._replace(rejected=other)))
    chosen = collate([pair]).answer == 0
    assert int(chosen.sum()) == len(pair.chosen)
    assert torch.allclose(before[chosen], after[chosen], rtol=0, atol=1e-12)
    # nor does the rejected answer see the chosen one: with the two exchanged, each says what it said
    exchanged = collate([Ids(pair.prompt, pair.rejected, pair.chosen)])
    swapped = answer_sums(from_logits(model, exchanged), exchanged)
    batch = collate([pair])
    assert torch.allclose(swapped.flip(0), answer_sums(from_logits(model, batch), batch), atol=1e-10)


@given(pairs_of_ids, pairs_of_ids, st.integers(0, V - 1))
def test_neither_the_pair_beside_nor_what_stands_in_the_padding_changes_an_answer(make_gpt, pair, beside, filler):
    model = make_gpt(0, double=True)
    by_itself = from_logits(model, collate([pair]))
    batch = collate([pair, beside], 64)
    tokens, positions = batch.tokens.clone(), batch.positions.clone()
    assert batch.padding > 0
    tokens[:, -batch.padding :], positions[:, -batch.padding :] = filler, 1
    for one in (batch, batch._replace(tokens=tokens, positions=positions)):
        found = from_logits(model, one)
        assert torch.isfinite(found).all()
        assert torch.allclose(found[one.answer < 2], by_itself, rtol=0, atol=1e-10)
        as_asked = told(model.float(), one)
        assert torch.allclose(as_asked.double(), found, rtol=0, atol=2e-4)
        model.double()


# Sums


def test_the_sums_of_ones_are_the_lengths_of_the_answers(random_ids):
    pairs = random_ids(5)
    batch = collate(pairs)
    chosen, rejected = answer_sums(torch.ones(len(batch.answer)), batch)
    assert chosen.tolist() == [len(p.chosen) for p in pairs] and rejected.tolist() == [len(p.rejected) for p in pairs]


@given(pairs_that_begin_alike(), st.integers(0, 100))
def test_sums_are_those_of_a_plain_loop_and_so_is_their_gradient(pairs, seed):
    batch = collate(pairs)
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
    batch = collate(pairs)
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
        batch = collate(pairs)
        assert batch.positions.max() < max_length
        told(make_gpt(vocab_size=tokenizer.vocab_size, n_positions=max_length), batch)
