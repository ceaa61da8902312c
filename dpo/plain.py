"""DPO in three functions, as one writes it the first time. Read this file first.

Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7): given a prompt x, a preferred answer
y_w (chosen) and a dispreferred one y_l (rejected), make the policy pi prefer y_w more than the reference pi_ref does:

    loss = -log sigmoid( beta * [ log pi(y_w|x) / pi_ref(y_w|x)  -  log pi(y_l|x) / pi_ref(y_l|x) ] )

Both models start equal, so the bracket is 0 and the loss is -log sigmoid(0) = ln 2 = 0.6931. The gradient is not 0 there:
it raises the chosen answer and lowers the rejected one by the same amount. Nothing in the loss asks chosen to rise; only
the difference counts, and often both fall.

beta says how much a change of log-probability counts. A higher beta reaches a small loss with a small change, so the
policy stays closer to the reference; with a lower beta it may go further away.

Nothing here is clever: four padded forward passes a step, two of the policy and two of the reference. dpo/rows.py and
dpo/losses compute the same thing faster, and the tests hold them to this file. Two things differ there:

- `compute_logprobs` takes the mean over an answer's tokens. The paper, and `dpo` in dpo/losses, take the sum, the
  log-probability of the whole answer. The mean is a loss of its own, `dpo_norm` in dpo/losses: beta = 0.1 on means
  of 20 tokens is like 0.1 / 20 = 0.005 on sums.
- The rewards returned here are without beta. The metrics that the trainer writes have it, as the paper's equation 5 does.

Shapes: B sequences, T tokens, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_logprobs(logits: Tensor, labels: Tensor, selection_mask: Tensor | None = None) -> Tensor:
    """The mean log-probability of the next tokens, (B,).

    logits: (B, T, V). labels: (B, T), the same tokens that went in; shifted here, so that place t is scored on t + 1.
    selection_mask: (B, T) booleans, True at the tokens that count (the answer, not the prompt, not the padding); shifted
    like the labels. Without it all T - 1 count.
    """
    labels = labels[:, 1:]
    logits = logits[:, :-1]
    logprobs = F.log_softmax(logits, dim=-1)
    selected = torch.gather(logprobs, dim=-1, index=labels.unsqueeze(-1)).squeeze(-1)  # (B, T - 1)
    if selection_mask is None:
        return selected.mean(-1)
    mask = selection_mask[:, 1:]
    return (selected * mask).sum(-1) / mask.sum(-1)


def compute_dpo_loss(
    model_chosen_logprobs: Tensor,
    model_rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    beta: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, chosen reward, rejected reward), three means over the batch; the rewards are detached and without beta.

    The four arguments are log-probabilities of answers, (B,).
    """
    model_logratios = model_chosen_logprobs - model_rejected_logprobs
    reference_logratios = reference_chosen_logprobs - reference_rejected_logprobs
    losses = -F.logsigmoid(beta * (model_logratios - reference_logratios))

    chosen_rewards = (model_chosen_logprobs - reference_chosen_logprobs).detach()
    rejected_rewards = (model_rejected_logprobs - reference_rejected_logprobs).detach()
    return losses.mean(), chosen_rewards.mean(), rejected_rewards.mean()


def compute_dpo_loss_batch(
    batch: dict[str, Tensor], policy_model, reference_model, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`compute_dpo_loss` of a batch of padded sequences.

    batch: `chosen` and `rejected`, (B, T) ids of prompt and answer, with `chosen_mask` and `rejected_mask`, (B, T)
    booleans, True at the answer. The models are callables from (B, T) ids to (B, T, V) logits, ours or Hugging Face's.
    """

    def logprobs(model, side: str) -> Tensor:
        return compute_logprobs(_logits(model(batch[side])), batch[side], batch[side + "_mask"])

    policy_chosen, policy_rejected = logprobs(policy_model, "chosen"), logprobs(policy_model, "rejected")
    with torch.no_grad():
        reference_chosen, reference_rejected = (
            logprobs(reference_model, "chosen"),
            logprobs(reference_model, "rejected"),
        )
    return compute_dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)


def get_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """The summed log-probability of the next labels, (B,): the paper's log pi(y|x).

    logits: (B, T, V). labels: (B, T) as Hugging Face's: the tokens themselves, not yet shifted, -100 where not counted.
    """
    labels, logits = labels[:, 1:], logits[:, :-1]
    counted = labels != -100
    logprobs = F.log_softmax(logits, dim=-1)
    selected = torch.gather(logprobs, dim=-1, index=labels.where(counted, 0).unsqueeze(-1)).squeeze(-1)
    return (selected * counted).sum(-1)


def _logits(output) -> Tensor:
    return getattr(output, "logits", output)
