"""data/carry.py: rows come out as they went in, from a file that stayed as it was."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.carry import check_apart, check_files, chosen_rows, rows, written
from data.check import Check, check
from data.convert import Convert, convert
from gpt.command import UserError
from tests.shaping import lines, read, shape, texts, write
from tests.shaping import rows as any_rows

VALUES = [
    10**30,
    -0.0,
    1e-300,
    float("nan"),
    float("inf"),
    "\ud83d",
    "\u2028\x00\x7f\n",
    {"b": 1, "a": [[], {}]},
    None,
    "",
]


@given(st.lists(any_rows, max_size=5), st.booleans())
def test_rows_come_out_as_they_went_in(tmp_path_factory, given_rows, as_list):
    folder = tmp_path_factory.getbasetemp()
    file = write(folder / "in.json", given_rows, as_list)
    with written(folder / "out.jsonl") as put:
        for row in rows(file, "reading"):
            put(row.value, "")
    assert texts(read(folder / "out.jsonl")) == texts(given_rows)


def test_numbers_without_end_half_surrogates_and_the_order_of_fields_survive(tmp_path):
    given_rows = [{"z": value, "é": 1, "a": 2} for value in VALUES]
    with written(tmp_path / "out.jsonl") as put:
        for row in rows(write(tmp_path / "in.jsonl", given_rows)):
            put(row.value, "")
    assert texts(read(tmp_path / "out.jsonl")) == texts(given_rows)
    assert '"é"' in (tmp_path / "out.jsonl").read_text(encoding="utf-8")  # text is text, but where it is none
    assert list(read(tmp_path / "out.jsonl")[0]) == ["z", "é", "a"]


def test_what_is_nested_as_deep_as_can_be_read_is_written_or_named(tmp_path):
    for depth in (100, 300, 900, 960, 980, 990, 5000, 9000, 100_000):
        (tmp_path / "deep.jsonl").write_text('{"a":' + "[" * depth + "]" * depth + "}\n")
        try:
            with written(tmp_path / "out.jsonl") as put:
                for row in rows(tmp_path / "deep.jsonl"):
                    put(row.value, "deep.jsonl, row 1")
        except UserError as error:
            assert "nested too deep" in str(error) and "1" in str(error)
        else:
            assert (tmp_path / "out.jsonl").stat().st_size > 2 * depth


def test_a_row_that_is_no_object_is_named(tmp_path):
    with pytest.raises(UserError, match=r"in.jsonl, row 2: a row is a JSON object, found \[1\]"):
        list(rows(write(tmp_path / "in.jsonl", [{}, [1]])))


def test_to_a_dash_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with written("-") as put:
        put({}, "")
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_the_older_file(tmp_path):
    (tmp_path / "out.jsonl").write_text("older")
    with pytest.raises(UserError, match="no row"), written(tmp_path / "out.jsonl") as put:
        put({}, "")
        raise UserError("no row")
    assert (tmp_path / "out.jsonl").read_text() == "older" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("now", [0, 2, 4])
def test_a_file_with_other_rows_than_before_is_refused(tmp_path, now):
    file = write(tmp_path / "in.jsonl", [{"a": i} for i in range(now)])
    with pytest.raises(UserError, match="in.jsonl changed while it was read"):
        list(chosen_rows(file, np.ones(3)))


def test_chosen_rows_are_those_that_are_marked(tmp_path):
    file = write(tmp_path / "in.jsonl", [{"a": i} for i in range(5)])
    assert [row.number for row in chosen_rows(file, np.array([0, 1, 0, 1, 1]))] == [2, 4, 5]


def test_a_file_is_not_written_over_what_is_read_by_whatever_name(tmp_path):
    file = write(tmp_path / "in.jsonl", [{}])
    (tmp_path / "link").symlink_to(file)
    os.link(file, tmp_path / "hard")
    for name in ("in.jsonl", "link", "hard", "../" + tmp_path.name + "/in.jsonl"):
        with pytest.raises(UserError, match="which is read; name another file"):
            check_files(tmp_path / name, str(tmp_path / "absent"), str(file))
    check_files(tmp_path / "new.jsonl", str(file))


def test_a_file_that_is_not_there_yet_is_one_by_all_its_names(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for name in ("new", "./new", "link"):
        with pytest.raises(UserError, match="^--picture .* is .*new, which --json writes; name another file$"):
            check_apart(tmp_path / name, tmp_path / "new", flag="--picture", used="--json writes")
    check_apart(tmp_path / "other", tmp_path / "new")
    check_apart("-", "-")  # nothing is written there


ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}
RATED = {"prompt": "p", "responses": ["a", "b"]}
DROPPED = {
    "an empty answer": (ROW, ROW | {"chosen": " \n"}),
    "chosen equal to rejected": (ROW, ROW | {"rejected": "a"}),
    "all answers have one score": (RATED | {"scores": [1, 0]}, RATED | {"scores": [1, 1]}),
    "fewer than two answers with a score": (RATED | {"scores": [1, 0]}, RATED | {"scores": [1, None]}),
}


@pytest.mark.parametrize("why", DROPPED)
def test_what_training_leaves_out_every_command_for_pairs_leaves_out_and_names(tmp_path, why, capsys):
    good, bad = DROPPED[why]
    prompts = [f"{i}" for i in range(20)]
    write(tmp_path / "in.jsonl", [bad] + [good | {"prompt": prompt} for prompt in prompts] + [bad] * 3)
    write(tmp_path / "test.jsonl", [{"prompt": "x", "chosen": "y"}])
    told = f"{why}: 4 pairs (rows 1, 22, 23, 24)"
    for words, files in (
        (["split", "in.jsonl", "--out", ".", "--held-out", 0.4], ["train.jsonl", "held-out.jsonl"]),
        (["dedupe", "in.jsonl", "--out", "out.jsonl"], ["out.jsonl"]),
        (["dedupe", "in.jsonl", "--near", "--by", "prompt", "--out", "out.jsonl"], ["out.jsonl"]),
        (["decontaminate", "in.jsonl", "--against", "test.jsonl", "--out", "out.jsonl"], ["out.jsonl"]),
    ):
        assert lines(shape(tmp_path, *words))["dropped"] == f"{told}; training leaves them out as well"
        assert sorted(row["prompt"] for name in files for row in read(tmp_path / name)) == sorted(prompts)
    write(tmp_path / "none.jsonl", [bad] * 2)
    for words in (
        ["split", "--out", "new"],
        ["dedupe", "--out", "new"],
        ["decontaminate", "--against", "test.jsonl", "--out", "new"],
    ):
        with pytest.raises(UserError, match=r"none.jsonl: no pair is left to learn from \(.*: 2 pairs \(rows 1, 2\)\)"):
            shape(tmp_path, words[0], "none.jsonl", *words[1:])
    check(Check(str(tmp_path / "in.jsonl")))
    assert told in capsys.readouterr().out
    convert(Convert(files=[str(tmp_path / "in.jsonl")], out="-"))
    assert told in capsys.readouterr().out


def test_one_answer_is_kept_as_it_is_one_to_learn_from(tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": f"{i}", "chosen": "a"} for i in range(3)])
    assert "dropped" not in lines(shape(tmp_path, "dedupe", "in.jsonl", "--out", "out.jsonl"))
    assert len(read(tmp_path / "out.jsonl")) == 3


def test_what_can_be_read_once_is_refused_where_it_is_read_again(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is no regular file"):
        check_files("out", str(tmp_path / "pipe"))
