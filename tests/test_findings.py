"""data/findings.py: every figure of the report by counting, and what is marked."""

from collections import Counter
from math import ceil
from random import Random
from statistics import median

import pytest

from data.census import ODDITIES
from data.check import counted
from data.findings import Line, findings, percent
from data.pairs import Pair, split
from data.rules import preference_rows, row_pairs, sft_rows
from data.tally import number_of, rows_listed
from dpo.store import encode


def lines_of(pairs, tokenizer=None, dropped=None, held_out=0.1, max_length=256, sample=0) -> dict[str, Line]:
    """The lines of the report on these pairs, by name."""
    found = findings(counted(pairs, tokenizer, sample), dropped or {}, held_out, max_length)
    assert len({line.name for line in found}) == len(found) and all(line.text and len(line.name) < 16 for line in found)
    return {line.name: line for line in found}


@pytest.fixture(scope="module")
def many() -> list[Pair]:
    """Pairs with repeats of prompts, of whole pairs, and of pairs with more space."""
    pairs = [
        Pair(f"Say {'very ' * (i % 7)}hello {i % 5}.", "Good morning! " * (1 + i % 2), "What? " * (1 + i % 3), i + 1)
        for i in range(60)
    ]
    pairs += [pair._replace(row=70 + i) for i, pair in enumerate(pairs[:4])]
    return pairs + [Pair(p.prompt.upper(), p.chosen, f"  {p.rejected}", 80 + i) for i, p in enumerate(pairs[:3])]


def test_counts_repeats_and_splits_are_those_of_a_loop(many):
    lines = lines_of(many, dropped={"an empty answer": [61]}, held_out=0.3)
    assert lines["pairs"].text == "67" and lines["dropped"].text == "an empty answer: 1 pair (row 61)"
    prompts = Counter(pair.prompt for pair in many)
    assert lines["prompts"].text == (
        f"{len(prompts)} distinct, {67 - len(prompts)} repeated; one has {max(prompts.values())} pairs"
    )
    again = [k for k, pair in enumerate(many) if pair[:3] in [one[:3] for one in many[:k]]]
    whole, nearly = lines["duplicates"].figures.values()
    assert whole == {"pairs": len(again), "rows": [many[k].row for k in again]} and {70, 71, 72, 73} <= set(
        whole["rows"]
    )
    assert nearly == {"pairs": 3, "rows": [80, 81, 82]}
    (mark,) = lines["duplicates"].marks
    assert mark.startswith(f"rows {', '.join(map(str, sorted(whole['rows'] + nearly['rows'])))}: ")
    training, held_out = split(many, 0.3)
    assert lines["split"].text.startswith(
        f"{len(training)} to train on, {len(held_out)} held out (--held-out 0.3); on both sides: "
    )
    assert "0 prompts, by construction" in lines["split"].text


def test_near_copies_of_a_prompt_on_the_other_side_are_marked(many):
    for held_out in (0.3, 0.5, 0.8):
        training, held = split(many, held_out)
        both = {p.prompt.lower() for p in training} & {p.prompt.lower() for p in held}
        line = lines_of(many, held_out=held_out)["split"]
        assert line.figures["nearly"]["pairs"] == len(both) and len(line.marks) == bool(both)
    assert both


def test_a_split_that_leaves_a_side_empty_is_marked(many):
    few = [pair for pair in many if pair.prompt == many[0].prompt]
    for held_out, said in ((1e-9, "none is held out"), (1.0, "none is left to train on")):
        assert [mark.startswith(said) for mark in lines_of(few, held_out=held_out)["split"].marks] == [True]
    assert not lines_of(few, held_out=0.0)["split"].marks  # as one asked for


def test_a_prompt_in_two_groups_is_marked_and_may_be_on_both_sides():
    pairs = [Pair("p", "a", f"b {i}", i, group=f"g{i}") for i in range(1, 9)] + [Pair("P", "a", "c", 9, group="g1")]
    line = lines_of(pairs, held_out=0.5)["split"]
    assert line.figures["both sides"]["pairs"] == 1 and "1 prompt, 0 but for" in line.text
    assert line.marks == ["rows 1 and 2: one prompt in two groups, which training refuses; give it one group"]


