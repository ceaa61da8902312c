"""What a bench measured, where and when, kept in docs/measured/; and the parts of the pages that are made of it.

    ./launch.sh bench --record           measures, writes docs/measured/bench.json and its parts of the pages
    python tests/bench/record.py         makes all parts again, from docs/measured/

A part stands between `<!-- measured: NAME -->` and `<!-- /measured -->`. It is what `parts` of the module that measured
it makes of the record, and of nothing else; tests/test_measured.py fails where a page says something other than its record.

This file imports nothing heavy; tests/bench/calls.py says why.
"""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt.command import run
from gpt.files import whole

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs/measured"
PAGES = [ROOT / "README.md", ROOT / "README.ko.md", *sorted((ROOT / "docs").glob("*.md"))]
PART = re.compile(r"(<!-- measured: ([\w-]+) -->\n)(.*?)(<!-- /measured -->\n)", re.DOTALL)
# A record, and who makes parts of it
MAKERS = {
    name: f"tests.bench.{name}" for name in ("growth", "adapters", "generation", "reading", "convert", "checking")
}
MAKERS |= {"bench": "tests.bench.table", "questions": "tests.bench.questions", "torture": "tests.torture.run"}
MAKERS |= {name: "tests.bench.commands" for name in ("demo", "online", "compare", "large")}

KEEP = "keep the figures in docs/measured/, and write their parts of the pages"  # what a flag --record does

Parts = dict[str, list[str]]  # the name of a part: its lines


@dataclass(frozen=True)
class Flags:
    """Make the parts of the pages that are measured, from the records of docs/measured/."""


def keep(name: str, command: str, figures: Any) -> None:
    """Write a record, and the pages that have parts of it."""
    machine = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    machine["torch"] = version("torch").partition("+")[0]
    made = {"command": command, "day": date.today().isoformat(), "machine": machine, "figures": figures}
    with whole(RECORDS / f"{name}.json") as file:
        json.dump(made, file, indent=1, ensure_ascii=False)
        file.write("\n")
    fill([name])


def as_called(command: str) -> str:
    """The command with the flags that it was given now: what was measured in part only says so."""
    return " ".join([command, *(shlex.quote(word) for word in sys.argv[1:] if word != "--record")])


def processor() -> str:
    """What the processor calls itself, and what makes its products fast."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)[1].strip()
    except (OSError, TypeError):
        return platform.machine()
    fast = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {flag}" in text), "")
    return f"{name} with {fast}" if fast else name


def where(made: dict) -> str:
    """The machine and the day of a record, in words."""
    machine = made["machine"]
    return f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}, {made['day']}"


def made_part(about: list[str], table: list[str]) -> list[str]:
    """The lines of a part: what was measured and where, as it was printed, and the table."""
    return ["```", *about, "```", "", *table]


def read(name: str) -> dict:
    """A record."""
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def parts_of(name: str) -> Parts:
    """The parts that are made of a record: of its figures, or as they were printed before figures were kept."""
    made = read(name)
    return made["printed"] if "printed" in made else resolve_name(f"{MAKERS[name]}:parts")(made)


def filled(text: str, parts: Parts) -> str:
    """A page with these parts in it; any other is left as it stands."""

    def put(found: re.Match) -> str:
        begin, name, old, end = found.groups()
        return begin + ("".join(f"{line}\n" for line in parts[name]) if name in parts else old) + end

    return PART.sub(put, text)


def standing(text: str) -> Iterator[tuple[str, list[str]]]:
    """(name, lines) of each part of a page."""
    for _, name, lines, _ in PART.findall(text):
        yield name, lines.splitlines()


def fill(names: list[str]) -> None:
    """Write the parts of these records into the pages."""
    parts = {part: lines for name in names for part, lines in parts_of(name).items()}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (now := filled(text, parts)) != text:
            with whole(page) as file:
                file.write(now)
            print(f"written: {page.relative_to(ROOT)}")


def main(flags: Flags) -> None:
    fill(sorted(path.stem for path in RECORDS.glob("*.json")))


if __name__ == "__main__":
    run(main, Flags)
