"""What start and trained model answer to the same prompts, side by side, the words that changed marked.

Which answers are shown is chosen by the page's style alone: a radio button for each choice, and a class at each answer.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from data.turns import instruction_in
from dpo.page.answer_signs import is_looping
from dpo.page.markup import Html, joined, tag
from dpo.page.reading import Sample

MOST = 1500  # answers on a page
AT_FIRST = 30  # of a choice that are shown before all are asked for: so many are in page.css too
WORDS = 1000  # of an answer; longer ones are not compared word by word

CHOICES = {
    "all": "every answer",
    "changed": "answers that are not what they were",
    "worse": "by the rule of its task right before and wrong after; where no rule knows, ended before and not after, or "
    "repeats itself after and not before",
    "longer": "more tokens than before",
}

# What the rule of a task says of an answer: the expected one, but for one phrase of manner, and then its end
VERDICTS = {
    True: tag("span", "\N{CHECK MARK}", class_="good", title="correct", role="img", aria_label="correct"),
    False: tag(
        "span", "\N{BALLOT X}", class_="bad", title="not correct, or does not end", role="img", aria_label="not correct"
    ),
}


def answers(samples: Sequence[Sample]) -> Html:
    """The samples with their filter. Of more than MOST some from all over, and it is said."""
    shown = [samples[i * len(samples) // MOST] for i in range(MOST)] if len(samples) > MOST else samples
    kinds = [{"all", *kinds_of(sample)} for sample in shown]
    counts = {name: sum(name in kind for kind in kinds) for name in CHOICES}
    buttons = [
        joined(
            tag(
                "input",
                type="radio",
                name="answers",
                id=f"only-{name}",
                checked=name == "all",
                disabled=not counts[name],
            ),
            tag("label", f"{name} ", tag("span", f"{counts[name]:,}"), for_=f"only-{name}", title=meaning),
        )
        for name, meaning in CHOICES.items()
    ]
    many = {name: count for name, count in counts.items() if count > AT_FIRST}
    whole = [tag("span", f"show all {count:,}", class_=name) for name, count in many.items()]
    more = joined(tag("input", type="checkbox", id="whole"), tag("label", *whole, for_="whole")) if many else None
    some = f" Shown are {MOST:,} of {len(samples):,}, from all over." if len(shown) < len(samples) else ""
    meant = tag("p", "Worse: ", CHOICES["worse"], ". Longer: ", CHOICES["longer"], ".", some, class_="hint")
    items = [_item(sample, kind - {"all"}) for sample, kind in zip(shown, kinds)]
    return tag("div", *buttons, more, meant, tag("div", *items, class_="answers"), class_="filter")


def kinds_of(sample: Sample) -> set[str]:
    """Which choices an answer belongs to, beside all."""
    found = {"changed"} if sample.before != sample.after else set()
    if sample.length is not None and sample.length[1] > sample.length[0]:
        found.add("longer")
    return found | ({"worse"} if why_worse(sample) else set())


def why_worse(sample: Sample) -> str:
    """What makes the answer after worse, in two words; "" where nothing is known to."""
    if sample.correct is not None:
        return "wrong now" if sample.correct == (True, False) else ""
    if sample.stopped == (True, False):
        return "does not end"
    return "repeats itself" if is_looping(sample.after) and not is_looping(sample.before) else ""


def task_of(prompt: str) -> str:
    """What a prompt asks, without the template around it; its input on a line of its own."""
    asked = instruction_in(prompt)
    return prompt.strip() if asked is None else asked.replace("\n\n### Input:\n", "\n")


def _item(sample: Sample, kinds: set[str]) -> Html:
    before, after = marked(sample.before, sample.after)
    notes = []
    if worse := why_worse(sample):
        notes.append(tag("span", worse, class_="note bad"))
    elif sample.correct == (False, True):
        notes.append(tag("span", "right now", class_="note good"))
    if sample.length is not None and sample.length[0] != sample.length[1]:
        notes.append(tag("span", "{} to {} tokens".format(*sample.length), class_="note"))
    asked = [tag("p", task_of(sample.prompt), dir="auto")]
    if sample.expected:
        asked.append(tag("p", tag("small", "expected "), tag("span", sample.expected, class_="expected"), dir="auto"))
    was, now = sample.correct or (None, None)
    return tag(
        "article",
        tag("div", *asked, tag("div", *notes, class_="notes"), class_="asked"),
        _side("before", before, was),
        _side("after", after, now),
        class_=" ".join(sorted(kinds)),
    )


def _side(name: str, answer: Html, correct: bool | None) -> Html:
    content = answer or tag("i", "nothing")
    head = tag("h4", name, *(() if correct is None else (" ", VERDICTS[correct])))
    return tag("div", head, tag("p", content, dir="auto"), class_="side")


def marked(before: str, after: str) -> tuple[Html, Html]:
    """Both texts, in the first what is gone, in the second what is new, word by word; the space before a word is its own."""
    one, other = (re.findall(r"\s*(?:\w+|[^\w\s])|\s+", said) for said in (before, after))
    if max(len(one), len(other)) > WORDS:
        return joined(before), joined(after)
    gone: list[str] = []
    new: list[str] = []
    words, others = ([word.strip() for word in side] for side in (one, other))
    for what, a, b, c, d in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        for part, element, said in (("".join(one[a:b]), "del", gone), ("".join(other[c:d]), "ins", new)):
            rest = part if what == "equal" else part.lstrip() or part
            said += [part[: len(part) - len(rest)], rest if what == "equal" or not rest else tag(element, rest)]
    return joined(*gone), joined(*new)
