"""--help of every command of every script, as a newcomer reads it."""

import runpy
import shlex

import pytest

import gpt.command
from gpt.command import parse
from gpt.help import FIRST, examples
from tests.processes import ROOT

# They speak for other scripts, and parse by argparse alone: it is launch.sh that calls them
INTERNAL = ("gpt/ending.py", "gpt/launch/launcher.py", "gpt/launch/preflight.py")


def scripts() -> list[str]:
    files = [file for room in ("gpt", "data", "dpo") for file in sorted((ROOT / room).rglob("*.py"))]
    named = [str(file.relative_to(ROOT)) for file in files if '__name__ == "__main__"' in file.read_text("utf-8")]
    return [name for name in named if name not in INTERNAL]


def commands() -> dict[str, type]:
    """Every command line's beginning with its flags, such as "data/build.py check", as the script itself gives them to run."""
    found: dict[str, type] = {}
    true = gpt.command.run
    try:
        for name in scripts():
            given: list = []
            gpt.command.run = lambda *words, given=given: given.extend(words)
            runpy.run_path(str(ROOT / name), run_name="__main__")
            if callable(given[0]):
                found[name] = given[1]
            else:
                found |= {f"{name} {word}": cls for word, (_, cls) in given[0].items()}
    finally:
        gpt.command.run = true
    return found


COMMANDS = commands()


@pytest.fixture(params=COMMANDS)
def command(request, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    return request.param


def shown(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(COMMANDS[command], ["--help"], command)
    assert caught.value.code == 0
    return capsys.readouterr().out


def sections(text: str) -> dict[str, list[str]]:
    """The flags below each heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line[:-1]
        elif line.startswith("  --"):
            found.setdefault(heading, []).append(line.split()[0].rstrip(","))
    return found


def test_every_script_is_looked_at():
    assert {name.split()[0] for name in COMMANDS} == set(scripts()) and len(COMMANDS) >= 19


def test_there_is_an_example_and_all_of_them_parse(command, capsys):
    given = examples(COMMANDS[command])
    text = shown(command, capsys)
    assert given and all(f"  {line}" in text.splitlines() for line in given)
    for line in given:
        words = shlex.split(line, comments=True)
        script, *word = command.split()
        at = words.index(script) + 1
        assert words[at : at + len(word)] == word
        parse(COMMANDS[command], words[at + len(word) :])


def test_it_begins_with_usage_and_what_the_command_does_in_a_sentence(command, capsys):
    usage, said = shown(command, capsys).split("\n\n", 1)
    assert usage.startswith(f"usage: {command}") and usage.endswith("[flags]")
    sentence = (COMMANDS[command].__doc__ or "").strip().split("\n\n")[0]
    assert (
        sentence[0].isupper()
        and sentence.endswith(".")
        and " ".join(said.split()).startswith(" ".join(sentence.split()))
    )


def test_no_line_is_wider_than_the_terminal(command, capsys):
    assert not [line for line in shown(command, capsys).splitlines() if len(line) > 100]


@pytest.mark.parametrize("columns", [60, 160])
def test_it_has_the_width_of_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [line for line in shown("dpo/train.py", capsys).splitlines() if not line.startswith("  torchrun")]
    assert columns - 25 < max(map(len, lines)) <= columns


def test_what_matters_first_comes_first_and_is_five_flags_at_most(command, capsys):
    found = sections(shown(command, capsys))
    heading, flags = next(iter(found.items()))
    assert heading == FIRST and 1 <= len(flags) <= 5
    assert sum(found.values(), []) == list(dict.fromkeys(sum(found.values(), [])))


def test_every_flag_says_what_it_is_for_and_what_it_takes(command, capsys):
    text = " ".join(shown(command, capsys).split())
    for field in COMMANDS[command].__dataclass_fields__.values():
        help = " ".join(field.metadata["help"].split())
        assert len(help) > 3 and help in text, field.name
    for word in (" STR ", " INT ", " FLOAT ", " None", "MISSING", "False", "default: 600.0"):
        assert word not in text
