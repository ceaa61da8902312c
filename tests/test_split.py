"""data/split.py: the sides that the trainer would choose."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.pairs import pair_of, read_pairs, split
from dpo.examples import open_examples
from gpt.command import UserError
from tests.shaping import lines, read, rows, shape, texts, write


def halves(folder: Path) -> list[list]:
    return [read(folder / name) for name in ("train.jsonl", "held-out.jsonl")]


@given(st.lists(rows, min_size=1, max_size=30), st.sampled_from([0.1, 0.3, 0.5, 0.8]), st.booleans())
def test_the_sides_part_the_file_as_the_trainer_does(tmp_path_factory, given_rows, held_out, as_list):
    folder = tmp_path_factory.mktemp("split")
    file = write(folder / "in.json", given_rows, as_list)
    pairs = [pair_of(row, i, "") for i, row in enumerate(given_rows) if row["chosen"] != row["rejected"]]
    expected = split(pairs, held_out)
    if not all(expected):
        with pytest.raises(UserError, match="would be" if pairs else "no pair is left to learn from"):
            shape(folder, "split", file, "--out", "out", "--held-out", held_out)
        assert not list(folder.rglob("*.jsonl"))
        return
    said = lines(shape(folder, "split", file, "--out", "out", "--held-out", held_out))
    for side, name, found in zip(expected, ("to train on", "held out"), halves(folder / "out")):
        assert texts(found) == texts([given_rows[pair.row] for pair in side])
        prompts = len({pair.prompt for pair in side})
        number = f"{len(side)} row{'s' * (len(side) > 1)} of {prompts} prompt{'s' * (prompts > 1)} to "
        assert said[name].startswith(number)
    assert said["in both"].startswith("0 prompts")
    assert ("dropped" in said) == (len(pairs) < len(given_rows))
    there = sorted(folder.rglob("*"))
    report = shape(folder, "split", file, "--out", "-", "--held-out", held_out)
    here = re.sub(
        r"to \S+/(train|held-out).jsonl$",
        "nowhere (--out -)",
        "\n".join(f"{k:16}{v}" for k, v in said.items()),
        flags=re.M,
    )
    assert sorted(folder.rglob("*")) == there and lines(report) | {"in both": ""} == lines(here) | {"in both": ""}


def test_the_real_rows_fall_on_the_sides_that_training_gives_them(tmp_path, shared, tokenizer):
    file = shared / "data" / "instruction-data-with-preference.json"
    shape(tmp_path, "split", file, "--out", tmp_path)
    for examples, name in zip(open_examples(str(file), tokenizer, 10_000, 0.1, None, {}), ("train", "held-out")):
        pairs = [examples.pairs[i] for i in range(len(examples.rows))]
        # of which the row is another one
        assert [pair[:3] for pair in pairs] == [pair[:3] for pair in read_pairs(tmp_path / f"{name}.jsonl")]
    train, held = halves(tmp_path)
    assert len(train) + len(held) == 1094 and not {row["instruction"] + row["input"] for row in train} & {
        row["instruction"] + row["input"] for row in held
    }


def test_a_group_stays_on_one_side_and_a_prompt_of_two_groups_is_refused(tmp_path):
    row = {"chosen": "a", "rejected": "b"}
    write(tmp_path / "in.jsonl", [row | {"prompt": f"{i}", "group": f"{i % 7}"} for i in range(70)])
    shape(tmp_path, "split", "in.jsonl", "--out", ".", "--held-out", 0.5)
    train, held = ({row["group"] for row in half} for half in halves(tmp_path))
    assert train and held and not train & held and len(train | held) == 7
    write(tmp_path / "torn.jsonl", [row | {"prompt": "p", "group": "one"}, row | {"prompt": "p", "group": "two"}])
    with pytest.raises(
        UserError, match="torn.jsonl: rows 1 and 2 have one prompt and two groups .* give a prompt one group"
    ):
        shape(tmp_path, "split", "torn.jsonl", "--out", "torn")
    assert not list((tmp_path / "torn").iterdir())


def test_prompts_that_are_nearly_on_both_sides_are_said_and_the_advice_takes_them_out(tmp_path):
    row = {"chosen": "a", "rejected": "b"}
    prompts = [f"{say} {i}{mark}" for i in range(20) for say, mark in (("Say", "."), ("say", ""), ("SAY ", "!"))]
    prompts += [f"Alone {i}" for i in range(20)]
    write(tmp_path / "in.jsonl", [row | {"prompt": prompt} for prompt in prompts])
    said = lines(shape(tmp_path, "split", "in.jsonl", "--out", "my out", "--held-out", 0.3))["in both"]
    plain = [
        [re.sub(r"[^a-z0-9]+", " ", row["prompt"].lower()).strip() for row in half]
        for half in halves(tmp_path / "my out")
    ]
    expected = [
        row["prompt"] for row, text in zip(read(tmp_path / "my out" / "held-out.jsonl"), plain[1]) if text in plain[0]
    ]
    assert (
        expected
        and f"{len(expected)} held-out rows have a prompt to train on (rows {prompts.index(expected[0]) + 1}, " in said
        and "but for case, white space and punctuation" in said
    )
    advice = shlex.split(said.partition(": python data/build.py ")[2].partition(" leaves")[0])
    shape(tmp_path, *advice)
    assert len(read(tmp_path / "NEW")) == sum(text not in plain[1] for text in plain[0])


def test_a_larger_fraction_keeps_what_a_smaller_one_held_out(tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": f"{i}", "chosen": "a"} for i in range(300)])
    held = []
    for fraction in (0.1, 0.3, 0.6):
        shape(tmp_path, "split", "in.jsonl", "--out", ".", "--held-out", fraction)
        held.append({row["prompt"] for row in halves(tmp_path)[1]})
    assert held[0] < held[1] < held[2]
