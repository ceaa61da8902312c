"""docs/: every listing is what the command prints, every quoted line stands in the source, every command and link is real."""

import ast
import re
import textwrap

import pytest
import torch
from torch.nn.functional import logsigmoid

from dpo.losses import Scores, parse_loss
from dpo.losses.pairwise import dpo
from dpo.metrics import sums
from dpo.one_pair import SHORT, walk_of
from dpo.rows import Ids, collate
from dpo.walk import STOPS, shown
from gpt.attention import may_look
from tests.processes import ROOT

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
TOUR = PAGES["tour.md"]
LAUNCHED = re.findall(
    r"^  (\w+) .*", (ROOT / "launch.sh").read_text(encoding="utf-8").split("usage()")[1], re.MULTILINE
)


def marked(kind: str, fence: str = "") -> list:
    """(page, what the mark says, the lines of the block below it) for each `<!-- kind: ... -->` of all pages."""
    pattern = rf"<!-- {kind}: (.*?) -->\n```{fence}\n(.*?)^```$"
    return [
        pytest.param(said, block.splitlines(), id=f"{name}-{said}")
        for name, text in PAGES.items()
        for said, block in re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    ]


# Listings


@pytest.fixture(scope="module")
def walk():
    return walk_of("", 0, "", parse_loss("dpo"))


NUMBER = re.compile(r"[-+]?\d+\.\d+")


@pytest.mark.parametrize("stop, block", marked("walk"))
def test_a_stop_of_the_tour_shows_what_the_command_prints(walk, stop, block):
    """The last digit of a number may be another on another processor; all else is as printed."""
    printed = shown(STOPS[int(stop) - 1], walk)
    how = f"put there what `python dpo/walk.py --stop {stop}` prints"
    assert [NUMBER.sub("#", line) for line in block] == [NUMBER.sub("#", line) for line in printed], how
    for line, expected in zip(block, printed):
        there, wanted = (list(map(float, NUMBER.findall(one))) for one in (line, expected))
        assert there == pytest.approx(wanted, abs=1.5e-3), how


def test_the_tour_has_all_ten_stops_in_order_each_with_code_a_command_and_a_listing():
    parts = re.split(r"^## ", TOUR, flags=re.MULTILINE)[1:]
    assert len(parts) == len(STOPS) == 10
    for number, part in enumerate(parts, 1):
        assert part.startswith(f"{number}. ")
        assert f"`python dpo/walk.py --stop {number}`" in part and f"<!-- walk: {number} -->" in part
        assert "<!-- code: " in part and re.search(r"^    \S", part, re.MULTILINE)


def test_numbers_that_the_tour_speaks_of_are_those_of_its_listings(walk):
    text = " ".join(TOUR.split())
    rose, fell = re.search(r"rose by (\d\.\d+) nats and the rejected one fell by (\d\.\d+)", text).groups()
    printed = "\n".join(shown(STOPS[8], walk))
    assert f"+{rose} " in printed and f"-{fell} " in printed
    assert f"The pair is row {SHORT} of the embedded set" in text
    places, of, _ = walk.batch.targets
    wanted, at, row = re.search(
        r"(\d+) log-probabilities are wanted, at (\d+) places, and of the (\d+) places", TOUR
    ).groups()
    assert (int(wanted), int(at), int(row)) == (len(of), len(places), walk.batch.tokens.shape[1])


# Quoted code


def source_of(path: str, name: str) -> list[str]:
    """The lines of a function, class or method, by its qualified name."""
    text = (ROOT / path).read_text(encoding="utf-8")
    node = ast.parse(text)
    for part in name.split("."):
        node = next(one for one in node.body if getattr(one, "name", None) == part)
    return text.splitlines()[node.lineno - 1 : node.end_lineno]


def is_quoted(block: list[str], source: list[str]) -> bool:
    """Whether the block is of lines of the source that follow each other, but where `...` stands between."""
    rest = [line.strip() for line in source]
    for part in "\n".join(line.strip() for line in block).split("\n...\n"):
        wanted = part.split("\n")
        found = next((i for i in range(len(rest)) if rest[i : i + len(wanted)] == wanted), None)
        if found is None:
            return False
        rest = rest[found + len(wanted) :]
    return True


@pytest.mark.parametrize("where, block", marked("code", "python"))
def test_quoted_code_stands_in_the_source(where, block):
    path, name = where.split()
    assert is_quoted(block, source_of(path, name)), f"{path}, {name} reads otherwise"


def test_a_line_that_is_not_there_or_in_another_order_would_be_seen():
    source = ["def f():", "    a = 1", "    b = 2", "    c = 3"]
    assert is_quoted(["a = 1", "...", "c = 3"], source) and is_quoted(["    b = 2", "    c = 3"], source)
    for block in (["a = 1", "c = 3"], ["a = 2"], ["c = 3", "...", "a = 1"]):
        assert not is_quoted(block, source)


# Pictures: the pair 10 11 12, 20 21 0, 30 0


def pictures(stop: int) -> str:
    part = TOUR.split(f"\n## {stop}. ")[1].split("\n## ")[0]
    part = re.sub(r"^```.*?^```$", "", part, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in part.splitlines() if line.startswith("    "))


def line_of(picture: str, name: str) -> list[int]:
    found = re.search(rf"^    {name} +(.*)$", picture, re.MULTILINE)[1]
    return [int(n) for n in re.findall(r"-?\d+", found)]


SMALL = Ids([10, 11, 12], [20, 21, 0], [30, 0])


