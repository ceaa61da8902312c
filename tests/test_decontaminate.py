"""data/decontaminate.py against sets of strings."""

import json
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.normal import normalized
from data.pairs import instruction_prompt, pair_of, teaches_nothing
from data.tally import LISTED
from gpt.command import UserError
from tests.shaping import lines, read, shape, texts, write


def ngrams(text: str, n: int) -> set[str]:
    words = normalized(text).split()
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)} if n else set()


def pair_texts(row: dict) -> list[str]:
    return [row[name] for name in ("prompt", "chosen", "rejected") if row.get(name) is not None]


def by_sets(given_rows: list, others: list, n: int, common: int) -> tuple[list[int], list[int], int]:
    """(rows with a prompt of the others, further rows with a run of theirs, rows of theirs that were met)."""
    prompts = {normalized(row["prompt"]) for row in others} - {""}
    runs = set().union(*(ngrams(text, n) for row in others for text in pair_texts(row)))
    mine = [set().union(*(ngrams(text, n) for text in pair_texts(row))) for row in given_rows]
    with_prompts: dict[str, set] = {}
    for row, found in zip(given_rows, mine):
        for run in found & runs:
            with_prompts.setdefault(run, set()).add(normalized(row["prompt"]))
    telling = {run for run, prompts in with_prompts.items() if len(prompts) <= common}
    same = [i for i, row in enumerate(given_rows) if normalized(row["prompt"]) in prompts]
    sharing = [i for i, found in enumerate(mine) if i not in same and found & telling]
    asked = {normalized(row["prompt"]) for row in given_rows} - {""}
    met = sum(
        normalized(row["prompt"]) in asked or bool(set().union(*(ngrams(t, n) for t in pair_texts(row))) & telling)
        for row in others
    )
    return same, sharing, met


sentence = st.lists(st.sampled_from("the The cat, sat on a mat! 日本".split()), max_size=8).map(" ".join)
row = st.builds(lambda p, c, r: {"prompt": p, "chosen": c, "rejected": r}, sentence, sentence, sentence | st.none())


@given(
    st.lists(row, min_size=1, max_size=8), st.lists(row, min_size=1, max_size=4), st.integers(0, 4), st.integers(1, 4)
)
@example([{"prompt": "", "chosen": "", "rejected": "the"}], [{"prompt": "", "chosen": "the", "rejected": None}], 1, 1)
def test_what_goes_is_what_sets_of_strings_have_in_common(tmp_path_factory, given_rows, others, n, common):
    folder = tmp_path_factory.mktemp("decontaminate")
    given_rows = [row | {"id": i} for i, row in enumerate(given_rows)]
    file, test = write(folder / "in.jsonl", given_rows), write(folder / "test.jsonl", others)
    words = ["decontaminate", file, "--against", test, "--out", "out.jsonl", "--ngram", n, "--common", common]
    pairs = [row for row in given_rows if not teaches_nothing(pair_of(row, 1, ""))]
    same, sharing, met = by_sets(pairs, others, n, common)
    if len({*same, *sharing}) == len(pairs):
        nothing = not any(normalized(row["prompt"]) or any(ngrams(t, n) for t in pair_texts(row)) for row in others)
        expected = "no text to compare" if nothing else "no row is left" if pairs else "no pair is left to learn from"
        with pytest.raises(UserError, match=expected):
            shape(folder, *words)
        assert not (folder / "out.jsonl").exists()
        return
    try:
        said = lines(shape(folder, *words))
    except UserError as error:  # all of the other file is empty, or shorter
        nothing = not any(ngrams(text, n) for row in others for text in pair_texts(row))
        assert "no text to compare with" in str(error) and nothing
        assert not any(normalized(row["prompt"]) for row in others)
        return
    kept = [row for i, row in enumerate(pairs) if i not in same and i not in sharing]
    assert texts(read(folder / "out.jsonl")) == texts(kept)
    named = ", ".join(str(pairs[i]["id"] + 1) for i in same[:LISTED])
    assert said["read"].startswith(f"{len(given_rows)} row") and ("dropped" in said) == (len(pairs) < len(given_rows))
    assert said["same prompt"].startswith(f"{len(same)} row") and named in said["same prompt"]
    assert not n or said[f"same {n} words"].startswith(f"{len(sharing)} more row")
    assert said["found"].startswith(f"{met} of {len(others)} row")


