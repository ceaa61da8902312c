"""Running the commands of data/shape.py, and rows for them of every kind."""

import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path

from hypothesis import strategies as st

from data.shape import SHAPE
from gpt.command import parse

words = st.sampled_from(["Add 2 and 3.", "add 2  and 3", "Add 2, and 4!", "Say hello.", "SAY HELLO", "é", "日本"])
answers = st.sampled_from(["5", "Five.", "five", "It is 5.", "Good morning!", "What?", "日本。"])
extra = st.dictionaries(
    st.sampled_from(["id", "x", "meta", "日", "tags"]),
    st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=4)  # half surrogate pairs too
    | st.none()
    | st.booleans()
    | st.lists(st.integers(), max_size=2),
    max_size=3,
)
rows = st.builds(
    lambda prompt, chosen, rejected, more: {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more,
    words,
    answers,
    answers | st.none(),
    extra,
)


def shape(folder: Path, *words) -> str:
    """What a command says, run in `folder` but in this process. Raises UserError where it refuses."""
    main, cls = SHAPE[words[0]]
    flags, said, before = parse(cls, [str(word) for word in words[1:]], "build.py"), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with redirect_stdout(said):
            main(flags)
    finally:
        os.chdir(before)
    return said.getvalue()


def lines(text: str) -> dict[str, str]:
    """What a report says, by the name at the head of each line; of several lines of one name the last."""
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


def write(file: Path, rows: list, as_list: bool = False) -> Path:
    """A file of rows, with escapes where a row is no Unicode."""
    written = [json.dumps(row) for row in rows]
    file.write_text(f"[{','.join(written)}]" if as_list else "\n".join(written))
    return file


def read(file: Path) -> list:
    """The rows of a JSONL file, by the standard library."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def texts(rows: list) -> list[str]:
    """Each row with the order of its fields, so that nan is equal to itself and 1 not to 1.0."""
    return [json.dumps(row) for row in rows]
