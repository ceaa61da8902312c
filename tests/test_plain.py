"""dpo/plain.py against arithmetic on paper, against the book's own code typed again, and on real models."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from dpo.plain import compute_dpo_loss, compute_dpo_loss_batch, compute_logprobs, get_log_probs

# The book's functions ("LLM from scratch", DPO chapter), statement by statement.


def book_logprobs(logits, labels, selection_mask=None):
    labels = labels[:, 1:].clone()
    logits = logits[:, :-1, :]
    log_probs = F.log_softmax(logits, dim=-1)
    selected_log_probs = torch.gather(input=log_probs, dim=-1, index=labels.unsqueeze(-1)).squeeze(-1)
    if selection_mask is not None:
        mask = selection_mask[:, 1:].clone()
        selected_log_probs = selected_log_probs * mask
        avg_log_prob = selected_log_probs.sum(-1) / mask.sum(-1)
        return avg_log_prob
    else:
        return selected_log_probs.mean(-1)


def book_loss(
    model_chosen_logprobs, model_rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs, beta=0.1
):
    model_logratios = model_chosen_logprobs - model_rejected_logprobs
    reference_logratios = reference_chosen_logprobs - reference_rejected_logprobs
    logits = model_logratios - reference_logratios
    losses = -F.logsigmoid(beta * logits)
    chosen_rewards = (model_chosen_logprobs - reference_chosen_logprobs).detach()
    rejected_rewards = (model_rejected_logprobs - reference_rejected_logprobs).detach()
    return losses.mean(), chosen_rewards.mean(), rejected_rewards.mean()


def book_loss_batch(batch, policy_model, reference_model, beta):
    policy_chosen_log_probas = book_logprobs(policy_model(batch["chosen"]), batch["chosen"], batch["chosen_mask"])
    policy_rejected_log_probas = book_logprobs(
        policy_model(batch["rejected"]), batch["rejected"], batch["rejected_mask"]
    )
    with torch.no_grad():
        ref_chosen_log_probas = book_logprobs(reference_model(batch["chosen"]), batch["chosen"], batch["chosen_mask"])
        ref_rejected_log_probas = book_logprobs(
            reference_model(batch["rejected"]), batch["rejected"], batch["rejected_mask"]
        )
    return book_loss(
        policy_chosen_log_probas, policy_rejected_log_probas, ref_chosen_log_probas, ref_rejected_log_probas, beta
    )


# On paper: logits are logarithms of odds, so that each probability is a fraction one can see.
#   place 0 says 1:1:2, place 1 says 1:3:4, place 2 says what nobody asks
ODDS = torch.tensor([[[1.0, 1, 2], [1, 3, 4], [7, 1, 1]]])
LABELS = torch.tensor([[0, 2, 1]])  # place 0 is scored on 2: one half; place 1 on 1: three eighths


def test_logprobs_are_the_mean_over_the_next_tokens():
    expected = (math.log(1 / 2) + math.log(3 / 8)) / 2
    assert compute_logprobs(ODDS.log(), LABELS).tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    "mask, expected",
    [([1, 1, 1], (math.log(1 / 2) + math.log(3 / 8)) / 2), ([0, 1, 0], math.log(1 / 2)), ([1, 0, 1], math.log(3 / 8))],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float, torch.long])
def test_the_mask_is_shifted_like_the_labels_and_divides_by_what_it_selects(mask, expected, dtype):
    assert compute_logprobs(ODDS.log(), LABELS, torch.tensor([mask]).to(dtype)).tolist() == pytest.approx([expected])


def test_a_mask_that_selects_nothing_is_nan_as_in_the_book():
    assert torch.isnan(compute_logprobs(ODDS.log(), LABELS, torch.tensor([[True, False, False]]))).all()


def test_the_loss_on_paper():
    # the policy prefers chosen by 3, the reference by 1: -log sigmoid(0.5 * 2) = log(1 + 1/e)
    loss, chosen, rejected = compute_dpo_loss(*(torch.tensor([x]) for x in (-1.0, -4.0, -2.0, -3.0)), beta=0.5)
    assert (loss.item(), chosen.item(), rejected.item()) == pytest.approx((math.log(1 + math.exp(-1)), 1.0, -1.0))


def test_loss_and_rewards_are_means_over_the_batch_and_rewards_know_no_beta():
    policy, zero = torch.tensor([1.0, 3.0]), torch.zeros(2)
    for beta in (0.1, 5.0):
        loss, chosen, rejected = compute_dpo_loss(policy, -policy, zero, zero, beta)
        assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-beta * 2 * x)) for x in (1, 3)) / 2)
        assert (chosen.item(), rejected.item()) == pytest.approx((2, -2))


def test_the_default_beta_is_the_books():
    four = [torch.tensor([x]) for x in (-1.0, -4.0, -2.0, -3.5)]
    assert torch.equal(compute_dpo_loss(*four)[0], compute_dpo_loss(*four, beta=0.1)[0])


def test_rewards_are_detached_and_the_loss_is_not():
    four = [torch.randn(3, requires_grad=True) for _ in range(4)]
    loss, chosen, rejected = compute_dpo_loss(*four)
    assert loss.requires_grad and not chosen.requires_grad and not rejected.requires_grad


def test_equal_models_give_ln_2_and_a_gradient_that_raises_chosen_as_much_as_it_lowers_rejected():
    chosen, rejected = (torch.randn(4, requires_grad=True) for _ in range(2))
    loss, *rewards = compute_dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3)
    assert loss.item() == pytest.approx(math.log(2)) and [r.item() for r in rewards] == [0, 0]
    loss.backward()
    # d/dx of -log sigmoid(beta x) at 0 is -beta / 2, and the mean is over 4
    assert chosen.grad.tolist() == pytest.approx([-0.3 / 2 / 4] * 4) and rejected.grad.tolist() == pytest.approx(
        [0.3 / 2 / 4] * 4
    )


@given(st.integers(1, 4), st.integers(2, 7), st.integers(2, 9), st.integers(0, 2**31), st.booleans())
def test_logprobs_are_the_books_on_any_input(B, T, V, seed, masked):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, T, V, generator=g, dtype=torch.double)
    labels = torch.randint(V, (B, T), generator=g)
    mask = torch.randint(2, (B, T), generator=g).bool() if masked else None
    ours, books = compute_logprobs(logits, labels, mask), book_logprobs(logits, labels, mask)
    assert ours.shape == (B,) and torch.allclose(ours, books, rtol=1e-12, equal_nan=True)


@given(st.integers(1, 5), st.floats(0.01, 10), st.integers(0, 2**31))
def test_the_loss_is_the_books_on_any_input(B, beta, seed):
    four = torch.randn(4, B, generator=torch.Generator().manual_seed(seed), dtype=torch.double) * 5
    assert torch.allclose(torch.stack(compute_dpo_loss(*four, beta)), torch.stack(book_loss(*four, beta)), rtol=1e-12)


# Summed log-probabilities


def test_get_log_probs_on_paper():
    assert get_log_probs(ODDS.log(), LABELS).tolist() == pytest.approx([math.log(1 / 2 * 3 / 8)])
    assert get_log_probs(ODDS.log(), torch.tensor([[0, -100, 1]])).tolist() == pytest.approx([math.log(3 / 8)])
    assert get_log_probs(ODDS.log(), torch.full((1, 3), -100)).tolist() == [0]


@given(st.integers(1, 4), st.integers(2, 6), st.integers(2, 9), st.integers(0, 2**31))
def test_get_log_probs_is_what_a_loop_over_places_adds_up(B, T, V, seed):
    g = torch.Generator().manual_seed(seed)
    logits, labels = 3 * torch.randn(B, T, V, generator=g, dtype=torch.double), torch.randint(V, (B, T), generator=g)
    labels[torch.rand(B, T, generator=g) < 0.4] = -100
    before = labels.clone()
    expected = []
    for b in range(B):
        total = 0.0
        for t in range(T - 1):
            if labels[b, t + 1] != -100:
                odds = [math.exp(x) for x in logits[b, t].tolist()]
                total += math.log(odds[labels[b, t + 1]] / sum(odds))
        expected.append(total)
    assert get_log_probs(logits, labels).tolist() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(labels, before)  # the caller's labels are his own


# Models


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two padded pairs: prompts of 4 and 3 tokens, answers of 3, 2 and 1, 4; the padding is any token."""

    def side(lengths: list[tuple[int, int]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(40, (2, 8), generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(2, 8, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(lengths):
            mask[row, prompt : prompt + answer] = True
        return tokens, mask

    (chosen, chosen_mask), (rejected, rejected_mask) = side([(4, 3), (3, 1)], 0), side([(4, 2), (3, 4)], 1)
    return {"chosen": chosen, "rejected": rejected, "chosen_mask": chosen_mask, "rejected_mask": rejected_mask}


def hugging_face(seed: int):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def test_the_batch_loss_and_its_gradient_are_the_books_for_our_gpt(make_gpt, batch):
    grads = []
    for loss_batch in (compute_dpo_loss_batch, book_loss_batch):
        policy, reference = make_gpt(0), make_gpt(1)
        loss, *rewards = loss_batch(batch, policy, reference, 0.7)
        loss.backward()
        assert all(p.grad is None for p in reference.parameters())
        grads.append([loss, *rewards, *(p.grad for p in policy.parameters())])
    assert all(torch.allclose(ours, books, rtol=1e-5, atol=1e-7) for ours, books in zip(*grads, strict=True))


def test_the_batch_loss_takes_hugging_faces_outputs_as_it_takes_logits(batch):
    policy, reference = hugging_face(0), hugging_face(1)
    found = compute_dpo_loss_batch(batch, policy, reference, 0.7)
    books = book_loss_batch(batch, lambda ids: policy(ids).logits, lambda ids: reference(ids).logits, 0.7)
    assert torch.allclose(torch.stack(found), torch.stack(books))
    found[0].backward()
    assert all(p.grad is None for p in reference.parameters()) and policy.transformer.wte.weight.grad.abs().max() > 0


def test_a_hugging_face_model_answers_as_its_own_loss_says(batch):
    # transformers shifts labels and passes over -100 itself; its loss is the mean over the counted labels of all rows
    model = hugging_face(3)
    labels = batch["chosen"].where(batch["chosen_mask"], -100)
    output = model(batch["chosen"], labels=labels)
    counted = batch["chosen_mask"][:, 1:].sum()
    assert get_log_probs(output.logits, labels).sum().item() == pytest.approx(-(output.loss * counted).item(), rel=1e-5)


def test_the_mean_is_the_sum_divided_by_the_tokens_of_the_answer(make_gpt, batch):
    logits = make_gpt(0)(batch["chosen"])
    sums = get_log_probs(logits, batch["chosen"].where(batch["chosen_mask"], -100))
    means = compute_logprobs(logits, batch["chosen"], batch["chosen_mask"])
    assert torch.allclose(sums / batch["chosen_mask"].sum(-1), means)


def test_what_stands_in_the_padding_behind_an_answer_changes_nothing(make_gpt, batch):
    policy, reference = make_gpt(0), make_gpt(1)
    before = torch.stack(compute_dpo_loss_batch(batch, policy, reference, 0.7))
    for side in ("chosen", "rejected"):
        last = batch[f"{side}_mask"].int().cumsum(-1) == batch[f"{side}_mask"].sum(-1, keepdim=True)
        behind = last & ~batch[f"{side}_mask"]
        batch[side] = torch.where(behind, (batch[side] + 7) % 40, batch[side])
        assert behind.any()
    assert torch.allclose(torch.stack(compute_dpo_loss_batch(batch, policy, reference, 0.7)), before, atol=1e-6)
