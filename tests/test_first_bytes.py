"""data/first_bytes.py: files that are no JSON are called by what they are."""

import bz2
import lzma
import zipfile
from pathlib import Path

import pytest

from data.reading import stream_rows
from data.sources import sources
from gpt.command import UserError

ROW = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


def zipped(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("pairs.jsonl", ROW)


def arrow(file: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is absent: it writes Arrow (pip install pyarrow)")
    table = pyarrow.table({"prompt": ["p"]})
    with pyarrow.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)


FILES = {
    "is a zip archive; unpack it first": zipped,
    "is packed by bzip2; unpack it first": lambda file: file.write_bytes(bz2.compress(ROW.encode())),
    "is packed by xz; unpack it first": lambda file: file.write_bytes(lzma.compress(ROW.encode())),
    "is in Arrow's format; save it as Parquet or JSON": arrow,
    "is text in UTF-16; save it as UTF-8": lambda file: file.write_text(ROW, encoding="utf-16"),
    "line 1, column 2: bad JSON: an object of several lines": lambda file: file.write_text(ROW.replace("{", "{\n")),
}


@pytest.mark.parametrize("expected", FILES)
def test_a_file_in_a_foreign_format_is_called_what_it_is(tmp_path, expected):
    FILES[expected](tmp_path / "pairs")
    for read in (stream_rows, lambda file: (row for source in sources(str(file)) for row in source.rows)):
        with pytest.raises(UserError) as caught:
            list(read(tmp_path / "pairs"))
        assert str(caught.value).startswith(f"{tmp_path / 'pairs'}") and expected in str(caught.value)
