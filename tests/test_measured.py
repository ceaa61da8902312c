"""docs/measured/: what the pages show is what was recorded, and what was recorded comes out again on this machine.

What a computer's speed decides is held to the record of a machine of the same kind, as a ratio, and loosely: machines are
shared. It fails where the code has become something else than what was measured, and not where the day is a bad one.
"""

import json
import re

import pytest

from dpo.losses.family import LOSSES
from tests.bench import record
from tests.bench.commands import COMMANDS
from tests.bench.record import MAKERS, PAGES, RECORDS, filled, parts_of, processor, standing
from tests.processes import ROOT, call

NAMES = sorted(path.stem for path in RECORDS.glob("*.json"))
STANDING = [(page.name, name, lines) for page in PAGES for name, lines in standing(page.read_text(encoding="utf-8"))]
MADE = {part: lines for name in NAMES for part, lines in parts_of(name).items()}


@pytest.mark.parametrize("page, name, lines", STANDING, ids=lambda value: value if isinstance(value, str) else "")
def test_a_page_shows_what_was_recorded(page, name, lines):
    assert lines == MADE[name], "run python tests/bench/record.py"


def test_every_part_of_every_record_stands_in_a_page_and_no_table_is_marked_otherwise():
    assert {name for _, name, _ in STANDING} == MADE.keys()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- measured:") == text.count("<!-- /measured -->") == len(list(standing(text))), page


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_what_was_measured_where_and_when(name):
    made = record.read(name)
    assert name in MAKERS or "printed" in made
    assert re.fullmatch(r"2026-\d\d-\d\d", made["day"]) and made["machine"]["cores"] >= 1
    assert {"processor", "torch"} <= made["machine"].keys()
    assert made["command"] and ("--" not in made["command"] or made["command"] in COMMANDS.values()), (
        "measured in part only"
    )


def test_a_part_of_a_measurement_is_recorded_as_one(monkeypatch):
    monkeypatch.setattr("sys.argv", ["growth.py", "--scans", "batch", "--record", "--out", "some where.json"])
    assert (
        record.as_called("./launch.sh bench growth") == "./launch.sh bench growth --scans batch --out 'some where.json'"
    )


def test_a_part_goes_between_its_marks_and_nothing_else_is_changed(tmp_path, monkeypatch):
    page, records = tmp_path / "page.md", tmp_path / "measured"
    text = "# A page\n<!-- measured: growth -->\nold\n<!-- /measured -->\n\n<!-- measured: other -->\nleft\n<!-- /measured -->\n"
    page.write_text(text)
    monkeypatch.setattr(record, "PAGES", [page])
    monkeypatch.setattr(record, "RECORDS", records)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    line = {"batch": 4, "system": "ours", "pairs_per_second": 2.0, "peak_bytes": 2**30, "row_tokens": 79}
    record.keep("growth", "./launch.sh bench growth", {"steps": 1, "lines": [line]})
    made = json.loads((records / "growth.json").read_text())
    assert made["command"] == "./launch.sh bench growth" and made["machine"]["processor"] == processor()
    *before, table_head, _, row = record.parts_of("growth")["growth"]
    assert table_head == "| what changes | tokens of a row | ours |" and row == "| batch of 4 | 79 | 2.00, 1.00 GiB |"
    assert page.read_text() == text.replace("old\n", "\n".join([*before, table_head, "|---|---|---|", row, ""]))


def test_a_page_that_says_something_else_would_be_seen():
    page, name, lines = STANDING[0]
    text = f"<!-- measured: {name} -->\n" + "".join(f"{line}\n" for line in lines) + "<!-- /measured -->\n"
    assert list(standing(text)) == [(name, lines)] and filled(text, MADE) == text
    changed = text.replace(lines[1], lines[1] + ", nearly")
    assert list(standing(changed)) != [(name, lines)] and filled(changed, MADE) == text


# What is said of the records elsewhere


def test_the_comparison_has_one_row_for_each_loss():
    found = record.read("compare")["figures"]
    assert list(found["rows"]) == ["the start", *LOSSES], "run python tests/bench/commands.py --which compare --record"
    assert found["settings"]["steps"] == 200 and found["settings"]["batch"] == 32