def test_opposites_are_marked_with_their_rows():
    pairs = [Pair("p", "a", "b", 3), Pair("q", "b", "a", 5), Pair("p", "b", "a", 8), Pair("p", "b", "a", 9)]
    line = lines_of(pairs)["contradictions"]
    assert line.text == "2 pairs with the answers of one before exchanged" and line.figures["rows"] == [[3, 8], [3, 9]]
    assert line.marks[0].startswith("rows 3 and 8, 3 and 9: ")


def test_lengths_are_counted_as_a_loop_does(many, tokenizer):
    lines = lines_of(many, tokenizer)
    lengths = {
        "prompt": [len(tokenizer.encode(p.prompt)) for p in many],
        "chosen": [len(tokenizer.encode(p.chosen)) + 1 for p in many],
        "rejected": [len(tokenizer.encode(p.rejected)) + 1 for p in many],
    }
    for name, found in lengths.items():
        most = sorted(found)[ceil(0.95 * len(found)) - 1]
        assert lines[f"{name} tokens"].text == (
            f"median {median(found):g}, 95 % at most {most}, longest {max(found)}, {sum(found):,} in all"
        )


def test_what_does_not_fit_is_what_training_cuts_or_leaves_out(many, tokenizer):
    census, seen = counted(many, tokenizer), set()
    for max_length in range(1, 60):
        noted: dict[str, list[int]] = {}
        encode(many, tokenizer, max_length, None, noted)
        cut, out = (
            next((rows for why, rows in noted.items() if why.startswith(head)), []) for head in ("prompt cut", "left")
        )
        (line,) = [line for line in findings(census, {}, 0.1, max_length) if line.name == "too long"]
        expected = {"prompt cut": {"pairs": len(cut), "rows": cut}, "left out": {"pairs": len(out), "rows": out}}
        assert line.figures == {"max length": max_length} | expected
        assert line.text.startswith(f"{number_of(len(cut) + len(out), 'pair')} of more than {max_length} tokens")
        assert [mark.split(":")[0] for mark in line.marks] == [rows_listed(rows) for rows in (cut, out) if rows]
        seen.add((bool(cut), bool(out)))
    assert len(seen) >= 3  # some cut, some left out, neither


def test_a_tie_of_lengths_counts_one_half_in_the_length_bias(tokenizer):
    pairs = [Pair("p", "aa", "a", 1), Pair("p", "a", "aa", 2), Pair("p", "a", "b", 3), Pair("p", "aaa", "a", 4)]
    lengths = [(len(tokenizer.encode(p.chosen)), len(tokenizer.encode(p.rejected))) for p in pairs]
    expected = sum(1 if c > r else 0.5 if c == r else 0 for c, r in lengths) / 4
    line = lines_of(pairs + [Pair("q", "a", None, 5)], tokenizer)["length bias"]
    assert line.figures["accuracy"] == expected and line.figures["pairs"] == 4
    assert f"right for {percent(expected)} of the pairs" in line.text and not line.marks


@pytest.mark.parametrize("longer, is_marked", [(0.5, False), (0.62, False), (0.7, True), (0.3, True), (0.4, False)])
def test_a_length_bias_is_marked_where_it_is_large_and_sure(tokenizer, longer, is_marked):
    pairs = []
    for i in range(500):
        long, short = f"{i} and more words", f"{i}"
        chosen, rejected = (long, short) if i < 500 * longer else (short, long)
        pairs.append(Pair(f"p {i}", chosen, rejected, i))
    line = lines_of(pairs, tokenizer)["length bias"]
    assert line.figures["accuracy"] == longer and bool(line.marks) == is_marked


def test_of_a_sample_the_tokens_are_told_of_so_many_and_all_else_of_all(tokenizer):
    pairs = row_pairs(preference_rows(300))
    some, every = lines_of(pairs, tokenizer, sample=50), lines_of(pairs, tokenizer)
    assert some["sample"].figures == {"pairs": 50} and "sample" not in every
    assert some["length bias"].figures["pairs"] == 50
    for name in ("pairs", "prompts", "duplicates", "split", "families", "scripts"):
        assert some[name] == every[name]
    mean = {
        name: lines["prompt tokens"].figures["total"] / n
        for name, lines, n in (("some", some, 50), ("every", every, 300))
    }
    assert mean["some"] == pytest.approx(mean["every"], rel=0.1)
    assert "sample" not in lines_of(pairs, tokenizer, sample=300)  # all of them


