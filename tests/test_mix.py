"""data/mix.py: how many rows of which file, each as likely as any other."""

import math
import re
import shlex
from collections import Counter
from fractions import Fraction
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.convert import Convert, convert
from data.mix import apportioned, drawn, weighed
from data.pairs import read_pairs
from gpt.command import UserError, parse
from tests.shaping import lines, read, rows, shape, texts, write

# Sample


@given(st.lists(rows, min_size=1, max_size=20), st.integers(1, 25), st.integers(0, 99), st.booleans())
def test_a_sample_is_some_rows_in_their_order(tmp_path_factory, given_rows, count, seed, as_list):
    folder = tmp_path_factory.getbasetemp()
    given_rows = [row | {"number": i} for i, row in enumerate(given_rows)]
    file = write(folder / "in.json", given_rows, as_list)
    said = lines(shape(folder, "sample", file, "--count", count, "--seed", seed, "--out", "out.jsonl"))
    numbers = [row["number"] for row in read(folder / "out.jsonl")]
    assert numbers == sorted(set(numbers)) and len(numbers) == min(count, len(given_rows))
    assert texts(read(folder / "out.jsonl")) == texts([given_rows[i] for i in numbers])
    assert ("fewer than" in said["read"]) == (count > len(given_rows))


def test_every_set_of_rows_is_as_likely_as_any_other():
    found = Counter(tuple(drawn(6, 3, Random(seed)).nonzero()[0].tolist()) for seed in range(4000))
    sets = list(combinations(range(6), 3))
    assert set(found) == set(sets)
    expected = 4000 / len(sets)
    chi_squared = sum((found[s] - expected) ** 2 / expected for s in sets)
    assert chi_squared < 43.8  # of 19 degrees of freedom passed once in a thousand; the seeds are fixed


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 9))
def test_all_rows_are_taken_equally_often_but_for_one_and_a_larger_sample_holds_the_smaller(total, count, seed):
    times = drawn(total, count, Random(seed))
    assert times.sum() == count and times.max() - times.min() <= 1
    assert (drawn(total, count + 1, Random(seed)) >= times).all()


def test_a_seed_gives_the_rows_that_it_always_gave():
    # the lots of Random(0) begin 0.844, 0.758, 0.421, 0.259, 0.511, 0.405; Python keeps them
    assert drawn(6, 2, Random(0)).tolist() == [0, 0, 0, 1, 0, 1]


def test_a_sample_need_not_be_of_pairs(tmp_path):
    write(tmp_path / "in.jsonl", [{"question": i} for i in range(9)])
    shape(tmp_path, "sample", "in.jsonl", "--count", 4, "--out", "out.jsonl")
    assert len(read(tmp_path / "out.jsonl")) == 4


# Mix

shares = st.lists(st.integers(1, 50), min_size=1, max_size=4).map(lambda w: [Fraction(one, sum(w)) for one in w])


@given(st.integers(0, 500), shares)
def test_parts_are_less_than_one_from_their_shares(total, given_shares):
    parts = apportioned(total, given_shares)
    assert sum(parts) == total and all(abs(part - total * share) < 1 for part, share in zip(parts, given_shares))