def test_the_command_of_large_models_is_the_one_that_was_run():
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8").replace("\\\n", " ")
    assert COMMANDS["large"] in [" ".join(line.split()) for line in text.splitlines()]


# The same again


def like_this_machine(*names: str) -> dict:
    """The record of a machine of this kind, of those named."""
    for name in set(names) & set(NAMES):
        if (made := record.read(name))["machine"]["processor"] == processor():
            return made
    pytest.skip(f"nothing of this kind was measured on {processor()}")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def beside_the_seed(made: dict) -> tuple[float, dict[str, float]]:
    """(how many times the seed's float32 loop, the peaks of both in GiB) of a record."""
    shown = made["printed"]["bench-bf16"] if "printed" in made else parts_of("bench")["bench"]
    rows = {cells(line)[0]: cells(line) for line in shown if line.startswith("|")}
    peaks = {name: float(rows[name][3].split()[0]) for name in ("ours", "seed fp32")}
    return float(rows["seed fp32"][2].split()[0]), peaks


@pytest.mark.slow
@pytest.mark.alone
def test_ours_is_as_much_faster_than_the_seeds_loop_as_was_measured(tmp_path, shared):
    times, peaks = beside_the_seed(like_this_machine("bench", "bf16"))
    flags = ["--systems", "ours,seed fp32", "--steps", 4, "--held-out", 0, "--out", tmp_path / "bench.json"]
    call(ROOT / "tests/bench/table.py", *flags, limit=1200, OMP_NUM_THREADS="2")
    found = {line["system"]: line for line in json.loads((tmp_path / "bench.json").read_text())}
    speeds = [found[name]["pairs_per_second"] for name in ("ours", "seed fp32")]
    assert speeds[0] / speeds[1] > 0.6 * times
    for name, peak in peaks.items():
        assert found[name]["peak_bytes"] / 2**30 == pytest.approx(peak, rel=0.25)


@pytest.mark.slow
@pytest.mark.alone
def test_sampling_is_as_much_faster_than_transformers_as_was_measured():
    made = like_this_machine("generation", "bf16")
    shown = made["printed"]["generation-bf16"] if "printed" in made else MADE["generation"]
    done = call(ROOT / "tests/bench/generation.py", "--cases", "float32, batch 1", limit=600, OMP_NUM_THREADS="2")
    before, now = (
        next(cells(line) for line in lines if line.startswith("| float32, batch 1 |"))
        for lines in (shown, done.stdout.splitlines())
    )
    assert float(now[3]) > 0.6 * float(before[3]) and now[4] == before[4] == "all"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    "script, flags", [("convert", ["--count", 20_000]), ("checking", ["--counts", 20_000, 40_000])]
)
def test_rows_cost_what_was_measured(script, flags, shared):
    """Of a core and in memory; within a factor, since cores differ and few rows carry the start with them."""
    per_row = {row[0]: row for row in map(cells, MADE[script][5:])}
    done = call(ROOT / f"tests/bench/{script}.py", *flags, limit=600, TIKTOKEN_CACHE_DIR=str(shared / "tiktoken"))
    now = {row[0]: row for row in (cells(line) for line in done.stdout.splitlines() if line.startswith("|"))}
    for name in per_row.keys() - {"converted", "checked", "---"}:
        speeds = [float(rows[name][4].replace(",", "")) for rows in (per_row, now)]
        assert speeds[1] > speeds[0] / 4, name
        if script == "convert":  # does not grow with the file
            peaks = [float(rows[name][5].split()[0].replace(",", "")) for rows in (per_row, now)]
            assert peaks[1] == pytest.approx(peaks[0], rel=0.3), name


@pytest.mark.slow
@pytest.mark.alone
def test_a_row_of_the_comparison_comes_out_again(tmp_path):
    before = record.read("compare")["figures"]["rows"]
    call(ROOT / "dpo/compare.py", "--losses", "apo_zero", "--out", tmp_path / "out", limit=1200)
    now = json.loads((tmp_path / "out/compare.json").read_text(encoding="utf-8"))["rows"]
    assert list(now) == ["the start", "apo_zero"]
    for row, figures in now.items():
        for name, value in figures.items():
            assert value == pytest.approx(before[row][name], rel=0.1, abs=0.02), (row, name)
