"""Where DPO acts: each token of a pair's answers, coloured by how much likelier the policy made it than the reference.

    Certainly! 5      the first word +2.9 nats, the rest next to nothing: a manner was learned

The sum of an answer's colours, times beta, is its reward.
"""

from collections.abc import Sequence

from dpo.page import curves
from dpo.page.answers import task_of
from dpo.page.digits import MINUS, signed
from dpo.page.markup import Html, tag
from dpo.page.reading import Answered, Pair

LEVELS = (0.1, 0.3, 1.0, 3.0)  # nats: from each of them on a colour is stronger
EACH = 6  # pairs from either end of the order
LONGEST = 600  # tokens of an answer that are shown
ENDS = "<|endoftext|>"


def margins(pairs: Sequence[Pair], held_out: int) -> Html | None:
    """How the margins of these of the held-out pairs are spread; None where fewer than two have one."""
    known = [pair.margin for pair in pairs if pair.margin is not None]
    if len(known) < 2:
        return None
    wrong = sum(margin < 0 for margin in known)
    some = f"{len(known):,} of the {held_out:,}" if held_out > len(known) else f"{len(known):,}"
    said = f"{some} held-out pairs, {wrong:,} of these ranked wrong (below 0). The best and the worst stand below."
    return tag(
        "figure",
        tag("h3", "Margin of each pair, nats × beta"),
        curves.margins(known),
        tag("p", said),
        class_="card",
        id="spread",
    )


def token_view(pairs: Sequence[Pair]) -> Html:
    """The pairs with the largest and the smallest margins, token by token; without margins some."""
    known = [(pair.margin, pair) for pair in pairs if pair.margin is not None]
    order = [pair for _, pair in sorted(known, key=lambda one: -one[0])]
    if len(order) < len(pairs):
        groups = {"Some answers": pairs[: 2 * EACH]}
    elif len(order) <= 2 * EACH:
        groups = {"Pairs, the largest margin first": order}
    else:
        groups = {
            "The best, largest margin first": order[:EACH],
            "The worst, smallest margin first": order[: -EACH - 1 : -1],
        }
    blocks = []
    for title, some in groups.items():
        blocks += [tag("h3", title), *map(_pair, some)]
    return tag("div", *blocks, class_="tokens")


def level(moved: float) -> str:
    """The class of a token that became likelier by so many nats: "" for next to nothing, up-1 to up-4, down-1 to down-4."""
    strength = sum(abs(moved) >= least for least in LEVELS)
    return f"{'up' if moved > 0 else 'down'}-{strength}" if strength else ""


def legend() -> Html:
    """What the colours mean."""
    names = [f"down-{n}" for n in range(len(LEVELS), 0, -1)] + [f"up-{n}" for n in range(1, len(LEVELS) + 1)]
    words = [f"{MINUS}{value:g}" for value in reversed(LEVELS)] + [f"+{value:g}" for value in LEVELS]
    swatches = [tag("span", word, class_=f"token {name}") for name, word in zip(names, words)]
    ends = tag("span", tag("span", "less likely"), tag("span", "likelier"), class_="ends")
    what = tag("span", "change of log π, in nats, by so many or more")
    return tag("p", what, tag("span", *swatches, class_="scale"), ends, class_="legend")


def _pair(pair: Pair) -> Html:
    margin = None if pair.margin is None else tag("span", f"margin {signed(pair.margin)} nats × beta", class_="note")
    row = tag("span", f"row {pair.row}", class_="note") if pair.row else None
    return tag(
        "article",
        tag("div", tag("p", task_of(pair.prompt), dir="auto"), tag("div", row, margin, class_="notes"), class_="asked"),
        _answer("chosen", pair.chosen),
        pair.rejected and _answer("rejected", pair.rejected),
    )


def _answer(name: str, answer: Answered) -> Html:
    columns = list(zip(answer.tokens, answer.policy, answer.reference, answer.moved))
    shown = [_token(*column) for column in columns[:LONGEST]]
    if len(columns) > LONGEST:
        shown.append(tag("i", f" and {len(columns) - LONGEST:,} tokens more"))
    head = tag("h4", name, " ", tag("span", f"{signed(sum(answer.moved))} nats"), class_=name)
    return tag("div", head, tag("p", *shown, dir="auto"), class_="side")


def _token(text: str, policy: float, reference: float, moved: float) -> Html:
    told = f"log p {reference:.2f} to {policy:.2f}, {signed(moved)}".replace(" -", f" {MINUS}")
    # its numbers show when it is pointed at, or tapped, which needs a tabindex
    how = {"class_": f"token {level(moved)}".strip(), "data_moved": told, "tabindex": "-1"}
    if text == ENDS:
        return tag("span", tag("small", "end"), **how)
    return tag("span", text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n") or "\N{MIDDLE DOT}", **how)
