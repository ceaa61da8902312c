"""data/tasks.py: every answer worked out a second time, by a grammar and an arithmetic of this file's own."""

import os
import re
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import tasks as module
from data.tasks import FAMILIES, Family, Task, number, pick, some, tasks
from data.words import ADJECTIVES, NOUNS, OBJECTS, SUBJECTS, VERBS

MANY = tasks(9_000, seed=1)

# Grammar

VOWELS = set("aeiou")
IRREGULAR = {
    "child": "children",
    "mouse": "mice",
    "foot": "feet",
    "man": "men",
    "woman": "women",
    "tooth": "teeth",
    "goose": "geese",
    "person": "people",
    "ox": "oxen",
    "sheep": "sheep",
    "fish": "fish",
}
PAST_OF = {base: past for base, past, _ in VERBS}
PARTICIPLE_OF = {base: participle for base, _, participle in VERBS}
SPELLED = "zero one two three four five six seven eight nine ten eleven twelve".split()
TEENS = {13: "thirteen", 14: "fourteen", 15: "fifteen", 16: "sixteen", 17: "seventeen", 18: "eighteen", 19: "nineteen"}
TENS = {2: "twenty", 3: "thirty", 4: "forty", 5: "fifty", 6: "sixty", 7: "seventy", 8: "eighty", 9: "ninety"}


def third_person(base: str) -> str:
    """-y after a consonant becomes -ies: carries, but buys; -es after a hiss: washes; else -s."""
    if re.search("[^aeiou]y$", base):
        return re.sub("y$", "ies", base)
    return base + "es" if re.search("(s|x|z|ch|sh|o)$", base) else base + "s"


def plural_of(noun: str) -> str:
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if re.search("[^aeiou]y$", noun):
        return re.sub("y$", "ies", noun)
    if re.search("(lf|af|fe)$", noun):
        return re.sub("fe?$", "ves", noun)
    return noun + "es" if re.search("(s|x|z|ch|sh)$", noun) else noun + "s"


def article_of(word: str) -> str:
    # an article goes by sound: of words such as hour, honest, unit, use or one the letter does not tell it
    assert not re.match("(hour|hono|heir|uni|us[eu]|eu|one|once)", word), f"{word}: the letter does not tell its sound"
    return "an" if word[0] in VOWELS else "a"


def clause(sentence: str, forms: dict[str, str]) -> tuple[str, str, str]:
    """(who, base form, what) of 'The WHO VERB the WHAT.', where forms is base form -> the form that stands here."""
    who, verb, what = re.fullmatch(r"The (\w+) (\w+) the (\w+)\.", sentence).groups()
    assert who in SUBJECTS and what in OBJECTS
    (base,) = [base for base, form in forms.items() if form == verb]  # one verb alone has this form
    return who, base, what


def in_present(sentence: str) -> tuple[str, str, str]:
    return clause(sentence, {base: third_person(base) for base in PAST_OF})


def in_past(sentence: str) -> tuple[str, str, str]:
    return clause(sentence, PAST_OF)