def test_the_pictures_of_the_row_and_its_ids():
    head = TOUR.split("\n## ")[0]
    assert "    prompt  10 11 12     chosen  20 21 0     rejected  30 0\n" in head
    written = [[int(n) for n in re.findall(r"\d+", text)] for text in re.findall(r'": "([\d ]+)"', pictures(1))]
    assert written == [SMALL.prompt, SMALL.chosen[:-1], SMALL.rejected[:-1]]
    parts = [
        [int(n) for n in re.findall(r"\d+", part)] for line in pictures(2).splitlines() for part in line.split("|")
    ]
    assert parts == [*written[:2], [], written[2]]
    for line, ids in zip(pictures(3).splitlines(), SMALL, strict=True):
        text, after = line.split('"')[1:]
        assert list(map(int, after.split())) == ids and list(map(int, text.split())) == [i for i in ids if i]


def test_the_pictures_of_the_tree_and_of_the_targets():
    batch, picture = collate([SMALL]), pictures(4)
    assert line_of(picture, "tokens") == batch.tokens[0].tolist()
    assert line_of(picture, "positions") == batch.positions[0].tolist()
    sizes = batch.tree.sizes
    assert line_of(picture, "piece") == [piece for piece, size in enumerate(sizes) for _ in range(size)]
    looks = [line.split()[1:] for line in picture.splitlines() if re.match(r" +\d\d +[x.]", line)]
    assert looks == [["x" if may else "." for may in row] for row in may_look(batch.tree).tolist()]
    asked = pictures(5)
    assert line_of(asked, "asked of place") == batch.targets.places[batch.targets.of].tolist()
    assert line_of(asked, "comes") == batch.targets.tokens.tolist()
    whose = re.search(r"whose +(.*)", asked)[1].split()
    assert whose == ["cr"[number] for number in batch.answer.tolist()]


def test_the_pictures_from_log_probabilities_to_rewards():
    tokens, said = line_of(pictures(6), "comes"), line_of(pictures(6), "log pi")
    assert tokens == SMALL.chosen + SMALL.rejected and line_of(pictures(6), "log pi_ref") == said
    chosen, rejected = sum(said[:3]), sum(said[3:])
    assert line_of(pictures(7), "chosen") == [*(said[0], *map(abs, said[1:3])), chosen, chosen, 0]  # -1 - 2 - 1 = -4
    assert line_of(pictures(7), "rejected")[:4] == [said[3], abs(said[4]), rejected, rejected]
    start = Scores(*(torch.tensor([float(n)]) for n in (chosen, rejected, chosen, rejected, 3, 2)))
    later = start._replace(chosen=start.chosen + 1, rejected=start.rejected - 2)
    for name, scores in (("start", start), ("later", later)):
        beta, a, b, loss = map(float, re.findall(r"-?\d+\.?\d*", re.search(rf"    {name} (.*)", pictures(8))[1])[:4])
        assert (a, b) == (float(scores.gain_chosen), float(scores.gain_rejected))
        assert loss == pytest.approx(float(dpo(scores, beta)), abs=5e-5)
        leaves = scores._replace(
            **{side: getattr(scores, side).clone().requires_grad_() for side in ("chosen", "rejected")}
        )
        pulls = torch.autograd.grad(dpo(leaves, beta).sum(), [leaves.chosen, leaves.rejected])
        found = [float(n) for n in NUMBER.findall(re.search(rf"    {name} (.*)", pictures(9))[1])]
        assert found == pytest.approx([beta * float(scores.log_ratio), *map(float, pulls)], abs=5e-5)
    batch, loss = collate([SMALL]), parse_loss("dpo")
    found = sums(later, loss(later), batch, torch.ones(1), loss)
    for name, end in (("chosen", "= 0.1 "), ("rejected", "= -0.2 "), ("margins", " 0.3 "), ("accuracies", " 1$")):
        part = re.search(rf"rewards/{name}(?:(?!rewards/).)*", pictures(10))[0]
        assert re.search(end, part) and float(found[f"rewards/{name}"]) == pytest.approx(
            float(re.findall(r"-?[\d.]+", part)[-1])
        )
    assert float(-logsigmoid(torch.tensor(0.3))) == pytest.approx(0.5544, abs=5e-5)


# Numbers


@pytest.mark.parametrize("name", [name for name in PAGES if name != "network.md"])
def test_a_number_that_a_page_speaks_of_stands_in_one_of_its_tables_or_listings(name):
    """Those with a decimal point, but where they are a setting: within quotes, or behind the name of one."""
    text = re.sub(r"^    .*$", "", PAGES[name], flags=re.MULTILINE)  # pictures have tests of their own
    every = "\n".join(PAGES.values())
    listings = [
        block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", every, re.MULTILINE | re.DOTALL) if not kind
    ]
    kept = "\n".join(re.findall(r"^\|.*$", every, re.MULTILINE) + listings)
    prose = re.sub(r"^\|[^\n]*$|^```.*?^```$|`[^`]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"(?:beta|rate)( |s |\s= |\sof )*[\d.]+( to [\d.]+)?", "", re.sub(r"\s+", " ", prose))
    said = re.findall(r"\d+\.\d+", re.sub(r"\(http\S+\)", "", prose))
    assert not [number for number in said if not re.search(rf"(?<![\d.]){re.escape(number)}", kept)]


@pytest.mark.parametrize("name", [name for name in PAGES if name != "network.md"])
def test_lines_of_a_page_are_no_longer_than_those_of_the_source(name):
    text = re.sub(r"<!-- measured: .*?<!-- /measured -->", "", PAGES[name], flags=re.DOTALL)  # as the command writes it
    for line in text.splitlines():
        assert len(line) <= 130 or line.startswith("|"), textwrap.shorten(line, 80)
