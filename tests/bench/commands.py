"""What the commands of the pages print, and how long they take, as a user would run them.

    python tests/bench/commands.py                          all of them, some 40 minutes on 2 cores
    python tests/bench/commands.py --which demo online      these

Each runs once, in a folder of its own, with nothing kept from before. Progress bars, which go to stderr, are left out.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copy, copytree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dpo.loss_table import table
from gpt.command import UserError, flag, run
from tests.bench.calls import REAL_PAIRS, ROOT, environment
from tests.bench.record import KEEP, Parts, keep

LAUNCH = "./launch.sh"
LARGE = "torchrun --nproc_per_node=2 dpo/train.py --init random:gpt2 --steps 3 --out runs/large --pairs"
COMMANDS = {
    "demo": LAUNCH,
    "online": f"{LAUNCH} online",
    "compare": f"{LAUNCH} compare",
    "large": f"{LARGE} {REAL_PAIRS.name}",
}


@dataclass(frozen=True)
class Flags:
    """Run commands of the pages, and keep what they print and how long they take."""

    which: list = flag((), f"which; none: all of {', '.join(COMMANDS)}")
    record: bool = flag(False, KEEP)


def main(flags: Flags) -> None:
    if unknown := set(flags.which) - set(COMMANDS):
        raise UserError(f"--which: there is no {min(unknown)!r}; there are {', '.join(COMMANDS)}")
    for name in flags.which or COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            found = taken(COMMANDS[name], Path(folder))
            if name == "compare":
                found |= json.loads(Path(folder, "runs/compare/compare.json").read_text(encoding="utf-8"))
        print(f"{found['printed']}\n{COMMANDS[name]}: {found['seconds']:.0f} s", flush=True)
        if flags.record:
            keep(name, COMMANDS[name], found)


def taken(command: str, folder: Path) -> dict:
    """{"seconds", "printed"} of a command, given in a folder that has a copy of the project."""
    for name in ("dpo", "gpt", "data"):
        copytree(ROOT / name, folder / name)
    copy(ROOT / "launch.sh", folder)
    if REAL_PAIRS.exists():
        (folder / REAL_PAIRS.name).symlink_to(REAL_PAIRS)
    own = environment(folder / "cache") | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = command.replace("torchrun", "torchrun --local-addr 127.0.0.1").split()
    began = time.monotonic()
    done = subprocess.run(words, cwd=folder, env=own, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{command} ended with {done.returncode}")
    return {"seconds": time.monotonic() - began, "printed": done.stdout}


def demo(found: dict) -> list[str]:
    """All, but of the answers side by side two."""
    blocks = found["printed"].strip("\n").split("\n\n")
    *_, written, report = blocks[-1].splitlines()
    first_answers = next(number for number, block in enumerate(blocks) if "\n  before  " in block)
    return ["```", *"\n\n".join(blocks[: first_answers + 2]).splitlines(), "...", written, report, "```"]


def online(found: dict) -> list[str]:
    """The table of the rounds."""
    lines = found["printed"].splitlines()
    first = next(number for number, line in enumerate(lines) if "; score is " in line)
    last = next(number for number, line in enumerate(lines) if line.startswith("in all"))
    return ["```", *lines[first : last + 1], "```"]


def large(found: dict) -> list[str]:
    """What it says of speed, memory and the held-out pairs."""
    lines = [line for line in found["printed"].splitlines() if re.match("numbers|reference asked|held out|done", line)]
    return ["```", *lines, "```"]


def compare(found: dict) -> list[str]:
    """What the table is of, and the table."""
    return [found["caption"], "", *table(found["rows"])]


SHOWN: dict[str, Callable[[dict], list[str]]] = {"demo": demo, "online": online, "compare": compare, "large": large}


def parts(made: dict) -> Parts:
    """What a page shows of a command."""
    name = next(name for name, command in COMMANDS.items() if command == made["command"])
    return {name: SHOWN[name](made["figures"])}


if __name__ == "__main__":
    run(main, Flags)
