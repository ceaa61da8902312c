"""README.md, docs/ and what else is read: links lead somewhere, every command can be given, tables agree with each other."""

import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from data.formats import FORMATS
from data.pairs import split
from data.rules import embedded_pairs
from data.tasks import FAMILIES
from dpo.compare import Flags as CompareFlags
from dpo.losses.family import LOSSES
from dpo.train import Flags as TrainFlags
from gpt import command
from gpt.command import parse
from gpt.config_json import read_config
from gpt.ending import STOPPED
from gpt.launch.call_in import PATIENCE
from gpt.launch.knock import MOST
from gpt.launch.preflight import SOON
from gpt.launch.preflight import Flags as Preflight
from gpt.model import GPT, GPTConfig
from tests.bench.prepare import STEPS
from tests.bench.questions import BETAS
from tests.bench.questions import Flags as QuestionFlags
from tests.bench.record import parts_of, read
from tests.processes import ROOT
from tests.test_preflight import TOO_LONG
from tests.torture.two_machines import TIMEOUT

PAGES = [path for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]) if path.name != "CHANGELOG.md"]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
SCRIPT = re.compile(r"(?<![\w/.-])((?:gpt|data|dpo|tests)/[\w/]+\.py)\b")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAUNCH = {"train": "dpo/train.py", "": "dpo/train.py", "scratch": "dpo/train.py", "compare": "dpo/compare.py"}
LAUNCH |= {"online": "dpo/online.py", "torture": "tests/torture/run.py", "bench": "tests/bench/table.py"}
LAUNCH |= {"bench growth": "tests/bench/growth.py", "check": "dpo/train.py"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    for target in LINK.findall(FENCE.sub("", text_of(name))):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            place = (ROOT / name).parent / path if path else ROOT / name
            assert place.exists(), target
            assert not anchor or anchor in anchors(place.read_text(encoding="utf-8")), target


def test_every_source_file_is_on_the_map():
    targets = [target for target in LINK.findall(text_of("docs/map.md")) if target.endswith(".py")]
    linked = {str((ROOT / "docs" / target).resolve().relative_to(ROOT)) for target in targets}
    files = {
        str(path.relative_to(ROOT))
        for room in ("gpt", "data", "dpo")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert linked == files, "docs/map.md: say what each file is for, and of no other"


class Said(NamedTuple):
    """A command that a page gives."""

    page: str
    line: str


def commands() -> Iterator[Said]:
    """The lines of shell blocks, and what stands between backticks and begins as a command does."""
    for name in NAMES:
        text = text_of(name)
        for language, block in FENCE.findall(text):
            if language in ("sh", "bash", "console"):
                for line in block.replace("\\\n", " ").splitlines():
                    if line.strip() and not line.startswith("#"):
                        yield Said(name, line.removeprefix("$ "))
        for inline in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", FENCE.sub("", text)):
            if re.match(r"(\w+=\S+ )*(python (?!-m pip|-c)|\./launch\.sh|torchrun --)", inline):
                yield Said(name, " ".join(inline.split()))


COMMANDS = list(commands())


@pytest.fixture(scope="module")
def flags_of() -> Callable[[str, list[str]], tuple[type, list[str]]]:
    """(the dataclass of a script's flags, the words that are flags): as the script itself gives it to gpt.command.run, where
    it has several commands by its first word."""
    known: dict[str, dict | type] = {}

    def given(name: str, words: list[str]) -> tuple[type, list[str]]:
        if name not in known:

            def note(commands, cls=None):
                known[name] = cls or {word: cls for word, (_, cls) in commands.items()}

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(command, "run", note)
                runpy.run_path(str(ROOT / name), run_name="__main__")
        found = known[name]
        return (found[words[0]], words[1:]) if isinstance(found, dict) else (found, words)

    return given


def words_of(line: str) -> list[str]:
    """The words of a command, without what comes before and after it: variables, comments, a file that it is written to."""
    words = shlex.split(line.partition("  #")[0].partition(" > ")[0])
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        del words[0]
    return words


@pytest.mark.parametrize("said", COMMANDS, ids=lambda said: f"{said.page}: {said.line[:60]}")
def test_every_command_can_be_given(said, flags_of):
    words = words_of(said.line)
    if not words or "..." in words:
        return
    if words[0] == "sbatch":
        words = words[next(i for i, word in enumerate(words) if word.endswith("launch.sh")) :]
    if words[0].endswith("launch.sh"):
        word = words[1] if len(words) > 1 and not words[1].startswith("-") else ""
        word = "bench growth" if words[1:3] == ["bench", "growth"] else word
        assert f"\n  {word or '(none)'} " in text_of("launch.sh"), "its help does not name this command"
        name, rest = LAUNCH.get(word), words[1 + len(word.split()) :]
        if not name or word == "check" and not rest:
            return
    else:
        assert words[0] in ("python", "torchrun", "pip", "ruff"), "what is this command?"
        name = next((word for word in words if SCRIPT.fullmatch(word)), None)
        if name is None and words[:2] == ["python", "-m"] and words[2] == "pytest":
            assert all((ROOT / word.partition("::")[0]).exists() for word in words[3:] if word.startswith("tests"))
        if name is None:
            return
        rest = words[words.index(name) + 1 :]
    assert (ROOT / name).is_file()
    if "gpt.command" not in text_of(name):
        return
    if rest and rest[0] not in ("--help", "-h"):
        parse(*flags_of(name, rest))


# Numbers


def cells(text: str) -> list[list[str]]:
    """The rows of all tables of a page."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_a_number_of_the_readme_stands_in_a_table_or_a_listing_that_a_command_printed():
    """Those with a decimal point, but where they are a setting, within quotes."""
    pages = "\n".join(text_of(name) for name in NAMES if name.startswith("docs/"))
    listings = [block for language, block in FENCE.findall(pages + text_of("README.md")) if not language]
    printed = "\n".join([*re.findall(r"^\|.*$", pages, re.MULTILINE), *listings])
    prose = re.sub(r"^\| `--.*$", "", FENCE.sub("", text_of("README.md")), flags=re.MULTILINE)  # flags have defaults
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|(beta = |torch |TRL |Apache-)[\d.]+|1\.2M", "", prose)
    said = re.findall(r"(?<![\d.])\d+\.\d+", prose)
    assert len(said) > 20
    assert not [number for number in said if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", printed)]


def test_what_the_readme_says_of_speed_is_what_was_measured():
    measured = {row[0]: row for row in cells("\n".join(parts_of("bf16")["bench-bf16"]))}
    names = {"ours": "ours", "the book's loop, float32": "seed fp32", "the book's loop, bf16": "seed bf16"}
    names |= {"TRL 1.16, bf16": "trl bf16"}
    found = {row[0]: row for row in cells(text_of("README.md")) if row[0] in names}
    assert found.keys() == names.keys()
    for name, (_, speed, ratio, peak, loss) in found.items():
        row = measured[names[name]]
        assert (speed, ratio, peak, loss) == (row[1].split(" ")[0], row[2], row[3], row[5])


def test_what_the_readme_says_of_losses_is_what_was_compared():
    rows = {row[0]: row for row in cells("\n".join(parts_of("compare")["compare"]))}
    found = [row for row in cells(text_of("README.md")) if row[0] in ("the start", "dpo", "apo_zero") and len(row) == 5]
    assert len(found) == 3
    for name, *shown in found:
        assert shown == rows[name][1:5]


def tortured() -> tuple[str, str, str]:
    """(tries, how many held, minutes), of which the first two are those of all rows."""
    about, table = (lines := parts_of("torture")["torture"])[1], "\n".join(lines)
    tries, held, minutes = re.match(r"(\d+) tries, (\d+) held, in (\d+) minutes; ", about).groups()
    assert [int(tries), int(held)] == [sum(int(row[place]) for row in cells(table)[2:]) for place in (1, 2)]
    return tries, held, minutes


def test_what_the_readme_counts_is_counted_again():
    text = " ".join(text_of("README.md").split())
    tries, held, minutes = tortured()
    assert f"{tries} times in {minutes} minutes: {held} held" in text and tries == held
    assert f"took {read('demo')['figures']['seconds']:.0f} seconds after installation" in text
    assert len(LOSSES) == 21 and "Twenty-one, from" in text
    assert len(FAMILIES) == 17 and "Seventeen families" in text
    assert len(FORMATS) == 6 and "any of six formats" in text
    config = read_config(ROOT / "data/tiny/config.json")
    size = GPT.shape(config).parameter_count
    assert f"{size:,} parameters" in text and f"model of {size / 1e6:.1f}M parameters" in text
    training, held_out = split(embedded_pairs(), 0.1)
    assert f"{len(training):,} to train on, {len(held_out):,} held out" in text
    assert f"{len(held_out):,} held-out prompts" in text


# What whole numbers of the prose are, where no table, listing or quoted setting has them: as the code has them now
SETTINGS = {
    f"{TrainFlags.timeout:.0f}",
    f"{MOST:,}",  # bytes of what a node may say
    str(Preflight.master_port),
    str(STOPPED),
    str(STEPS["cpu"]),
    str(CompareFlags.steps),
    str(CompareFlags.batch),
    *("16", "64"),  # tokens of prompts and answers: tests/bench/generation.py
    f"{GPT.shape(GPTConfig()).parameter_count / 1e6:.0f}",  # GPT-2's, in millions
    f"{len(split(embedded_pairs(), 0.1)[1]):,}",  # held-out prompts
    str(QuestionFlags.prompts),
    f"{max(BETAS) / min(BETAS):.0f}",  # how far the betas of docs/questions.md lie apart
    f"{int(re.search(r'--steps (2500) ', text_of('launch.sh'))[1]):,}",  # steps of SFT in scratch
    "1,100",  # the book's rows: tests/test_check.py
    "150",  # steps of the start of online: launch.sh
    "10",  # the best score: tests/test_questions.py
    "256",  # SHA-256
    "15",  # seconds, held to below
}


@pytest.mark.parametrize(
    "name", ["README.md", "docs/speed.md", "docs/reliability.md", "docs/losses.md", "docs/pairs.md", "docs/network.md"]
)
def test_a_whole_number_of_the_prose_is_printed_somewhere_or_a_setting_that_is_known(name):
    text = text_of(name)
    printed = "\n".join(re.findall(r"^\|.*$", text, re.MULTILINE) + [block for _, block in FENCE.findall(text)])
    prose = re.sub(r"^\|.*$", "", FENCE.sub("", text), flags=re.MULTILINE)
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->|(GPT-|bf|float|bfloat)\d+", "", prose)
    said = re.findall(r"(?<![\d.,\w])\d[\d,]*\d(?![\d.]*\d)", prose)
    known = SETTINGS | {*tortured(), f"{read('demo')['figures']['seconds']:.0f}"}  # held to where they stand, above
    assert not [n for n in said if n not in known and not re.search(rf"(?<![\d.,]){n}(?![\d,.]*\d)", printed)]


def test_what_is_said_of_a_network_that_fails_is_so():
    text = text_of("docs/network.md")
    assert SOON == PATIENCE and set(re.findall(r"(\d+) s\b", text)) == {f"{SOON:.0f}"} and TOO_LONG == 10
    ends = re.findall(r"seconds to the end of both ([\d.]+)", "\n".join(parts_of("torture")["torture"]))
    more = re.search(r"and some (\d+) more until", " ".join(text.split()))[1]
    assert max(map(float, ends)) == pytest.approx(TIMEOUT + int(more), abs=5)


# README.ko.md, which says what README.md says


def sections(name: str) -> list[str]:
    """A page cut at its headings, of any level."""
    return re.split(
        r"^#+ .*$", FENCE.sub(lambda block: block[0].replace("\n#", "\n "), text_of(name)), flags=re.MULTILINE
    )


def blocks(text: str) -> list[str]:
    """The fenced blocks, a command without the remark behind it."""
    return [re.sub(r" +# .*", "", block) for _, block in FENCE.findall(text)]


def code(text: str) -> list[str]:
    return sorted(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)))


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"`[^`]+`|\]\([^)]+\)", "", FENCE.sub("", text))))


def targets(text: str) -> list[str]:
    return sorted(re.sub(r"^#.*|README(\.ko)?\.md", "", target) for target in LINK.findall(FENCE.sub("", text)))


def test_the_korean_readme_has_the_sections_commands_outputs_numbers_and_links_of_the_english_one():
    english, korean = sections("README.md"), sections("README.ko.md")
    assert len(english) == len(korean)
    for number, (one, other) in enumerate(zip(english, korean)):
        for part in (blocks, code, numbers, targets):
            assert part(one) == part(other), f"section {number}: {' '.join(one.split())[:60]}"
        assert one.count("\n|") == other.count("\n|")


def test_a_number_or_command_that_was_changed_in_one_of_them_would_be_seen():
    text = "It took 54 seconds, `--beta` 0.1:\n```sh\n./launch.sh   # so\n```\n[there](docs/map.md)\n"
    assert blocks(text.replace("# so", "# 그렇게")) == blocks(text)
    assert numbers(text) == ["0.1", "54"] and code(text) == ["--beta"] and targets(text) == ["docs/map.md"]
    assert numbers(text.replace("54", "55")) != numbers(text)
    assert blocks(text.replace("launch.sh", "launch.sh test")) != blocks(text)


def test_the_python_of_the_readme_prints_what_stands_below_it(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code, printed = re.search(
        r"^```python\n(.*?)^```\n\n```\n(.*?)^```", text_of("README.md"), re.MULTILINE | re.DOTALL
    ).groups()
    exec(code, {})
    assert capsys.readouterr().out == printed