def test_weights_are_proportions_and_read_as_they_are_written():
    assert weighed(["a:3", "b:1"]) == {"a": Fraction(3, 4), "b": Fraction(1, 4)}
    assert weighed(["a:0.1", "b:0.2", "c:0.7"]) == {"a": Fraction(1, 10), "b": Fraction(1, 5), "c": Fraction(7, 10)}
    assert weighed(["C:/x:y.jsonl:1e-3"]) == {"C:/x:y.jsonl": 1}


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=3),
    st.none() | st.integers(1, 60),
    st.integers(0, 9),
)
def test_a_mix_has_its_proportions_and_repeats_no_row_before_it_must(tmp_path_factory, sources, count, seed):
    folder = tmp_path_factory.mktemp("mix")
    for i, (size, _) in enumerate(sources):
        write(folder / f"{i}.jsonl", [{"n": n, "file": i} for n in range(size)], as_list=bool(i % 2))
    words = [f"{i}.jsonl:{weight}" for i, (_, weight) in enumerate(sources)]
    words += ["--out", "out.jsonl", "--seed", seed] + ([] if count is None else ["--count", count])
    whole = sum(weight for _, weight in sources)
    most = min(size * whole // weight for size, weight in sources)  # that there are without a row twice
    said = shape(folder, "mix", *words)
    found = read(folder / "out.jsonl")
    assert len(found) == (count or most) and list(found[0]) == ["n", "file"]
    for i, (size, weight) in enumerate(sources):
        mine = Counter(row["n"] for row in found if row["file"] == i)
        number = sum(mine.values())
        assert abs(number - len(found) * weight / whole) < 1
        low, high = number // size, math.ceil(number / size)
        assert set(mine.values()) <= {low, high} and len(mine) == min(number, size)
        assert count or high <= 1
        each = f"each of its {size} {low if low == high else f'{low} or {high}'} times"
        assert (each if high > 1 else f"{number} of its {size} row") in said
    first = (folder / "out.jsonl").read_bytes()
    shape(folder, "mix", *words)
    assert (folder / "out.jsonl").read_bytes() == first


def test_the_files_are_mixed_throughout_and_each_row_as_likely(tmp_path):
    for name, size in (("a", 100), ("b", 50)):
        write(tmp_path / f"{name}.jsonl", [{name: i} for i in range(size)])
    firsts, taken = Counter(), Counter()
    for seed in range(40):
        shape(tmp_path, "mix", "a.jsonl:2", "b.jsonl:1", "--count", 30, "--seed", seed, "--out", "out.jsonl")
        found = read(tmp_path / "out.jsonl")
        firsts.update(next(iter(row)) for row in found[:10])
        taken.update(row["a"] for row in found if "a" in row)
    assert 220 < firsts["a"] < 310  # of 400, about 267: standard deviation 8 or so
    assert len(taken) > 95 and max(taken.values()) < 22  # each about 8 times of 40


CHAT = {"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": "b"}
TEXT = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    "one, other, expected",
    [
        (CHAT, TEXT, "my a.jsonl, row 1 is 'chat' (messages with role and content), and b.jsonl, row 1 is 'prompt' ("),
        (CHAT, TEXT, "make pairs first, python data/build.py convert 'my a.jsonl' --out NEW, and mix NEW in its place"),
        (TEXT, CHAT, "make pairs first, python data/build.py convert b.jsonl --out NEW, and mix NEW in its place"),
        (TEXT, {"instruction": "i", "chosen": "a", "rejected": "b"}, "b.jsonl, row 1 is 'instruction'"),
        (
            TEXT,
            {"n": 1},
            "b.jsonl, row 1 is no pair of any format; no reader takes a file of both: put each kind of row in",
        ),
        ({"n": 1}, TEXT, "my a.jsonl, row 1 is no pair of any format, and b.jsonl, row 1 is 'prompt'"),
        (TEXT, {"prompt": CHAT["prompt"]}, "b.jsonl, row 1 is 'chat'"),
    ],
)
def test_files_of_two_formats_are_refused_before_anything_is_written(tmp_path, one, other, expected):
    write(tmp_path / "my a.jsonl", [one] * 3)
    write(tmp_path / "b.jsonl", [other] * 3)
    with pytest.raises(UserError) as caught:
        shape(tmp_path, "mix", "my a.jsonl:1", "b.jsonl:1", "--out", "out.jsonl")
    assert expected in str(caught.value) and "no reader takes a file of both" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 and len(list(tmp_path.iterdir())) == 2


def test_a_row_of_another_format_is_found_wherever_it_stands(tmp_path):
    write(tmp_path / "a.jsonl", [TEXT] * 3)
    write(tmp_path / "b.jsonl", [TEXT, TEXT, CHAT])
    for words in (["a.jsonl:1", "b.jsonl:1"], ["b.jsonl:1"]):
        with pytest.raises(UserError, match="b.jsonl, row 3 is 'chat' .* no reader takes a file of both: "):
            shape(tmp_path, "mix", *words, "--out", "out.jsonl")
    shape(tmp_path, "sample", "b.jsonl", "--count", 3, "--out", "out.jsonl")


def test_what_the_refusal_of_two_formats_says_makes_one_file_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [TEXT] * 3)
    write(tmp_path / "b b.jsonl", [CHAT] * 3)
    with pytest.raises(UserError) as caught:
        shape(tmp_path, "mix", "a.jsonl:1", "b b.jsonl:1", "--out", "out.jsonl")
    words = shlex.split(re.search(r"(python data/build.py convert .*), and", str(caught.value))[1])[3:]
    convert(parse(Convert, words))
    shape(tmp_path, "mix", "a.jsonl:1", "NEW:1", "--out", "out.jsonl")
    assert len(read_pairs("out.jsonl")) == 6


@pytest.mark.parametrize(
    "row",
    [
        CHAT,
        TEXT,
        {"prompt": "p"},
        {"prompt": "p", "chosen": "a"},
        {"n": 1},
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]},
    ],
)
def test_files_of_one_format_are_mixed_and_no_row_is_left_out(tmp_path, row):
    """Also one of which training makes no pair."""
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [row] * 3)
    shape(tmp_path, "mix", "a.jsonl:1", "b.jsonl:1", "--out", "out.jsonl")
    shape(tmp_path, "sample", "out.jsonl", "--count", 9, "--out", "sample.jsonl")
    assert read(tmp_path / "out.jsonl") == read(tmp_path / "sample.jsonl") == [row] * 6


def test_a_source_field_names_the_file_and_nothing_else_changes(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [{"is": name, "n": i} for i in range(4)])
    shape(tmp_path, "mix", "a.jsonl:1", "b.jsonl:1", "--source-field", "from", "--out", "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert len(found) == 8 and all(
        list(row) == ["is", "n", "from"] and row["from"] == f"{row['is']}.jsonl" for row in found
    )
    with pytest.raises(UserError, match="row 1: field 'is' is there already"):
        shape(tmp_path, "mix", "a.jsonl:1", "--source-field", "is", "--out", "out.jsonl")
    assert read(tmp_path / "out.jsonl") == found


def test_a_row_may_have_a_field_without_a_name(tmp_path):
    write(tmp_path / "a.jsonl", [{"": 1, "prompt": "a"}])
    shape(tmp_path, "mix", "a.jsonl:1", "--out", "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [{"": 1, "prompt": "a"}]