LONG = "at what time does the night train from Vienna to Rome arrive in Florence on weekdays"


def test_thirteen_words_in_a_row_give_a_row_away_in_a_prompt_or_an_answer_and_twelve_do_not(tmp_path):
    words, pair = LONG.split(), {"prompt": "p", "chosen": "a", "rejected": "b"}
    part = {n: " ".join(words[1 : 1 + n]) for n in (12, 13)}
    given_rows = [
        pair | {"prompt": f"Please say: {part[13].upper()}?"},
        pair | {"prompt": f"Please say: {part[12]}?"},
        pair | {"prompt": "q", "rejected": f"No. {part[13]}, you ask?"},
        pair | {"prompt": part[12], "chosen": words[13]},  # no run goes from the prompt into the answer
    ]
    write(tmp_path / "in.jsonl", given_rows)
    write(tmp_path / "test.jsonl", [{"prompt": "x", "chosen": LONG, "rejected": "y"}])
    said = lines(shape(tmp_path, "decontaminate", "in.jsonl", "--against", "test.jsonl", "--out", "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [given_rows[1], given_rows[3]]
    assert said["same 13 words"] == f"2 more rows left out: rows 1, 3, the first {part[13].lower()!r}"
    shape(tmp_path, "decontaminate", "in.jsonl", "--against", "test.jsonl", "--ngram", 0, "--out", "out.jsonl")
    assert read(tmp_path / "out.jsonl") == given_rows


def test_the_template_of_instruction_rows_gives_nothing_away(tmp_path):
    rows = [{"instruction": f"Say {i}.", "input": f"in {i}" * (i % 2), "chosen": f"a{i}"} for i in range(6)]
    write(tmp_path / "in.jsonl", rows[:5])
    # the same prompts as text, with the template and without it, and one that is not there
    others = [
        {"prompt": instruction_prompt("say 1", "in 1"), "chosen": "x"},
        {"prompt": "Say 3, in 3", "chosen": "x"},
        rows[5],
    ]
    write(tmp_path / "test.jsonl", others)
    said = lines(shape(tmp_path, "decontaminate", "in.jsonl", "--against", "test.jsonl", "--out", "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [rows[0], rows[2], rows[4]]
    assert said["found"] == "2 of 3 rows (66.7%) of test.jsonl"


def test_a_phrase_of_many_prompts_is_passed_over_but_not_one_of_many_pairs_of_one_prompt(tmp_path):
    phrase = "as a large language model I can not have an opinion on such a thing"
    rows = [{"prompt": f"{i} is a prompt", "chosen": phrase, "rejected": f"{i}"} for i in range(40)]
    again = [{"prompt": f"{LONG} today", "chosen": f"{i}"} for i in range(40)]
    write(tmp_path / "in.jsonl", Random(0).sample(rows + again, 80))
    write(tmp_path / "test.jsonl", [{"prompt": f"{LONG}?", "chosen": phrase}])
    said = lines(shape(tmp_path, "decontaminate", "in.jsonl", "--against", "test.jsonl", "--out", "out.jsonl"))
    assert {row["chosen"] for row in read(tmp_path / "out.jsonl")} == {phrase}
    assert said["same 13 words"].startswith("40 more rows") and said["common"].startswith(
        "3 runs of 13 words passed over"
    )
    with pytest.raises(UserError, match="no row is left"):
        write(tmp_path / "few.jsonl", rows[:10])
        shape(tmp_path, "decontaminate", "few.jsonl", "--against", "test.jsonl", "--out", "-")


def test_prompts_are_told_apart_exactly_up_to_any_number(tmp_path):
    phrase = "as a large language model I can not have an opinion on such a thing"
    write(tmp_path / "test.jsonl", [{"prompt": "x", "chosen": phrase}])
    write(
        tmp_path / "in.jsonl",
        [{"prompt": f"{i % 100}", "chosen": f"{phrase} {i}"} for i in range(300)] + [{"prompt": "q", "chosen": "a"}],
    )
    words = ["decontaminate", "in.jsonl", "--against", "test.jsonl", "--out", "-"]
    for common, passed in ((99, True), (100, False), (10**12, False)):
        said = lines(shape(tmp_path, *words, "--common", common))
        assert said["written"].startswith("301 rows" if passed else "1 row ") and ("common" in said) == passed


def test_a_test_that_is_no_pair_is_compared_text_by_text(tmp_path):
    write(
        tmp_path / "in.jsonl",
        [{"prompt": p, "chosen": "a"} for p in ("Who wrote Emma?", "Who wrote Ulysses?", LONG + "!")],
    )
    (tmp_path / "test.json").write_text(
        json.dumps(
            [{"turns": [{"q": "who wrote Emma"}, 3], "half": "\ud83d"}, {"context": {"x": f"Yes: {LONG}."}}, {"n": 1}]
        )
    )
    said = lines(shape(tmp_path, "decontaminate", "in.jsonl", "--against", "test.json", "--out", "out.jsonl"))
    assert [row["prompt"] for row in read(tmp_path / "out.jsonl")] == ["Who wrote Ulysses?"]
    assert said["found"] == "2 of 3 rows (66.7%) of test.json; they are no pairs, every text in them counts"


def test_several_files_are_counted_each(tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": p, "chosen": "a"} for p in "abcde"])
    for name, prompts in (("one", "ax"), ("two", "xyzb")):
        write(tmp_path / f"{name}.jsonl", [{"prompt": p, "chosen": "z"} for p in prompts])
    said = shape(tmp_path, "decontaminate", "in.jsonl", "--against", "one.jsonl", "two.jsonl", "--out", "out.jsonl")
    assert "1 of 2 rows (50.0%) of one.jsonl" in said and "1 of 4 rows (25.0%) of two.jsonl" in said
    assert [row["prompt"] for row in read(tmp_path / "out.jsonl")] == ["c", "d", "e"]


def test_the_real_rows_give_their_own_held_out_prompts_away(tmp_path, shared):
    file = shared / "data" / "instruction-data-with-preference.json"
    shape(tmp_path, "split", file, "--out", tmp_path)
    held = read(tmp_path / "held-out.jsonl")
    said = lines(
        shape(tmp_path, "decontaminate", file, "--ngram", 0, "--against", "held-out.jsonl", "--out", "out.jsonl")
    )
    assert said["found"].startswith(f"{len(held)} of {len(held)} rows (100.0%)")

    def prompt(row: dict) -> str:
        return normalized(row["instruction"] + "\n" + row["input"])

    there = [row for row in json.loads(file.read_text()) if row["chosen"] != row["rejected"]]
    expected = [row for row in there if prompt(row) not in {prompt(row) for row in held}]
    assert read(tmp_path / "out.jsonl") == expected and len(expected) <= 1094 - len(held)


def test_instructions_with_a_plain_answer_are_compared_as_prompts(tmp_path):
    tasks = [{"instruction": "Add.", "input": f"{n} + 1"} for n in range(5)]
    write(tmp_path / "in.jsonl", [task | {"chosen": "a", "rejected": "b"} for task in tasks])
    write(tmp_path / "test.jsonl", [task | {"output": "2"} for task in tasks[1:3]])
    said = lines(shape(tmp_path, "decontaminate", "in.jsonl", "--against", "test.jsonl", "--out", "out.jsonl"))
    assert [row["input"] for row in read(tmp_path / "out.jsonl")] == ["0 + 1", "3 + 1", "4 + 1"]
    assert said["found"].startswith("2 of 2 rows (100.0%)")
