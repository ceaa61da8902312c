"""Everything that becomes of one pair in a step, each by the function that training calls, and kept to be looked at.

    row -> ids -> batch -> log p per token -> Scores -> loss -> pull at each token -> one update -> all of it again

The plain path (dpo/plain.py) computes sums and loss once more, an answer at a time. dpo/walk.py shows what is found here.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.pairs import Pair, summary
from data.reading import stream_rows
from data.rules import PAIRS, preference_rows
from dpo.examples import EMBEDDED, Examples, check_margins, open_examples
from dpo.forward import Way, ask, fitting
from dpo.losses import Loss, Scores
from dpo.plain import compute_dpo_loss, get_log_probs
from dpo.reference import Reference, no_reference
from dpo.rows import Batch, Ids
from dpo.start import open_model
from dpo.step import Plan, add_gradients, scores_of
from dpo.train import Flags
from dpo.watch import Done, Watch
from gpt.command import UserError
from gpt.model import GPT, IGNORE
from gpt.optim import adamw, default_learning_rate, update
from gpt.parallel import World
from gpt.tokenizer import Tokenizer

SHORT = 148  # a row of the embedded set with few tokens


class Walk(NamedTuple):
    """What there is to see, in the order in which it comes about. S answer tokens, chosen then rejected."""

    row: dict  # as it stands in the file
    pair: Pair
    ids: Ids
    noted: str  # what was done to it, as a prompt that was cut
    tokenizer: Tokenizer
    loss: Loss
    batch: Batch  # of this one pair
    policy: Tensor  # (S,) log p before the step
    reference: Tensor  # (S,)
    scores: Scores  # (1,) each
    plain: dict[str, float]  # what dpo/plain.py gives: log p of each answer, and of `dpo` the loss
    value: float  # of the loss
    pull: Tensor  # (S,) the derivative of the loss with respect to each log p
    line: dict  # of metrics.jsonl
    scores_after: Scores  # after one update
    value_after: float


def walk_of(pairs: str, number: int, init: str, loss: Loss) -> Walk:
    """Go the whole way with row `number` of the file `pairs` (0: a short one, or the first), the model `init` and this loss.

    Raises UserError for a row that is not there or cannot be used, and for a model or a file likewise.
    """
    policy, tokenizer, _ = open_model(init)
    examples, noted = chosen_row(pairs, number, loss, tokenizer, policy.config.n_positions)
    check_margins(loss, examples, pairs)
    world = World(0, 1, torch.device("cpu"))
    plan = Plan(loss, Way(fitting(policy.config, world), "fp32", world))
    policy.eval()
    with torch.no_grad():
        said, _, batch = ask(policy, examples.ids, [0], plan.way)
        reference = no_reference(examples)
        if loss.needs_reference:  # the policy as it is before the update
            reference = reference._replace(logps=said)
        scores, _ = scores_of(policy, examples, reference, [0], plan)
        plain = by_the_plain_path(policy, examples.ids[0], loss)
    pull = pulls(policy, examples, reference, plan)
    line = one_step(policy, examples, reference, plan)
    with torch.no_grad():
        after, _ = scores_of(policy.eval(), examples, reference, [0], plan)
    return Walk(
        row_of(pairs, int(examples.rows[0])), examples.pairs[0], examples.ids[0], noted, tokenizer, loss, batch, said,
        reference.logps, scores, plain, float(value(loss, scores)), pull, line, after, float(value(loss, after)),
    )  # fmt: skip


def chosen_row(pairs: str, number: int, loss: Loss, tokenizer: Tokenizer, context: int) -> tuple[Examples, str]:
    """The one pair, as the trainer would read it, and what the trainer would say of it."""
    counted: dict[str, list[int]] = {}
    examples, _ = open_examples(pairs, tokenizer, context, 0.0, not loss.needs_rejected, counted)
    wanted = number or (int(examples.rows[0]) if pairs else SHORT)
    (at,) = (examples.rows == wanted).nonzero()
    noted = summary({why: [wanted] for why, rows in counted.items() if wanted in rows})
    if not len(at):
        what = f"it is not used: {noted}" if noted else f"there is none; the last one is row {examples.rows[-1]}"
        raise UserError(f"{pairs or EMBEDDED}, row {wanted} (--pair): {what}")
    return Examples(examples.store, examples.index[at]), noted


def row_of(pairs: str, number: int) -> dict:
    """The row as it stands in the file, or as the embedded set has it."""
    if not pairs:
        return preference_rows(PAIRS)[number - 1]
    return next(row.value for row in stream_rows(Path(pairs)) if row.number == number)


def by_the_plain_path(model: GPT, ids: Ids, loss: Loss) -> dict[str, float]:
    """log p of each answer by a forward pass of its own, and of `dpo` alone the loss too, policy and reference equal."""

    def logp(answer: list[int]) -> Tensor:
        tokens = torch.tensor([ids.prompt + answer])
        labels = torch.tensor([[IGNORE] * len(ids.prompt) + answer])
        return get_log_probs(model(tokens), labels)

    found = {side: logp(answer) for side, answer in (("chosen", ids.chosen), ("rejected", ids.rejected)) if answer}
    if [(term.name, term.weight, term.modifiers) for term in loss.terms] == [("dpo", 1.0, {})]:
        both = found["chosen"], found["rejected"]
        found["loss"], _, _ = compute_dpo_loss(*both, *both, loss.beta)
    return {name: one.item() for name, one in found.items()}


def value(loss: Loss, scores: Scores) -> Tensor:
    """The loss of a step of these pairs."""
    return loss.total(
        {name: one.sum() for name, one in loss(scores).items()}, len(scores.chosen), float(scores.chosen_len.sum())
    )


def pulls(policy: nn.Module, examples: Examples, reference: Reference, plan: Plan) -> Tensor:
    """The derivative of the loss with respect to log p of each answer token, (S,)."""
    with torch.no_grad():
        said, squared, _ = ask(policy, examples.ids, [0], plan.way, squares=True)
    logps = said.clone().requires_grad_()

    def heard(tokens, targets, positions, look, squares):  # a model that says again what was said
        return (logps, squared) if squares else logps

    scores, _ = scores_of(heard, examples, reference, [0], plan)
    return torch.autograd.grad(value(plan.loss, scores), logps)[0]


def one_step(policy: GPT, examples: Examples, reference: Reference, plan: Plan) -> dict:
    """Update the policy on this pair, as dpo/train.py would in a run of one step. Returns the step's line of metrics."""
    rate = default_learning_rate(policy.parameter_count, plan.loss.needs_rejected)
    optimizer = adamw(policy, Flags.weight_decay)
    policy.train()
    totals, _ = add_gradients(policy, examples, reference, [0], plan)
    norm = update(optimizer, rate, Flags.grad_clip, totals.sound)
    watch = Watch(policy, examples, reference, plan)
    watch.waiting.append(Done(1, [0], totals, norm, rate))
    (line,) = watch.lines()
    return line
