"""data/beside.py: no two files have one file beside them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.beside import beside, check_out
from gpt.command import UserError

NAMES = st.lists(
    st.sampled_from(["pairs", "v1", ".jsonl", ".json", ".", "replies", "answers", ".replies"]), min_size=1, max_size=4
).map("".join)


@given(NAMES, NAMES)
def test_another_file_has_another_beside_it(one, other):
    if {one, other} & {".", ".."}:
        return
    places = [beside(Path("folder", name), what) for name in (one, other) for what in ("replies", "answers")]
    assert len(set(places)) == (2 if one == other else 4)
    assert not {Path("folder", one), Path("folder", other)} & set(places) or one != other


@pytest.mark.parametrize(
    "out, kept",
    [
        ("pairs.jsonl", "pairs.replies.jsonl"),
        ("a.b/pairs.v1.jsonl", "a.b/pairs.v1.replies.jsonl"),
        ("pairs.v1", "pairs.v1.replies"),
        ("pairs.v2", "pairs.v2.replies"),
        ("pairs", "pairs.replies"),
        ("pairs.json", "pairs.json.replies"),
        ("a.b/pairs", "a.b/pairs.replies"),
    ],
)
def test_the_names(out, kept):
    assert beside(Path(out), "replies") == Path(kept)


@pytest.mark.parametrize("out", ["-", "", ".", "/"])
def test_what_is_no_file_is_refused(out):
    with pytest.raises(UserError, match="name a file"):
        check_out(out)
