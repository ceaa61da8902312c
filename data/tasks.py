"""The embedded instruction set: small tasks whose right answer a rule knows.

    Task("passive", "Rewrite the sentence in the passive voice.", "The cat carried the lamp.",
         "The lamp was carried by the cat.")

Seventeen families. Each has a few wordings of its instruction, and a rule that makes an input and its answer. The inputs
are combinations (subject x verb x object, adjective x noun, numbers), so that a model can answer one it has not seen.

`tasks(count, seed)` gives the same list on every machine: of the standard library's generator only `random()` is
used, the one method whose sequence Python promises to keep.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from data.words import ADJECTIVES, FRUIT, NOUNS, NUMBERS, OBJECTS, SUBJECTS, VERBS

T = TypeVar("T")


class Task(NamedTuple):
    family: str
    instruction: str
    input: str
    answer: str

    @property
    def group(self) -> str:
        """What a split must keep on one side: the same input under two wordings is one task."""
        return f"{self.family}: {self.input}"


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of `options`, each as likely."""
    return options[int(rng.random() * len(options))]


def number(rng: Random, low: int, high: int) -> int:
    """low .. high, both included."""
    return low + int(rng.random() * (high - low + 1))


def some(rng: Random, options: Sequence[T], count: int) -> list[T]:
    """`count` different ones, in random order."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def _third(base: str) -> str:
    """carry -> carries, buy -> buys, wash -> washes, find -> finds"""
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "sh", "ch", "x", "z")) else "s")


def _with_article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _clause(rng: Random) -> tuple[str, list[str], str]:
    return pick(rng, SUBJECTS), pick(rng, VERBS), pick(rng, OBJECTS)


def _past(rng):
    who, (base, past, _), what = _clause(rng)
    return f"The {who} {_third(base)} the {what}.", f"The {who} {past} the {what}."


def _passive(rng):
    who, (_, past, participle), what = _clause(rng)
    return f"The {who} {past} the {what}.", f"The {what} was {participle} by the {who}."


def _negative(rng):
    who, (base, _, _), what = _clause(rng)
    return f"The {who} {_third(base)} the {what}.", f"The {who} does not {base} the {what}."


def _question(rng):
    who, (base, past, _), what = _clause(rng)
    return f"The {who} {past} the {what}.", f"Did the {who} {base} the {what}?"


def _future(rng):
    who, (base, past, _), what = _clause(rng)
    return f"The {who} {past} the {what}.", f"The {who} will {base} the {what}."


def _plural(rng):
    adjective, (one, many) = pick(rng, pick(rng, ADJECTIVES)), pick(rng, NOUNS)
    return f"{adjective} {one}", f"{adjective} {many}"


def _article(rng):
    phrase = f"{pick(rng, pick(rng, ADJECTIVES))} {pick(rng, NOUNS)[0]}"
    return phrase, _with_article(phrase)


def _opposite(rng):
    pair, (one, _) = pick(rng, ADJECTIVES), pick(rng, NOUNS)
    adjective = pick(rng, pair)
    other = pair[1 - pair.index(adjective)]
    return f"{_with_article(adjective)} {one}", f"{_with_article(other)} {one}"


def _upper(rng):
    phrase = f"{pick(rng, pick(rng, ADJECTIVES))} {pick(rng, OBJECTS)}"
    return phrase, phrase.upper()


def _sum(rng):
    a, b = number(rng, 10, 99), number(rng, 1, 9)
    return f"{a} + {b}", str(a + b)


def _difference(rng):
    a, b = number(rng, 10, 99), number(rng, 1, 9)
    return f"{a} - {b}", str(a - b)


def _spelled(rng):
    a, b = some(rng, range(len(NUMBERS)), 2)
    return f"{a} and {b}", f"{NUMBERS[a]} and {NUMBERS[b]}"


def _largest(rng):
    values = some(rng, range(31), 3)
    return ", ".join(map(str, values)), str(max(values))


def _sort(rng):
    values = some(rng, range(21), 3)
    return ", ".join(map(str, values)), ", ".join(map(str, sorted(values)))


def _alphabet(rng):
    words = some(rng, FRUIT, 3)
    return ", ".join(words), ", ".join(sorted(words))


def _reverse(rng):
    words = some(rng, OBJECTS, 3)
    return ", ".join(words), ", ".join(reversed(words))


def _count(rng):
    words = some(rng, OBJECTS, number(rng, 1, 6))
    return ", ".join(words), str(len(words))


class Family(NamedTuple):
    wordings: tuple[str, ...]
    make: Callable[[Random], tuple[str, str]]  # a generator to an input and its answer


FAMILIES = {
    "sum": Family(("Add the two numbers.", "What is the sum?", "Calculate this sum."), _sum),
    "difference": Family(("Subtract the second number from the first.", "What is the difference?"), _difference),
    "spelled": Family(("Write the numbers as words.", "Spell out both numbers."), _spelled),
    "largest": Family(("Which number is the largest?", "Name the largest of these numbers."), _largest),
    "sort": Family(("Sort the numbers from smallest to largest.", "Put these numbers in rising order."), _sort),
    "alphabet": Family(("Sort the words by the alphabet.", "Put these words in alphabetical order."), _alphabet),
    "reverse": Family(("Write the list backwards.", "Reverse the order of the words."), _reverse),
    "count": Family(("How many words are in the list?", "Count the words."), _count),
    "upper": Family(("Write this in capital letters.", "Convert the text to upper case."), _upper),
    "plural": Family(("Write the plural.", "Make this plural.", "What is the plural form?"), _plural),
    "article": Family(("Put a or an before this.", "Add the right article, a or an."), _article),
    "opposite": Family(("Say the opposite.", "Replace the adjective by its opposite."), _opposite),
    "past": Family(("Rewrite the sentence in the past tense.", "Change the verb to the past tense."), _past),
    "passive": Family(("Rewrite the sentence in the passive voice.", "Turn this into the passive."), _passive),
    "negative": Family(("Make the sentence negative.", "Negate this statement."), _negative),
    "question": Family(("Turn the sentence into a question.", "Make a yes-or-no question of this."), _question),
    "future": Family(("Rewrite the sentence in the future tense.", "Say that this will happen."), _future),
}


def tasks(count: int, seed: int = 0) -> list[Task]:
    """`count` tasks with distinct prompts, the families in turn; a family with nothing new left is passed over.

    Fewer than `count` come back only when every family is exhausted. A longer list begins with the shorter one.
    """
    rng = Random(seed)
    found: list[Task] = []
    seen: set[tuple[str, str]] = set()
    open_families = list(FAMILIES)
    while open_families and len(found) < count:
        for name in list(open_families):
            family = FAMILIES[name]
            for _ in range(200):  # tries; a family of F prompts of which 3 % are left fails here once in 400
                instruction, (text, answer) = pick(rng, family.wordings), family.make(rng)
                if (instruction, text) not in seen:
                    seen.add((instruction, text))
                    found.append(Task(name, instruction, text, answer))
                    break
            else:
                open_families.remove(name)
    return found[:count]
