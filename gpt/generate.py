"""Answers from a model, many prompts at once, with a key-value cache that belongs to the caller.

    python gpt/generate.py MODEL --prompt "Once upon a time"

Keys and values of every token so far are kept, so each further token costs one column. Each row writes behind its own
last token, and looks at what stands before:

    prompts     10 11                kept     10 11 20 21  .  .      after two new tokens a row: 20 21 and 30 31
                12 13 14 15                   12 13 14 15 30 31      (. was never written, or belongs to nobody)

A row that has finished leaves the batch, and the last row takes its place. A prompt that stands twice is read once.

Shapes: B rows, T tokens of a row in this pass, H heads, D = C / H, V vocabulary.
"""

import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from gpt.cache import NextTokens, Prompts
from gpt.command import Notice, UserError, argument, check_range, flag, run
from gpt.device import check_device
from gpt.model import GPT
from gpt.packed import packed
from gpt.sampling import GREEDY, Sampling, chances_of, choose
from gpt.streaming import text_pieces
from gpt.tokenizer import Tokenizer
from gpt.weights import open_folder


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    stop_ids: Collection[int] = (),
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
    stop: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """The continuation of each prompt: at most `max_new` ids, the last of them one of `stop_ids` where the model said it.

    seeds: one for each prompt, by default 0, 1, 2, ...; a prompt with its seed gives the same answer in any batch
    (in float32: where logits are rounded to bfloat16 two are often equal, and the batch's shape decides between them).
    stop: whether an answer so far ends here (gpt.streaming.stops_at for strings). A prompt that leaves no room for
    max_new tokens within the model's positions loses its beginning, with a warning.
    Raises ValueError for a prompt without tokens, and for a max_new that leaves no room for any prompt.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for new in stream(model, prompts, max_new, stop_ids, sampling, seeds, stop):
        for row, token in new:
            answers[row].append(token)
    return answers


@torch.no_grad()
def stream(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    stop_ids: Collection[int] = (),
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
    stop: Callable[[list[int]], bool] | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """As `generate`, while it comes: at each turn the (number of the prompt, new id) of those still unfinished."""
    prompts = _fitting(prompts, max_new, model.config.n_positions)
    if not prompts or max_new < 1:
        return
    sampling.check()
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    weight = next(model.parameters())
    model = packed(model)
    order, again = _order(prompts)
    rows = torch.tensor(order, device=weight.device)  # which prompt each row of the batch works on
    lengths = torch.tensor([len(prompts[i]) for i in order], device=weight.device)  # (B,) tokens kept of each row
    chances = chances_of(seeds, max_new, weight.device)  # (prompts, max_new)
    c, width = model.config, max(map(len, prompts))
    shape = (2, len(prompts), c.n_head, width + max_new, c.n_embd // c.n_head)
    # zeros, since what nobody looks at has weight 0, and 0 times what memory may hold is not always 0
    kept = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(c.n_layer)]
    seen = torch.zeros(len(prompts), c.vocab_size, dtype=torch.bool, device=weight.device)  # (B, V)
    for row, i in enumerate(order if sampling.repetition_penalty != 1 else []):
        seen[row, prompts[i]] = True
    answers: list[list[int]] = [[] for _ in prompts]
    last = _read_prompts(model, [prompts[i] for i in order[: len(order) - len(again)]], kept)
    for layer in kept if again else ():
        layer[:, len(last) :, :, :width] = layer[:, again, :, :width]
    last = torch.cat([last, last[again]])  # (B, C)
    for number in range(max_new):
        chosen = choose(model.lm_head(last), sampling, chances[rows, number], seen)  # (B,)
        new = list(zip(rows.tolist(), chosen.tolist()))
        for row, token in new:
            answers[row].append(token)
        yield new
        places = _close_ranks([token not in stop_ids and not (stop and stop(answers[row])) for row, token in new])
        if not places or number == max_new - 1:
            return
        if len(places) < len(rows):
            free, taken = [to for to, row in enumerate(places) if row != to], int(lengths.max())
            for layer in kept if free else ():
                layer[:, free, :, :taken] = layer[:, [places[to] for to in free], :, :taken]
            rows, lengths, chosen, seen = rows[places], lengths[places], chosen[places], seen[places]
        end = int(lengths.max()) + 1
        seen.scatter_(1, chosen[:, None], True)
        mask = torch.arange(end, device=lengths.device) <= lengths[:, None]  # (B, end)
        mask = None if bool(mask.all()) else mask[:, None, None]
        caches = [NextTokens(layer, lengths, end) for layer in kept]
        last = model.hidden(chosen[:, None], lengths[:, None], mask, caches)[:, 0]
        lengths = lengths + 1


def _order(prompts: list[Sequence[int]]) -> tuple[list[int], list[int]]:
    """The prompts' numbers, those that repeat another one last, and for each of these the place of the other.

    [7 8, 9, 7 8] gives [1, 0, 2] and [1]. So several answers to one prompt cost one reading of it.
    """
    first: dict[tuple[int, ...], int] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    repeats = [i for i in by_length if first.setdefault(tuple(prompts[i]), i) != i]
    place = {prompt: at for at, prompt in enumerate(first)}
    return [*first.values(), *repeats], [place[tuple(prompts[i])] for i in repeats]


def _read_prompts(model: GPT, prompts: list[Sequence[int]], kept: list[Tensor]) -> Tensor:
    """What the model makes of each prompt's last token, (B, C); keys and values are kept.

    The prompts come by length, and are read in groups of like length, so that little of the work is padding. It stands
    behind the prompts, where no token looks at it.
    """
    device, found, start = kept[0].device, [], 0
    together = 512 if device.type == "cpu" else 65536  # tokens of a pass; a CPU gains nothing from more
    while start < len(prompts):
        stop, longest = start + 1, 1.25 * len(prompts[start]) + 4
        while stop < len(prompts) and len(prompts[stop]) <= min(longest, together / (stop + 1 - start)):
            stop += 1
        group = prompts[start:stop]
        width = len(group[-1])
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in group], device=device)
        caches = [Prompts(layer, slice(start, stop)) for layer in kept]
        x = model.hidden(tokens, torch.arange(width, device=device), None, caches)  # (group, width, C)
        found.append(x[range(len(group)), [len(prompt) - 1 for prompt in group]])
        start = stop
    return torch.cat(found)


def _fitting(prompts: Sequence[Sequence[int]], max_new: int, positions: int) -> list[Sequence[int]]:
    room = positions - max_new
    if not all(map(len, prompts)):
        raise ValueError(f"prompt {list(map(len, prompts)).index(0)} has no tokens")
    if room < 1:
        raise ValueError(f"{max_new} new tokens leave no room for a prompt within the model's {positions} positions")
    long = sum(len(prompt) > room for prompt in prompts)
    if long:
        cut = f"{long} of {len(prompts)} prompts cut from the left to the {room} tokens that fit beside {max_new} new ones"
        warnings.warn(cut, Notice, stacklevel=5)
    return [prompt[-room:] for prompt in prompts]


def _close_ranks(going: list[bool]) -> list[int]:
    """Which row comes to each place when the last ones fill those that are free: [1, 0, 1, 1] gives [0, 3, 2]."""
    left = sum(going)
    late = [row for row in range(left, len(going)) if going[row]]
    return [row if going[row] else late.pop() for row in range(left)]


@dataclass(frozen=True)
class AnswerFlags:
    """The flags of every command that answers."""

    max_new: int = flag(
        None, "tokens of the longest answer; unset: 128, or half the context if that is less", "answers"
    )
    temperature: float = flag(0.7, "above 0 the answer is drawn by chance; 0: always the likeliest token", "answers")
    top_k: int = flag(0, "draw from the k likeliest tokens; 0: from all", "answers")
    top_p: float = flag(0.95, "draw from the likeliest tokens that together have this probability", "answers")
    min_p: float = flag(0.0, "draw from tokens at least this times as likely as the likeliest", "answers")
    repetition_penalty: float = flag(1.0, "makes tokens that stand there already less likely, above 1", "answers")
    stop: list = flag((), "strings that end the answer", "answers")
    seed: int = flag(0, "of chance: the same seed, prompt and model give the same answer", "answers")
    device: str = flag("auto", "auto is cuda where there is one, else cpu", "answers", ("auto", "cpu", "cuda", "mps"))
    precision: str = flag("fp32", "of weights and products; bf16 is faster and rounds", "answers", ("fp32", "bf16"))

    @property
    def sampling(self) -> Sampling:
        """How to choose. Raises UserError, naming what it is, for a flag of answers that makes no sense."""
        if "" in self.stop:
            raise UserError("--stop: an empty string would end every answer at once")
        check_range(self, ("max_new",), 1)
        check_range(self, ("seed",), 0, below=2**63)
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty).check()


@dataclass(frozen=True)
class Flags(AnswerFlags):
    """Continue a text, printed as it comes.

    python gpt/generate.py gpt2 --prompt "Once upon a time" --temperature 0.8
    """

    model: str = argument("model folder, run folder, or the name of a model on the Hugging Face Hub")
    prompt: str = flag(None, "the text to continue; unset: standard input, as it is")


def main(flags: Flags) -> None:
    sampling = flags.sampling
    model, tokenizer, _ = open_folder(flags.model)
    prompt = tokenizer.encode(_standard_input() if flags.prompt is None else flags.prompt)
    if not prompt:
        raise UserError("the prompt is empty; give --prompt, or text on standard input")
    model = ready(model, flags)
    for piece in answer_pieces(model, tokenizer, prompt, flags, sampling):
        print(piece, end="", flush=True)
    print()


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode() if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is no UTF-8 text: byte {error.start} cannot be read") from None


def ready(model: GPT, flags: AnswerFlags) -> GPT:
    """The model on its device, in its precision. Raises UserError where there is no such device, or no room for an answer."""
    longest_answer(flags.max_new, 128, model.config.n_positions)
    device = check_device(flags.device)
    return packed(model.to(device, torch.bfloat16 if flags.precision == "bf16" else torch.float32))


def longest_answer(given: int | None, usual: int, context: int) -> int:
    """--max-new: what was given, else the usual, or half the context. Raises UserError where it leaves no room for a prompt."""
    if given is not None and given >= context:
        raise UserError(f"--max-new is {given}, but the model's context is {context}")
    return given or max(1, min(usual, context // 2))


def answer_pieces(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], flags: AnswerFlags, sampling: Sampling
) -> Iterator[str]:
    """The text of one answer, piece by piece."""
    max_new = longest_answer(flags.max_new, 128, model.config.n_positions)
    columns = stream(model, [prompt], max_new, [tokenizer.end_of_text], sampling, [flags.seed])
    ids = (token for ((_, token),) in columns)
    return text_pieces((i for i in ids if i != tokenizer.end_of_text), tokenizer, flags.stop)


if __name__ == "__main__":
    run(main, Flags)
