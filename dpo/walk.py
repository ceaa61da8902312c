"""The path of one pair from JSON to gradient, in ten stops with the real values. docs/tour.md goes along it.

    python dpo/walk.py                                       a short pair of the embedded set, all ten stops
    python dpo/walk.py --stop 6                              one of them
    python dpo/walk.py --pairs FILE --pair 3 --init gpt2     row 3 of a file, by another model

What is shown is computed in dpo/one_pair.py. A stop is a function that gives its lines; its docstring is its title.
"""

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from dpo.losses import LOSSES, Scores, parse_loss
from dpo.losses.family import described
from dpo.losses.spec import Term
from dpo.one_pair import SHORT, Walk, walk_of
from gpt.attention import may_look
from gpt.command import check_range, flag, run

WIDTH = 100
MOST = 10  # tokens of an answer that are listed
ACROSS = 7  # of them in the table of who may look at whom, for which the page is as wide as it is
BEFORE = 2  # tokens of the prompt that are shown before the place where the answers begin


@dataclass(frozen=True)
class Flags:
    """Walk with one pair from its row to its gradient: ten stops, each with the real values.

    python dpo/walk.py --stop 6
    python dpo/walk.py --pairs pairs.jsonl --pair 3 --init gpt2 --loss "dpo + 0.2*sft"
    """

    pair: int = flag(0, f"row of the file, from 1; 0: the first that can be used, of the embedded set row {SHORT}")
    stop: int = flag(0, "which stop, 1 to 10; 0: all")
    pairs: str = flag("", "pairs file; empty: the embedded set")
    init: str = flag("", "the policy, and as it is before the update the reference, as in train.py; empty: data/tiny")
    loss: str = flag("dpo", "as in train.py")


def main(flags: Flags) -> None:
    check_range(flags, ("pair",), 0)
    check_range(flags, ("stop",), 0, most=len(STOPS))
    walk = walk_of(flags.pairs, flags.pair, flags.init, parse_loss(flags.loss))
    stops = [STOPS[flags.stop - 1]] if flags.stop else STOPS
    print("\n\n".join("\n".join(shown(stop, walk)) for stop in stops))


def the_row(walk: Walk) -> Iterator[str]:
    """The row, as JSON"""
    for line in json.dumps(walk.row, indent=2, ensure_ascii=False).splitlines():
        yield from folded("", line)


def the_texts(walk: Walk) -> Iterator[str]:
    """A prompt and two answers"""
    for name in ("prompt", "chosen", "rejected"):
        if (text := getattr(walk.pair, name)) is not None:
            for number, line in enumerate(text.split("\n")):
                yield from folded(f"{'' if number else name:9} | ", line)


def the_ids(walk: Walk) -> Iterator[str]:
    """The same as token ids"""
    for name, ids in walk.ids._asdict().items():
        if ids:
            yield f"{name}, {len(ids)} tokens{f' ({walk.noted})' if walk.noted and name == 'prompt' else ''}"
            words = [f"{token}\xa0{word(walk, token)}".replace(" ", "\xa0") for token in ids]  # not broken within
            if len(words) > 8 * MOST:
                words[4 * MOST : -4 * MOST] = [f"... {len(words) - 8 * MOST} more ..."]
            for line in textwrap.wrap("   ".join(words), WIDTH - 4, break_on_hyphens=False):
                yield "    " + line.replace("\xa0", " ")


def the_tree(walk: Walk) -> Iterator[str]:
    """One row for both answers, and who may look at whom"""
    batch, mask, places = walk.batch, may_look(walk.batch.tree), places_seen(walk)
    alone = sum(len(walk.ids.prompt) + at.stop - at.start - 1 for _, at in answers(walk))
    yield f"{batch.tokens.shape[1]} tokens; in a row of its own for each answer {alone}"
    for piece, (size, parent) in enumerate(zip(batch.tree.sizes, batch.tree.parents)):
        yield f"piece {piece}: {size} tokens, " + (f"hangs from piece {parent}" if piece else "the root")
    pieces = torch.arange(len(batch.tree.sizes)).repeat_interleave(torch.tensor(batch.tree.sizes)).tolist()
    yield ""
    yield f"place  piece  position  {'token':16}{''.join(f'{place:>4}' for place in places)}"
    for place in places:
        looks = "".join(f"{'x' if mask[place, key] else '.':>4}" for key in places)
        token = word(walk, int(batch.tokens[0, place]))
        yield f"{place:>5}{pieces[place]:>7}{int(batch.positions[0, place]):>10}  {token:16.16}{looks}"


