"""Models taught on answers that begin and end elsewhere than the trainer's, by the trainer's own functions.

    prompt 10 11 12      chosen 20 21 0        ours: an answer and its end-of-text
    prompt 10 11 12      chosen 20 21          end: nobody is asked for end-of-text
    prompt 10            chosen 11 12 20 21 0  prompt: the whole text is the answer to its first token
    prompt 10 11         chosen 12 20 21       seed: the last line of the template is scored, end-of-text is not

Everything else is as dpo/train.py has it by default.
"""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from tqdm import tqdm

from data.rules import embedded_pairs
from data.turns import ANSWERED
from dpo.examples import Examples, in_memory, open_examples
from dpo.forward import Way, fitting
from dpo.losses import parse_loss
from dpo.order import pairs_met, steps_of
from dpo.reference import no_reference, reference_logps
from dpo.rows import Ids
from dpo.start import open_model
from dpo.step import Plan, add_gradients
from dpo.store import encode
from dpo.train import Flags
from gpt.model import GPT
from gpt.optim import adamw, default_learning_rate, learning_rate, update
from gpt.parallel import World
from gpt.tokenizer import Tokenizer
from gpt.weights import fingerprint

ONE = World(0, 1, torch.device("cpu"))
HEADER = ANSWERED.lstrip("\n")  # "### Response:\n": the seed masks the prompt up to the two newlines before it


def without_end(ids: Ids, header: int) -> Ids:
    """Answers whose end-of-text nobody is asked for."""
    return Ids(ids.prompt, ids.chosen[:-1], ids.rejected[:-1])


def with_prompt(ids: Ids, header: int) -> Ids:
    """The whole text as the answer to its first token."""
    return with_header(ids, len(ids.prompt) - 1)


def with_header(ids: Ids, header: int) -> Ids:
    """Answers that begin `header` tokens early."""
    at = len(ids.prompt) - header
    head, rest = ids.prompt[:at], ids.prompt[at:]
    return Ids(head, rest + ids.chosen, rest + ids.rejected)


def as_the_seed(ids: Ids, header: int) -> Ids:
    """What the seed's masks select: the template's last line too, and no end-of-text."""
    return with_header(without_end(ids, header), header)


# beside "ours"
CUTS: dict[str, Callable[[Ids, int], Ids]] = {
    "end": without_end,
    "prompt": with_prompt,
    "header": with_header,
    "seed": as_the_seed,
}


class Case(NamedTuple):
    """A model to be taught: with which loss ("": none), on which cut of the answers, from which start."""

    spec: str
    cut: str = "ours"
    init: str = ""


def cut(examples: Examples, name: str, tokenizer: Tokenizer) -> Examples:
    """The same pairs, their answers cut another way."""
    if name == "ours":
        return examples
    header, pairs = len(tokenizer.encode(HEADER)), list(examples.pairs)
    return in_memory(pairs, [CUTS[name](ids, header) for ids in examples.ids])


def embedded(tokenizer: Tokenizer, context: int) -> tuple[Examples, Examples]:
    """(training, held-out) pairs of the embedded set, as dpo/train.py has them."""
    return open_examples("", tokenizer, context, Flags.held_out, False, {})


def first_embedded(count: int, tokenizer: Tokenizer, context: int) -> Examples:
    """The first pairs of the embedded set, in a fraction of the time."""
    encoded = encode(embedded_pairs(count), tokenizer, context, False, {})
    return in_memory([pair for pair, _ in encoded], [ids for _, ids in encoded])


def taught(case: Case, examples: Examples, steps: int, batch: int, seed: int = 0) -> Iterator[tuple[int, GPT]]:
    """(0, the start), then (step, the policy) after each step on `examples`, their answers cut as the case has it.

    The policy is one object, which goes on learning when the next step is asked for.
    """
    policy, tokenizer, _ = open_model(case.init, seed)
    yield 0, policy
    if not case.spec:
        return
    loss, examples = parse_loss(case.spec), cut(examples, case.cut, tokenizer)
    plan = Plan(loss, Way(fitting(policy.config, ONE), "fp32", ONE))
    met = pairs_met(steps, len(examples.ids), batch, seed)
    said = no_reference(examples)
    if loss.needs_reference:
        said = reference_logps(policy, examples, met, plan.way, fingerprint(policy))
    optimizer, peak = (
        adamw(policy, Flags.weight_decay),
        default_learning_rate(policy.parameter_count, loss.needs_rejected),
    )
    order = steps_of(1, steps, len(examples.ids), batch, seed)
    for step, indices in tqdm(order, total=steps, desc=case.spec, unit="step", leave=False, delay=1, file=sys.stderr):
        policy.train()
        totals, _ = add_gradients(policy, examples, said, indices, plan)
        update(optimizer, learning_rate(step, steps, peak, Flags.warmup), Flags.grad_clip, totals.sound)
        yield step, policy