def spelled(n: int) -> str:
    if n <= 12:
        return SPELLED[n]
    if n < 20:
        return TEENS[n]
    return TENS[n // 10] + (f"-{SPELLED[n % 10]}" if n % 10 else "")


def numbers(text: str, between: str = ", ") -> list[int]:
    found = [int(part) for part in text.split(between)]
    assert between.join(map(str, found)) == text  # no stray space, no leading zero
    return found


def added(text: str) -> str:
    a, b = numbers(text, " + ")
    return str(sum([a, b]))


def subtracted(text: str) -> str:
    a, b = numbers(text, " - ")
    assert a >= b
    return str(len(range(b, a)))  # how many steps lie between them


def spelled_out(text: str) -> str:
    return " and ".join(map(spelled, numbers(text, " and ")))


def largest(text: str) -> str:
    return str(sorted(numbers(text))[-1])


def rising(text: str) -> str:
    found = numbers(text)
    return ", ".join(str(n) for n in range(max(found) + 1) for _ in range(found.count(n)))


def by_alphabet(text: str) -> str:
    return ", ".join(sorted(text.split(", ")))


def backwards(text: str) -> str:
    return ", ".join(text.split(", ")[::-1])


def counted(text: str) -> str:
    return str(text.count(",") + 1)


def many(text: str) -> str:
    adjective, noun = text.split()
    return f"{adjective} {plural_of(noun)}"


def with_article(text: str) -> str:
    return f"{article_of(text)} {text}"


def turned_round(text: str) -> str:
    article, adjective, noun = text.split()
    assert article == article_of(adjective)
    (other,) = [a if b == adjective else b for a, b in ADJECTIVES if adjective in (a, b)]
    return f"{article_of(other)} {other} {noun}"


def past(text: str) -> str:
    who, base, what = in_present(text)
    return f"The {who} {PAST_OF[base]} the {what}."


def passive(text: str) -> str:
    who, base, what = in_past(text)
    return f"The {what} was {PARTICIPLE_OF[base]} by the {who}."


def negative(text: str) -> str:
    who, base, what = in_present(text)
    return f"The {who} does not {base} the {what}."


def question(text: str) -> str:
    who, base, what = in_past(text)
    return f"Did the {who} {base} the {what}?"


def future(text: str) -> str:
    who, base, what = in_past(text)
    return f"The {who} will {base} the {what}."


ANSWER = {
    "sum": added,
    "difference": subtracted,
    "spelled": spelled_out,
    "largest": largest,
    "sort": rising,
    "alphabet": by_alphabet,
    "reverse": backwards,
    "count": counted,
    "upper": str.upper,
    "plural": many,
    "article": with_article,
    "opposite": turned_round,
    "past": past,
    "passive": passive,
    "negative": negative,
    "question": question,
    "future": future,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_what_a_second_way_of_working_it_out_gives(family):
    found = [task for task in MANY if task.family == family]
    assert found
    for task in found:
        assert task.answer == ANSWER[family](task.input), task


def test_the_tables_of_words_are_right_and_leave_no_word_with_two_meanings():
    assert {one: plural_of(one) for one, _ in NOUNS} == dict(NOUNS)
    for form in zip(*VERBS):  # base, past, participle: each form belongs to one verb
        assert len(set(form)) == len(VERBS)
    adjectives = [word for pair in ADJECTIVES for word in pair]
    for words in (adjectives, SUBJECTS, OBJECTS, [one for one, _ in NOUNS]):
        assert len(set(words)) == len(words)
        assert all(re.fullmatch("[a-z]+", word) for word in words)


# The list


def test_there_are_at_least_10_families_and_3000_distinct_prompts_in_equal_parts():
    counts = Counter(task.family for task in tasks(3_000))
    assert set(counts) == set(FAMILIES) and len(FAMILIES) >= 10
    assert sum(counts.values()) == len({(t.instruction, t.input) for t in tasks(3_000)}) == 3_000
    assert min(counts.values()) >= 50


def test_no_prompt_stands_twice_and_each_instruction_belongs_to_one_family():
    assert len({(task.instruction, task.input) for task in MANY}) == len(MANY)
    family_of = {wording: name for name, family in FAMILIES.items() for wording in family.wordings}
    assert len(family_of) == sum(len(family.wordings) for family in FAMILIES.values())
    assert all(family_of[task.instruction] == task.family for task in MANY)


def test_one_input_under_several_wordings_is_one_group_with_one_answer():
    answers, wordings = {}, {}
    for task in MANY:
        answers.setdefault(task.group, set()).add((task.family, task.input, task.answer))
        wordings.setdefault(task.group, set()).add(task.instruction)
    assert all(len(found) == 1 for found in answers.values())
    assert max(map(len, wordings.values())) > 1  # else this test has seen no such group


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 3))
def test_a_longer_list_begins_with_the_shorter_one(one, other, seed):
    short, long = sorted((one, other))
    assert tasks(long, seed)[:short] == tasks(short, seed)
    assert len(tasks(short, seed)) == short


def test_another_process_with_another_hash_seed_makes_the_same_list():
    program = "from hashlib import sha256; from data.tasks import tasks; print(sha256(repr(tasks(2000, 3)).encode()).hexdigest())"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(module.__file__).parents[1],
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        assert done.stdout.strip() == sha256(repr(tasks(2000, 3)).encode()).hexdigest()


def test_seeds_make_different_lists():
    assert len({tuple(tasks(50, seed)) for seed in range(10)}) == 10


def test_the_list_ends_when_every_prompt_was_given_and_no_sooner(monkeypatch):
    # two small families, one exhausted before the other
    monkeypatch.setattr(
        module,
        "FAMILIES",
        {
            "few": Family(("a", "b"), lambda rng: (pick(rng, "xyz"), "1")),
            "more": Family(("c",), lambda rng: (str(number(rng, 1, 20)), "2")),
        },
    )
    found = tasks(1_000)
    assert {(t.instruction, t.input) for t in found} == {(i, x) for i in "ab" for x in "xyz"} | {
        ("c", str(n)) for n in range(1, 21)
    }
    assert len(found) == 26
    assert found[:12:2] == [t for t in found if t.family == "few"]  # in turn


# Drawing


@given(st.integers(-5, 5), st.integers(0, 6), st.integers(0, 2**32))
def test_a_number_is_between_its_bounds_and_both_bounds_come(low, width, seed):
    rng = Random(seed)
    assert {number(rng, low, low + width) for _ in range(200)} == set(range(low, low + width + 1))


@given(st.lists(st.integers(), unique=True, max_size=8), st.data())
def test_some_are_different_ones_of_the_options_which_stay_as_they_were(options, data):
    before, count = list(options), data.draw(st.integers(0, len(options)))
    found = some(Random(data.draw(st.integers(0, 99))), options, count)
    assert len(set(found)) == count and set(found) <= set(options) and options == before


def test_every_order_of_some_comes_about_equally_often():
    rng = Random(0)
    counts = Counter(tuple(some(rng, "abc", 2)) for _ in range(6_000))
    assert len(counts) == 6 and all(850 < n < 1150 for n in counts.values())  # 1,000 +- 5 standard deviations of 29


def test_the_example_of_the_docstring_is_a_task_of_the_grammar():
    text = re.search(r"Task\((.*?)\)", module.__doc__, re.DOTALL).group(1)
    task = Task(*re.findall(r'"([^"]*)"', text))
    assert ANSWER[task.family](task.input) == task.answer and task.instruction in FAMILIES[task.family].wordings