def the_targets(walk: Walk) -> Iterator[str]:
    """Of which place which token is asked"""
    tokens, targets = walk.batch.tokens[0].tolist(), walk.batch.targets
    places = targets.places[targets.of].tolist()
    for name, at in answers(walk):
        rows = list(zip(places[at], targets.tokens[at].tolist()))
        for number, (place, target) in enumerate(rows[:MOST]):
            asked = f"of place {place:>3} {word(walk, tokens[place]):16.16} comes {target:>5} {word(walk, target)}"
            yield f"{'' if number else name:10}{asked}"
        yield from left_out(at)


def the_logps(walk: Walk) -> Iterator[str]:
    """The log-probability of each answer token"""
    beside = walk.loss.needs_reference
    yield f"{'':10}{'token':18}{'log pi':>10}{'pi':>10}" + (f"{'log pi_ref':>13}{'difference':>13}" if beside else "")
    for name, at in answers(walk):
        rows = zip(walk.batch.targets.tokens[at].tolist(), walk.policy[at].tolist(), walk.reference[at].tolist())
        for number, (token, policy, reference) in enumerate(list(rows)[:MOST]):
            likely = of(exp(policy)) if policy > -9 else f"{exp(policy):.0e}"
            line = f"{'' if number else name:10}{word(walk, token):18.18}{of(policy):>10}{likely:>10}"
            yield line + (f"{of(reference):>13}{of(policy - reference):>13}" if beside else "")
        yield from left_out(at)


def the_scores(walk: Walk) -> Iterator[str]:
    """The sums, which are what a loss may see"""
    for name, at in answers(walk):
        line = f"{name:10}{at.stop - at.start:>3} tokens   log pi {one(walk.scores, name):>9}"
        if walk.loss.needs_reference:
            line += f"   log pi_ref {one(walk.scores, 'ref_' + name):>9}   gain {one(walk.scores, 'gain_' + name):>7}"
        yield line
    if walk.ids.rejected and walk.loss.needs_reference:
        gains = f"{one(walk.scores, 'gain_chosen')} - {one(walk.scores, 'gain_rejected')}"
        yield f"log_ratio = gain_chosen - gain_rejected = {gains} = {one(walk.scores, 'log_ratio')}"
    yield "plain path, a forward pass for each answer: " + ", ".join(
        f"{name} {of(walk.plain[name])}" for name, _ in answers(walk)
    )


def the_loss(walk: Walk) -> Iterator[str]:
    """The loss, with the numbers put in"""
    for term in walk.loss.terms:
        formula, _ = described(LOSSES[term.name])
        yield from folded(f"{term.name:14}", formula)
        yield from folded(f"{'':14}", str(term) if term.modifiers else with_numbers(formula, term, walk.scores))
        yield f"{'':12}= {of(float(term(walk.scores)))}"
    by_token = f", sft divided by the {len(walk.ids.chosen)} tokens of the chosen answer"
    has_sft = "sft" in [term.name for term in walk.loss.terms]
    if len(walk.loss.terms) > 1 or has_sft:
        yield f"in all{by_token if has_sft else ''}: {of(walk.value)}"
    if "loss" in walk.plain:
        yield f"plain path, compute_dpo_loss: {of(walk.plain['loss'])}"


