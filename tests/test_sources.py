"""data/sources.py: the same rows from every kind of file, and one line for what is damaged or absent."""

import gzip
import json
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.convert import Convert, convert
from data.pairs import stream_pairs
from data.reading import stream_rows
from data.sources import SAFE, sources
from gpt.command import UserError, parse
from tests.processes import ENVIRONMENT, ROOT, call

ROWS = [{"prompt": f"p {i} 😀\r\n", "chosen": f"yes {i}", "rejected": "no", "score_chosen": i / 4} for i in range(2500)]


def values(name: str | Path) -> list:
    return [row.value for source in sources(str(name)) for row in source.rows]


def refusal(name: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        values(name)
    assert len(str(caught.value).splitlines()) == 1 and str(name).partition("[")[0] in str(caught.value)
    return str(caught.value)


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def parquet():
    """A function that writes rows as Parquet, a hundred to a group."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is absent: it reads Parquet (pip install pyarrow)")
    from pyarrow.parquet import write_table

    def write(path: Path, rows: list[dict]) -> None:
        path.parent.mkdir(exist_ok=True)
        write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)

    return write


# JSON, JSONL, gzip of either


@pytest.mark.parametrize(
    "content", [lines(ROWS), json.dumps(ROWS).encode(), b"\xef\xbb\xbf" + lines(ROWS)], ids=range(3)
)
def test_gzip_is_known_by_its_first_bytes_and_has_the_rows_of_the_file(tmp_path, content):
    for name, written in (
        ("plain", content),
        ("packed", gzip.compress(content)),
        ("twice.json", packed_in_two(content)),
    ):
        (tmp_path / name).write_bytes(written)
        assert values(tmp_path / name) == ROWS


def packed_in_two(content: bytes) -> bytes:
    """As `cat a.gz b.gz` makes it."""
    return gzip.compress(content[:1000]) + gzip.compress(content[1000:])


def test_what_is_done_ends_at_all_of_it(tmp_path, parquet):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "b.gz").write_bytes(gzip.compress(lines(ROWS)))
    parquet(tmp_path / "c.parquet", ROWS)
    for name in ("a.jsonl", "b.gz", "c.parquet"):
        for source in sources(str(tmp_path / name)):
            done = [source.done(row) for row in source.rows]
            assert done == sorted(done) and 0 <= source.total - done[-1] <= 1 and source.unit in ("B", "row")


@given(st.integers(0, 400), st.integers(0, 255))
def test_gzip_that_is_cut_or_damaged_is_one_line_or_all_of_the_rows(tmp_path_factory, place, byte):
    file, good = tmp_path_factory.getbasetemp() / "damaged.gz", gzip.compress(lines(ROWS[:40]), mtime=0)
    place = 4 + place % (len(good) - 4)
    file.write_bytes(good[:place])
    assert "gzip that cannot be read to its end: it ends too early" in refusal(file)
    file.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
    try:
        assert values(file) == ROWS[:40]
    except UserError as error:
        assert str(file) in str(error) and len(str(error).splitlines()) == 1


def test_bad_rows_are_named_by_the_line_inside(tmp_path):
    (tmp_path / "bad.gz").write_bytes(gzip.compress(lines(ROWS[:3]) + b'{"prompt" oops\n'))
    assert "bad.gz, line 4, column 11: bad JSON" in refusal(tmp_path / "bad.gz")


def test_a_pipe_is_read_too(tmp_path):
    script = "from data.sources import sources\nprint(sum(1 for s in sources('/dev/stdin') for _ in s.rows))"
    for content in (lines(ROWS), gzip.compress(lines(ROWS))):
        done = subprocess.run(
            [sys.executable, "-c", script], input=content, env=ENVIRONMENT, cwd=ROOT, capture_output=True
        )
        assert (done.returncode, done.stdout.strip()) == (0, b"2500"), done.stderr


def test_a_file_that_is_packed_is_refused_where_rows_must_be_found_again(tmp_path):
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 and more")
    for name, kind in (("pairs.jsonl.gz", "gzip"), ("pairs.parquet", "Parquet")):
        for read in (stream_rows, lambda path: stream_pairs(path, {})):
            with pytest.raises(UserError) as caught:
                list(read(tmp_path / name))
            convert = f"python data/build.py convert {tmp_path / name} --out {tmp_path / 'pairs.jsonl'}"
            assert str(caught.value) == f"{tmp_path / name} is {kind}; unpack it first: {convert}"


def test_the_hint_at_what_is_packed_names_a_new_file_and_is_a_command_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, expected in (
        ("pairs.jsonl", "pairs-unpacked.jsonl"),
        ("my pairs.gz", "my pairs.jsonl"),
        (".gz", "pairs.jsonl"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(lines(ROWS[:3])))
        with pytest.raises(UserError) as caught:
            list(stream_rows(Path(name)))
        python, build, *words = shlex.split(str(caught.value).partition("first: ")[2])
        assert words == ["convert", name, "--out", expected]
        convert(parse(Convert, words[1:]))
        assert [row.value for row in stream_rows(Path(expected))] and len(values(name)) == 3
        for file in tmp_path.iterdir():
            file.unlink()


def test_a_file_of_a_folder_that_is_read_is_not_written_over(tmp_path, parquet):
    parquet(tmp_path / "data" / "a.parquet", ROWS[:3])
    with pytest.raises(UserError, match="a.parquet, which is read; name another file"):
        convert(Convert(files=[str(tmp_path / "data")], out=str(tmp_path / "data" / ".." / "data" / "a.parquet")))
    assert values(tmp_path / "data") == ROWS[:3]


@pytest.mark.slow
def test_the_trainer_says_to_convert_first(tmp_path):
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    for name in (tmp_path / "pairs.jsonl.gz", "hub:OWNER/NAME"):
        done = call(ROOT / "dpo" / "train.py", "--pairs", name, "--out", tmp_path / "run", code=2)
        assert len(done.stderr.splitlines()) == 1 and "first: python data/build.py convert" in done.stderr


# Parquet


def test_parquet_has_the_rows_that_were_written(tmp_path, parquet):
    chat = [
        {"chosen": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "é"}], "n": i}
        for i in range(9)
    ]
    parquet(tmp_path / "train.parquet", ROWS)
    parquet(tmp_path / "named otherwise", chat)
    assert values(tmp_path / "train.parquet") == ROWS and values(tmp_path / "named otherwise") == chat


def test_the_files_of_a_folder_are_read_by_name_each_with_rows_of_its_own(tmp_path, parquet):
    for number in (1, 0, 2):
        parquet(tmp_path / "data" / f"train-0000{number}-of-00003.parquet", ROWS[number * 10 : number * 10 + 10])
    (tmp_path / "data" / "README.md").write_text("not this")
    assert values(tmp_path / "data") == ROWS[:30]
    found = [
        (Path(source.name).name, [row.number for row in source.rows]) for source in sources(str(tmp_path / "data"))
    ]
    assert found == [(f"train-0000{i}-of-00003.parquet", list(range(1, 11))) for i in range(3)]


@pytest.mark.parametrize("cut", [4, 100, 2000, -8, -1])
def test_parquet_that_is_cut_is_one_line(tmp_path, parquet, cut):
    parquet(tmp_path / "a.parquet", ROWS)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:cut])
    assert "is Parquet that cannot be read" in refusal(tmp_path / "b.parquet")


def test_parquet_that_is_damaged_within_is_one_line_or_rows(tmp_path, parquet):
    parquet(tmp_path / "a.parquet", ROWS)
    good = (tmp_path / "a.parquet").read_bytes()
    for place in range(10, len(good), len(good) // 60):
        (tmp_path / "b.parquet").write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            values(tmp_path / "b.parquet")
        except UserError as error:
            assert "b.parquet is Parquet that cannot be read" in str(error) and len(str(error).splitlines()) == 1


# The Hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder that `datasets` takes for OWNER/NAME, as it does where one of that name lies in the current folder."""
    pytest.importorskip("datasets", reason="datasets is absent: it reads the Hub's (pip install datasets)")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OWNER" / "NAME").mkdir(parents=True)
    return tmp_path / "OWNER" / "NAME"


@pytest.mark.slow
def test_a_dataset_is_read_split_by_split(hub):
    (hub / "train.jsonl").write_bytes(lines(ROWS[:20]))
    (hub / "test.jsonl").write_bytes(lines(ROWS[20:25]))
    assert values("hub:OWNER/NAME") == values("hub:OWNER/NAME[train]") == ROWS[:20]
    assert values("hub:OWNER/NAME[test]") == ROWS[20:25]
    message = refusal("hub:OWNER/NAME[train_prefs]")
    assert "has no split train_prefs; there are train, test: name one, as in 'hub:OWNER/NAME[train]'" in message
    (hub / "train.jsonl").unlink()
    assert "has no split train, which is read if none is named; there are test" in refusal("hub:OWNER/NAME")


@pytest.mark.slow
def test_a_dataset_that_is_not_to_be_had_is_one_line(hub):
    offline = ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(hub)}
    words = [sys.executable, str(ROOT / "data" / "build.py"), "convert", "hub:NO/SUCH", "--out", "-"]
    done = subprocess.run(words, env=offline, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "error: hub:NO/SUCH cannot be read from the Hugging Face Hub: " in done.stderr


# What is absent


@pytest.mark.parametrize(
    "name", ["hub:", "hub:NAME", "hub:a/b/c/d", "hub:../x", "hub:a/b[", "hub:a/b[c]d", "hub:a/b[]"]
)
def test_what_is_no_name_of_a_dataset_is_refused(name):
    assert "hub:OWNER/NAME" in refusal(name)


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal(tmp_path / "a.parquet").endswith("-m pip install 'pyarrow>=14.0.1'")
    assert refusal("hub:OWNER/NAME").endswith("-m pip install 'datasets>=4'")


@pytest.mark.parametrize(
    "package, old, new",
    [("pyarrow", "14.0.0", "14.0.1"), ("pyarrow", "9.0", "15.0.0.dev3"), ("datasets", "3.6.0", "4.0")],
)
def test_a_package_so_old_that_a_file_makes_it_run_code_reads_nothing(
    tmp_path, parquet, monkeypatch, package, old, new
):
    parquet(tmp_path / "a.parquet", ROWS[:3])
    module = pytest.importorskip(package, reason=f"{package} is absent (pip install {package})")
    name = tmp_path / "a.parquet" if package == "pyarrow" else "hub:OWNER/NAME"
    monkeypatch.setattr(module, "__version__", old)
    assert refusal(name).endswith(f"-m pip install '{package}>={SAFE[package]}'") and old in refusal(name)
    monkeypatch.setattr(module, "__version__", new)
    if package == "pyarrow":
        assert values(name) == ROWS[:3]


def test_the_versions_that_are_safe_are_those_that_are_installed():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    assert [extras["parquet"], extras["datasets"]] == [f"{name}>={least}" for name, least in SAFE.items()]


def test_files_that_are_not_there_and_folders_without_any_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "absent.jsonl")
    assert "a folder without a .parquet file in it" in refusal(tmp_path)
