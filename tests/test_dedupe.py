"""data/dedupe.py against loops over all rows."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.normal import normalized
from data.tally import summary
from data.turns import instruction_prompt
from gpt.command import UserError
from tests.shaping import extra, lines, read, shape, texts, write

# few, so that they meet often
rows = st.builds(
    lambda prompt, chosen, rejected, more: {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more,
    st.sampled_from(["Add 2 and 3.", "add 2  and 3", "Add 2, and 4!"]),
    st.sampled_from(["Five.", "five", "5"]),
    st.sampled_from(["Five.", "five", "5", None]),
    extra,
)


def key(row: dict, near: bool, by: str) -> tuple:
    values = [row[name] for name in ("prompt", "chosen", "rejected")][: 3 if by == "pair" else 1]
    return tuple(normalized(value) if near and value is not None else value for value in values)


def by_a_loop(given_rows: list[dict], near: bool, by: str, drop: bool) -> tuple[list[dict], int, int]:
    """(rows that stay, how many repeat, how many contradict)."""

    def contradicts(row: dict) -> bool:
        prompt, chosen, rejected = key(row, near, "pair")
        mirror = prompt, rejected, chosen
        return chosen != rejected and any(key(other, near, "pair") == mirror for other in given_rows)

    seen, kept, against, repeats = [], [], [], 0
    for row in given_rows:
        if contradicts(row) and key(row, near, "pair") not in against:
            against.append(key(row, near, "pair"))
            if drop:
                continue
        elif drop and contradicts(row):
            repeats += 1
            continue
        if key(row, near, by) in seen:
            repeats += 1
        else:
            seen.append(key(row, near, by))
            kept.append(row)
    return kept, repeats, len(against)


@given(
    st.lists(rows, min_size=1, max_size=25),
    st.booleans(),
    st.sampled_from(["pair", "prompt"]),
    st.booleans(),
    st.booleans(),
)
def test_what_stays_is_what_a_loop_keeps_and_once_more_nothing_goes(
    tmp_path_factory, given_rows, near, by, drop, as_list
):
    folder = tmp_path_factory.mktemp("dedupe")
    file = write(folder / "in.json", given_rows, as_list)
    flags = ["--by", by, "--contradictions", "drop" if drop else "keep"] + ["--near"] * near
    pairs = [row for row in given_rows if row["chosen"] != row["rejected"]]
    kept, repeats, contradictions = by_a_loop(pairs, near, by, drop)
    if not kept:
        with pytest.raises(UserError, match="no row is left" if pairs else "no pair is left to learn from"):
            shape(folder, "dedupe", file, "--out", "out.jsonl", *flags)
        return
    said = lines(shape(folder, "dedupe", file, "--out", "out.jsonl", *flags))
    assert texts(read(folder / "out.jsonl")) == texts(kept)
    assert said["repeats"].startswith(f"{repeats} row") and said["written"].startswith(f"{len(kept)} row")
    assert said.get("contradictions", "0").split()[0] == str(contradictions)
    same = [i for i, row in enumerate(given_rows, 1) if row["chosen"] == row["rejected"]]
    assert said["read"].startswith(f"{len(given_rows)} row") and ("dropped" in said) == bool(same)
    assert not same or said["dropped"].startswith(summary({"chosen equal to rejected": same}))
    again = lines(shape(folder, "dedupe", folder / "out.jsonl", "--out", "again.jsonl", *flags))
    assert (
        again["repeats"].startswith("0 ")
        and (folder / "again.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()
    )


def test_rows_are_named_by_their_lines_each_with_the_one_it_repeats(tmp_path):
    one, two = (json.dumps({"prompt": "p", "chosen": answer, "rejected": "x"}) for answer in "ab")
    (tmp_path / "in.jsonl").write_text(f"\n{one}\n\n{two}\n{one}\n{two}\n")
    said = lines(shape(tmp_path, "dedupe", "in.jsonl", "--out", "-"))
    assert said["repeats"] == "2 rows with the pair of one before: rows 5 (as 2), 6 (as 4)"
    assert len(list(tmp_path.iterdir())) == 1


def test_of_equal_pairs_the_first_stays_with_its_fields(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    write(tmp_path / "in.jsonl", [row | {"margin": 2}, row | {"margin": 1}, row])
    shape(tmp_path, "dedupe", "in.jsonl", "--out", "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [row | {"margin": 2}]


def test_texts_that_meet_elsewhere_are_not_one_pair(tmp_path):
    write(
        tmp_path / "in.jsonl",
        [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in ("ab c d".split(), "a bc d".split())],
    )
    assert lines(shape(tmp_path, "dedupe", "in.jsonl", "--out", "-"))["written"].startswith("2 rows")


def test_one_answer_and_the_word_none_are_not_one_pair(tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": "p", "chosen": "a"}, {"prompt": "p", "chosen": "a", "rejected": "None"}])
    assert lines(shape(tmp_path, "dedupe", "in.jsonl", "--out", "-"))["written"].startswith("2 rows")


def test_the_template_of_an_instruction_makes_no_difference_to_near(tmp_path):
    row = {"chosen": "a", "rejected": "b"}
    prompts = [instruction_prompt("Add.", "2 + 3"), "add 2 + 3", "add 2 - 3"]
    write(tmp_path / "in.jsonl", [row | {"prompt": prompt} for prompt in prompts])
    said = lines(shape(tmp_path, "dedupe", "in.jsonl", "--near", "--out", "-"))
    assert said["repeats"] == "1 row with nearly the pair of one before: row 2 (as 1)"


def test_of_a_prompt_whose_pairs_contradict_each_other_the_first_that_does_not_stays(tmp_path):
    pairs = [
        ("p", "one", "two"),
        ("p", "two", "one"),
        ("q", "three", "four"),
        ("p", "five", "six"),
        ("p", "six", "seven"),
    ]
    write(tmp_path / "in.jsonl", [dict(zip(("prompt", "chosen", "rejected"), pair)) for pair in pairs])
    flags = ["dedupe", "in.jsonl", "--by", "prompt", "--out", "out.jsonl"]
    said = lines(shape(tmp_path, *flags))
    assert [row["chosen"] for row in read(tmp_path / "out.jsonl")] == ["one", "three"]
    assert said["contradictions"].endswith(
        "rows 1, 2; the first row of a prompt is kept; --contradictions drop leaves them out"
    )
    said = lines(shape(tmp_path, *flags, "--contradictions", "drop"))
    assert [row["chosen"] for row in read(tmp_path / "out.jsonl")] == ["three", "five"]
    assert said["contradictions"].endswith("rows 1, 2; left out") and said["repeats"].endswith("row 5 (as 4)")


def test_contradictions_are_said_and_dropped_on_demand(tmp_path):
    pairs = [("p", "a", "b"), ("q", "a", "b"), ("p", "b", "a"), ("r", "a", "c"), ("q", "c", "a")]
    write(tmp_path / "in.jsonl", [dict(zip(("prompt", "chosen", "rejected"), pair)) for pair in pairs])
    said = lines(shape(tmp_path, "dedupe", "in.jsonl", "--out", "out.jsonl"))["contradictions"]
    assert (
        re.match(r"2 rows .*: rows 1, 3; kept; --contradictions drop", said) and len(read(tmp_path / "out.jsonl")) == 5
    )
    said = lines(shape(tmp_path, "dedupe", "in.jsonl", "--contradictions", "drop", "--out", "out.jsonl"))[
        "contradictions"
    ]
    assert said.endswith("rows 1, 3; left out") and [row["prompt"] for row in read(tmp_path / "out.jsonl")] == [
        "q",
        "r",
        "q",
    ]


def test_the_real_rows_repeat_25_prompts_and_no_pair(tmp_path, shared):
    file = shared / "data" / "instruction-data-with-preference.json"
    said = lines(shape(tmp_path, "dedupe", file, "--by", "prompt", "--out", "out.jsonl"))
    assert said["repeats"].startswith("25 rows with the prompt") and len(read(tmp_path / "out.jsonl")) == 1069
    said = lines(shape(tmp_path, "dedupe", file, "--out", "-"))
    assert said["repeats"].startswith("0 rows") and said["dropped"].startswith(
        "chosen equal to rejected: 6 pairs (rows "
    )
    near = lines(shape(tmp_path, "dedupe", file, "--near", "--by", "prompt", "--out", "near.jsonl"))["repeats"]
    assert int(near.split()[0]) == 1094 - len(read(tmp_path / "near.jsonl")) >= 25