def the_gradient(walk: Walk) -> Iterator[str]:
    """The gradient, and what one step does with it"""
    for name, at in answers(walk):
        least, most = min(walk.pull[at].tolist()), max(walk.pull[at].tolist())
        size = f"{least:+.4f}" if most - least < 5e-5 else f"{least:+.4f} to {most:+.4f}"
        yield f"d loss / d log p of each token of {name:9} {size}"
    yield f"over all parameters its norm is {walk.line['grad_norm']:.4f}"
    yield f"one step of AdamW at a rate of {walk.line['learning_rate']:g}"
    yield ""
    yield f"{'':10}{'log pi':>12}{'after':>12}{'moved':>12}   times as likely"
    for name, _ in answers(walk):
        before, after = (float(getattr(scores, name)) for scores in (walk.scores, walk.scores_after))
        likelier = exp(min(after - before, 700))  # more is no float
        yield f"{name:10}{of(before):>12}{of(after):>12}{after - before:>+12.4f}   {likelier:.4g}"
    if walk.ids.rejected and walk.loss.needs_reference:
        yield f"log_ratio {one(walk.scores, 'log_ratio'):>12}{one(walk.scores_after, 'log_ratio'):>12}"
    yield f"loss      {of(walk.value):>12}{of(walk.value_after):>12}"


def the_line(walk: Walk) -> Iterator[str]:
    """The step's line in metrics.jsonl"""
    for name, value in walk.line.items():
        if name != "pairs_per_second":  # of which one pair says nothing
            yield f"{json.dumps(name):22}{json.dumps(float(f'{value:.4g}') if isinstance(value, float) else value)}"


STOPS: tuple[Callable[[Walk], Iterator[str]], ...] = (
    *(the_row, the_texts, the_ids, the_tree, the_targets),
    *(the_logps, the_scores, the_loss, the_gradient, the_line),
)


def shown(stop: Callable[[Walk], Iterator[str]], walk: Walk) -> list[str]:
    """A stop under its title."""
    title = f"{STOPS.index(stop) + 1}. {stop.__doc__}"
    return [title, "-" * len(title), *(line.rstrip() for line in stop(walk))]


def answers(walk: Walk) -> list[tuple[str, slice]]:
    """Where the tokens of each answer that is there stand among the S."""
    middle, end = len(walk.ids.chosen), len(walk.policy)
    return [("chosen", slice(0, middle)), ("rejected", slice(middle, end))][: 1 + (end > middle)]


def places_seen(walk: Walk) -> list[int]:
    """The places of the row that are shown: the last of the prompt, and what the first tokens of each answer are asked of."""
    places = walk.batch.targets.places[walk.batch.targets.of].tolist()
    asked = sorted({place for _, at in answers(walk) for place in places[at][:ACROSS]})
    return [*range(max(0, asked[0] - BEFORE), asked[0]), *asked]


def left_out(at: slice) -> list[str]:
    """How many tokens of an answer were not shown."""
    more = at.stop - at.start - MOST
    return [f"{'':10}and {more} more"] if more > 0 else []


def word(walk: Walk, token: int) -> str:
    """A token's text in quotes."""
    return repr(walk.tokenizer.decode([token]))


def of(value: float) -> str:
    """A number with four decimals, and none that is minus zero."""
    return f"{round(value, 4) + 0.0:.4f}"


def one(scores: Scores, name: str) -> str:
    """A number of the one pair."""
    return of(float(getattr(scores, name)))


def with_numbers(formula: str, term: Term, scores: Scores) -> str:
    """A loss's formula with the values of this pair in place of their names."""
    names = {"log pi(y_w)": "chosen", "log pi(y_l)": "rejected"}
    names |= {name: name for name in ("gain_chosen", "gain_rejected", "log_ratio")}
    numbers = {written: one(scores, name) for written, name in names.items()}
    numbers |= {name: f"{float(getattr(scores, name)):g}" for name in ("chosen_len", "rejected_len")}
    numbers |= {name: f"{value:g}" for name, value in term.keywords.items()}
    formula = formula.replace("2 beta", "2 * beta")
    either = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in numbers)
    return re.sub(either, lambda found: re.sub(r"^-.*", r"(\g<0>)", numbers[found[0]]), formula)


def folded(head: str, text: str) -> list[str]:
    """Lines of at most WIDTH columns, the text beginning behind `head`."""
    room = WIDTH - len(head)
    parts = textwrap.wrap(text, room, drop_whitespace=False, break_on_hyphens=False) or [""]
    return [head + parts[0], *(" " * len(head) + part for part in parts[1:])]


if __name__ == "__main__":
    run(main, Flags)
