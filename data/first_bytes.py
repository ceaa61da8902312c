"""What a file is by its first bytes, where it is no JSON: packed, or in a format that nobody here reads."""

from io import BufferedReader
from pathlib import Path
from shlex import quote

from gpt.untrusted import shown

PACKED = {"gzip": b"\x1f\x8b", "Parquet": b"PAR1"}  # what they begin with
FOREIGN: dict[
    str, bytes | tuple[bytes, ...]
] = {  # what else files begin with that people have, none of which JSON does
    "a zip archive; unpack it first": b"PK\x03\x04",
    "packed by bzip2; unpack it first": b"BZh",
    "packed by xz; unpack it first": b"\xfd7zXZ",
    "packed by Zstandard; unpack it first": b"\x28\xb5\x2f\xfd",
    "in Arrow's format; save it as Parquet or JSON": b"ARROW1",
    "text in UTF-16; save it as UTF-8": (b"\xff\xfe", b"\xfe\xff"),
}


def packing(file: BufferedReader) -> str:
    """ "gzip" or "Parquet", as its first bytes say, which stay unread; "" for a file that is neither."""
    first = file.peek(4)
    return next((name for name, magic in PACKED.items() if first.startswith(magic)), "")


def foreign(head: bytes) -> str:
    """What a file that begins so is, and what to do; "" where nothing is known of it."""
    return next((what for what, magic in FOREIGN.items() if head.startswith(magic)), "")


def no_json(first: str) -> str:
    """The first line of a file that does not even begin as JSON does, and what it may be."""
    if first.startswith("<"):
        hint = "it looks like a page of the web: was it downloaded whole, by the right address?"
    elif "," in first or "\t" in first:
        by = "" if "," in first else r", delimiter='\t'"
        hint = f"if it is a table: csv.DictReader(file{by}) of Python's csv gives each row as an object for json.dumps"
    else:
        hint = "a file is one JSON list, or one JSON object a line"
    return f"{shown(first)}; {hint}"


def unpacking(path: Path) -> str:
    """The command that makes a file to read of one that is packed, in no other's place."""
    name = path.name.split(".")[0] or "pairs"
    while (out := path.with_name(f"{name}.jsonl")).exists():
        name += "-unpacked"
    return f"python data/build.py convert {quote(str(path))} --out {quote(str(out))}"