def test_rows_with_one_answer_are_marked_among_others_and_not_alone(tokenizer):
    lines = lines_of([Pair("p", "a", None, 1), Pair("q", "a", "b", 2)], tokenizer)
    assert lines["pairs"].text == "2, of them 1 with one answer" and lines["pairs"].marks[0].startswith("row 1: ")
    alone = lines_of(row_pairs(sft_rows(60)), tokenizer)
    assert not alone["pairs"].marks and not {"length bias", "separable", "rejected tokens"} & set(alone)


def test_margins_are_summed_up_and_missing_or_useless_ones_marked():
    pairs = [Pair("p", "a", "b", i, margin=margin) for i, margin in enumerate((0.5, None, 2, 0, -1), 1)]
    line = lines_of(pairs)["margins"]
    assert line.text == "4, from -1 to 2, median 0.25"
    assert [mark.split(":")[0] for mark in line.marks] == ["row 2", "rows 4, 5"]
    assert "margins" not in lines_of([Pair("p", "a", "b", 1)])


def test_the_embedded_set_is_told_apart_at_once_and_so_much_is_said(tokenizer):
    line = lines_of(row_pairs(preference_rows(400)), tokenizer)["separable"]
    assert line.figures["accuracy"] > 0.95 and len(line.marks) == 1 and "'Certainly!' is good" in line.text


def test_few_pairs_cannot_be_told_apart_or_not():
    assert lines_of([Pair("p", "a", "b", 1)])["separable"].text.startswith("not known: fewer than")


@pytest.mark.parametrize("name", [name for name in ODDITIES if name != "one answer"])
def test_an_oddity_is_marked_where_more_pairs_have_it_than_is_usual(name):
    odd = {
        "empty prompt": ("two words", "two things"),
        "short chosen": ("word", "two words"),
        "short rejected": ("two words", "word"),
        "prefix": ("two words", "two words more"),
        "alike": ("two words", "Two words"),
        "prompt repeated": ("Tell me about it, you say", "two words"),
        "another turn": ("two words\nHuman: more", "two things"),
        "other script": ("two words", "два слова"),
        "control": ("two\a words", "two things"),
        "U+FFFD": ("two\ufffd words", "two things"),
        "invisible": ("two\u200b words", "two things"),
        "line ends": ("two words\r\nmore", "two things"),
        "special tokens": ("two words</s>", "two things"),
    }
    tolerated = ODDITIES[name].tolerated
    for count in (1, 11, 60):
        asked = " " if name == "empty prompt" else "Tell me about"
        pairs = [Pair(asked, *odd[name], i + 1) for i in range(count)]
        pairs += [Pair("Tell me about", "a word", "the thing", i + 1) for i in range(count, 1000)]
        lines = lines_of(pairs)
        assert lines[name].figures == {"pairs": count, "rows": list(range(1, count + 1))}
        assert lines[name].text.startswith("1 pair with " if count == 1 else f"{count} pairs with ")
        rows = "row 1" if count == 1 else f"rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and {count - 10} more"
        assert bool(lines[name].marks) == (count / 1000 > tolerated)
        assert lines[name].marks[0].startswith(f"{rows}: ") if lines[name].marks else f"({rows})" in lines[name].text
        assert lines["no pair has"].figures["names"] == [
            other for other in ODDITIES if other not in (name, "one answer")
        ]


def test_a_calm_file_has_no_marks(tokenizer):
    rng, words = Random(0), "sea sun bird boat sand wind wave".split()
    pairs = [
        Pair(f"Tell me {i}", *(" ".join(rng.choices(words, k=6)) + str(2 * i + k) for k in (0, 1)), i)
        for i in range(800)
    ]
    assert not [line for line in lines_of(pairs, tokenizer).values() if line.marks]


def test_names_of_a_file_are_told_so_that_they_do_no_harm():
    pairs = [Pair("p", "a <|\x1b[31m|>", "b", 1, family="red\x1b[31m\n")]
    lines = lines_of(pairs)
    assert "\x1b" not in "".join(line.text for line in lines.values())
    assert lines["families"].text == r"red\x1b[31m\n 1" and r"<|\x1b[31m|> 1" in lines["special tokens"].text
