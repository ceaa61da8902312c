"""dpo/reference.py: what the reference says of all pairs at once is what it says of each by itself."""

from contextlib import nullcontext

import pytest
import torch

from dpo.reference import reference_scores
from dpo.rows import Ids
from gpt.parallel import World

ALONE = World(0, 1, torch.device("cpu"))


def asked_one_by_one(model, pairs: list[Ids]) -> torch.Tensor:
    """log p of both answers of each pair, (pairs, 2), from logits, each answer in a row of its own."""

    def said(prompt: list[int], answer: list[int]) -> float:
        logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum().item()

    with torch.no_grad():
        return torch.tensor(
            [[said(p.prompt, p.chosen), said(p.prompt, p.rejected) if p.rejected else 0.0] for p in pairs]
        )


@pytest.mark.parametrize("micro", [1, 3, 50])
def test_the_scores_are_what_asking_the_model_pair_by_pair_gives(make_gpt, random_ids, micro):
    model, pairs = make_gpt(1), random_ids(11)
    found = reference_scores(model, pairs, list(range(11)), micro, nullcontext, ALONE)
    assert found.shape == (11, 2) and found.dtype == torch.float32 and found.device.type == "cpu"
    assert torch.allclose(found, asked_one_by_one(model, pairs), atol=1e-4)


def test_rows_that_are_not_wanted_are_0_and_the_others_are_in_their_places(make_gpt, random_ids):
    model, pairs, wanted = make_gpt(1), random_ids(9), [7, 2, 4]
    found = reference_scores(model, pairs, wanted, 2, nullcontext, ALONE)
    expected = torch.zeros(9, 2)
    expected[wanted] = asked_one_by_one(model, pairs)[wanted]
    assert torch.allclose(found, expected, atol=1e-4)
    assert (found[[0, 1, 3, 5, 6, 8]] == 0).all() and (found[wanted] < 0).all()


def test_nothing_wanted_asks_nothing(make_gpt, random_ids):
    assert torch.equal(reference_scores(make_gpt(1), random_ids(3), [], 2, nullcontext, ALONE), torch.zeros(3, 2))


def test_a_model_in_training_with_dropout_is_asked_in_eval_mode_and_keeps_no_gradient(make_gpt, random_ids):
    pairs = random_ids(8)
    model = make_gpt(1, dropout=0.5).train()
    found = reference_scores(model, pairs, list(range(8)), 2, nullcontext, ALONE)
    assert torch.allclose(found, asked_one_by_one(make_gpt(1), pairs), atol=1e-4)
    assert not found.requires_grad and all(p.grad is None for p in model.parameters())
    assert not model.training


def test_a_pair_with_one_answer_has_0_for_the_other(make_gpt):
    model, pairs = make_gpt(1), [Ids([1, 2], [3, 4], []), Ids([1, 2], [3], [5, 6])]
    found = reference_scores(model, pairs, [0, 1], 1, nullcontext, ALONE)
    assert found[0, 1] == 0 and torch.allclose(found, asked_one_by_one(model, pairs), atol=1e-4)


def test_the_model_is_asked_within_the_context_that_is_handed_in(make_gpt, random_ids):
    # bfloat16 products move the sums visibly, and stay within what bfloat16 can do
    model, pairs = make_gpt(1), random_ids(6)
    exact = reference_scores(model, pairs, list(range(6)), 3, nullcontext, ALONE)
    rounded = reference_scores(model, pairs, list(range(6)), 3, lambda: torch.autocast("cpu", torch.bfloat16), ALONE)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded) and torch.allclose(exact, rounded, rtol=0.1, atol=1.0)
