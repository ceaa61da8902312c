"""dpo/store.py and dpo/examples.py: a store is what encoding each pair gives, made once, and never used when it is damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.pairs import Pair, instruction_prompt, read_pairs, split, write_rows
from data.rules import TINY, embedded_pairs
from dpo.examples import Examples, in_memory, open_examples
from dpo.store import KEPT, encode
from gpt.command import UserError
from gpt.files import locked
from gpt.tokenizer import Tokenizer
from tests.processes import ENVIRONMENT, ROOT, command

LENGTH = 60
ROWS = [
    {"prompt": "Say hello.", "chosen": "Good morning!", "rejected": "no"},
    {"prompt": "", "chosen": "a é 中 😀", "rejected": "<|endoftext|>"},
    {"prompt": "same", "chosen": "same", "rejected": "same"},
    {"prompt": instruction_prompt("Add.", "2 + 3"), "chosen": "5", "rejected": "6 " * 3},
    {"prompt": "too long", "chosen": "x y z " * 99, "rejected": "no"},
    *({"prompt": f"prompt {i // 2}", "chosen": f"yes {i}", "rejected": "no"} for i in range(20)),
]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of its own, and in it the folder of stores."""
    monkeypatch.setenv("GPT_DPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pairs"


@pytest.fixture
def file(tmp_path) -> str:
    write_rows(tmp_path / "pairs.jsonl", ROWS)
    return str(tmp_path / "pairs.jsonl")


def stores(cache: Path) -> dict[str, tuple[int, int]]:
    """Each store's name, and where and when the disk wrote its tokens: another once it was made again."""
    found = {path.parent.name: path.stat() for path in cache.glob("*/tokens")}
    return {name: (stat.st_ino, stat.st_ctime_ns) for name, stat in found.items()}  # a number freed is given again


def content(examples: Examples) -> tuple:
    return (list(examples.ids), examples.lengths.tolist(), examples.rows.tolist(), list(examples.pairs))


# What is in it


def check(file: str, tokenizer: Tokenizer, fraction: float, one_answer: bool | None, length: int) -> None:
    """Hold both sides to reading, splitting and encoding lists."""
    counted, expected = {}, {}
    found = open_examples(file, tokenizer, length, fraction, one_answer, counted, may_be_empty=True)
    for examples, pairs in zip(found, split(read_pairs(file, expected, one_answer), fraction)):
        encoded = encode(pairs, tokenizer, length, one_answer, expected)
        assert list(examples.ids) == [ids for _, ids in encoded]
        assert list(examples.pairs) == [pair for pair, _ in encoded]
        assert list(examples.ids[1:][::-1]) == [ids for _, ids in encoded][1:][::-1]
        assert examples.rows.tolist() == [pair.row for pair, _ in encoded]
        assert examples.lengths.tolist() == [[len(part) for part in ids] for _, ids in encoded]
        direct = in_memory([pair for pair, _ in encoded], [ids for _, ids in encoded])
        if encoded:
            assert examples.fingerprint == direct.fingerprint and content(examples) == content(direct)
    assert counted == {why: sorted(rows) for why, rows in expected.items()}


texts = st.text(max_size=30) | st.sampled_from(["<|endoftext|>", "one two three " * 9, "same"])
rows = st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts | st.none()})


@given(
    st.lists(rows, max_size=6),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([None, True]),
    st.integers(5, 60),
)
def test_a_store_is_what_encoding_each_pair_gives(tmp_path_factory, tokenizer, rows, as_list, fraction, one, length):
    file = tmp_path_factory.getbasetemp() / "any-pairs.json"
    some = [*rows, ROWS[0]]
    file.write_text(json.dumps(some) if as_list else "\n".join(map(json.dumps, some)))
    check(str(file), tokenizer, fraction, one, length)


def test_the_real_rows_are_stored_as_they_are_encoded(shared, monkeypatch, cache):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    file = str(shared / "data" / "instruction-data-with-preference.json")
    check(file, Tokenizer.gpt2(), 0.1, False, 200)
    assert {path.stat().st_size for path in cache.glob("*/tokens")} == {2 * read_tokens(cache)}  # two bytes a token


def read_tokens(cache: Path) -> int:
    (lengths,) = cache.glob("*/lengths")
    return int(np.fromfile(lengths, "<i4").sum())


def test_a_vocabulary_of_more_than_65536_ids_has_four_bytes_a_token(cache, file, tokenizer):
    ids = {token: i for token, i in tokenizer.ids.items()} | {b"!": 70_000}
    large = Tokenizer(ids, tokenizer.merges, tokenizer.end_of_text)
    check(file, large, 0.3, None, LENGTH)
    (tokens,) = cache.glob("*/tokens")
    assert np.fromfile(tokens, "<u4").max() == 70_000


def test_the_embedded_set_needs_no_file_and_makes_none(cache):
    training, held_out = open_examples("", Tokenizer.load(TINY), 256, 0.1, False, {})
    assert (list(training.pairs), list(held_out.pairs)) == split(embedded_pairs(), 0.1)
    assert not cache.exists()


def test_a_fingerprint_knows_order_and_borders(tokenizer, random_ids):
    ids = random_ids(5)
    pairs = [Pair("", "", "", row) for row in range(5)]
    every = in_memory(pairs, ids)
    moved = ids[0]._replace(prompt=ids[0].prompt[:1], chosen=ids[0].prompt[1:] + ids[0].chosen)
    others = [in_memory(pairs, [moved, *ids[1:]]), Examples(every.store, every.index[::-1])]
    others += [Examples(every.store, every.index[:4]), Examples(every.store, every.index[:0])]
    assert len({examples.fingerprint for examples in (every, *others)}) == 5


# When it is made


def test_a_store_is_made_once_and_says_again_what_was_dropped_and_cut(cache, file, tokenizer):
    counted, again = {}, {}
    first = open_examples(file, tokenizer, LENGTH, 0.3, None, counted)
    made = stores(cache)
    second = open_examples(file, tokenizer, LENGTH, 0.3, None, again)
    assert stores(cache) == made and len(made) == 1
    assert [content(side) for side in first] == [content(side) for side in second]
    assert counted == again and len(counted) == 4
    assert open_examples(file, tokenizer, LENGTH, 0.6, None, {})[1].ids and stores(cache) == made  # any fraction


def test_a_store_is_another_with_each_thing_that_it_depends_on(cache, file, tokenizer, tmp_path):
    ids, swapped = tokenizer.ids, dict(tokenizer.ids)
    swapped[b"a"], swapped[b"b"] = ids[b"b"], ids[b"a"]
    others = [
        Tokenizer(swapped, tokenizer.merges, tokenizer.end_of_text),
        Tokenizer(ids, tokenizer.merges[:-1], tokenizer.end_of_text),
        Tokenizer(ids, tokenizer.merges, tokenizer.end_of_text + 1),
    ]
    for vocabulary, length, one in [
        (tokenizer, LENGTH, None),
        (tokenizer, LENGTH + 1, None),
        (tokenizer, LENGTH, True),
        (tokenizer, LENGTH, False),
        *((other, LENGTH, None) for other in others),
    ]:
        check(file, vocabulary, 0.3, one, length)
    assert len(stores(cache)) == 7
    write_rows(file, [*ROWS[:-1], ROWS[-1] | {"rejected": "nö"}])
    check(file, tokenizer, 0.3, None, LENGTH)
    assert len(stores(cache)) == 8
    write_rows(tmp_path / "copy.jsonl", [*ROWS[:-1], ROWS[-1] | {"rejected": "nö"}])
    check(str(tmp_path / "copy.jsonl"), tokenizer, 0.3, None, LENGTH)  # the content counts, not the name
    assert len(stores(cache)) == 8


COLUMNS = ["tokens", "lengths", "rows", "places", "sides", "counted", "manifest.json"]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("damage", ["cut", "longer", "a bit", "gone", "empty"])
def test_a_damaged_store_is_made_again(cache, file, tokenizer, name, damage):
    before = [content(side) for side in open_examples(file, tokenizer, LENGTH, 0.3, None, {})]
    made = stores(cache)
    (column,) = cache.glob(f"*/{name}")
    whole = column.read_bytes()
    middle = len(whole) // 2
    column.write_bytes(
        {
            "cut": whole[:-1],
            "longer": whole + b"\0" if name != "manifest.json" else whole + b"}",
            "a bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "gone": b"",
            "empty": b"",
        }[damage]
    )
    if damage == "gone":
        column.unlink()
    assert [content(side) for side in open_examples(file, tokenizer, LENGTH, 0.3, None, {})] == before
    assert column.read_bytes() == whole and stores(cache) != made


def test_the_store_of_other_pairs_is_not_taken_for_ours(cache, file, tokenizer, tmp_path):
    open_examples(file, tokenizer, LENGTH, 0.3, None, {})
    (ours,) = cache.glob("*/")
    write_rows(tmp_path / "other.jsonl", ROWS[:2])
    open_examples(str(tmp_path / "other.jsonl"), tokenizer, LENGTH, 0.3, None, {})
    (other,) = set(cache.glob("*/")) - {ours}
    for part in other.iterdir():
        (ours / part.name).write_bytes(part.read_bytes())
    check(file, tokenizer, 0.3, None, LENGTH)


def test_the_stores_used_last_are_kept_and_the_older_ones_go(cache, file, tokenizer):
    open_examples(file, tokenizer, LENGTH, 0.3, None, {})
    (first,) = stores(cache)
    for more in range(1, KEPT + 3):
        for folder in cache.glob("*/"):  # as if an hour had passed
            os.utime(folder, times=(folder.stat().st_mtime - 3600,) * 2)
        open_examples(file, tokenizer, LENGTH + more, 0.3, None, {})
        open_examples(file, tokenizer, LENGTH, 0.3, None, {})
    assert len(stores(cache)) == KEPT and first in stores(cache)


@pytest.mark.parametrize("rows, message", [(["no", "row"], "row 1: a row is"), ([], "no pair is left to learn from")])
def test_a_file_that_cannot_be_used_leaves_no_store(cache, tmp_path, tokenizer, rows, message):
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=message):
        open_examples(str(tmp_path / "bad.json"), tokenizer, LENGTH, 0.3, None, {})
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_prompt_in_two_groups_is_refused_as_a_list_would_be(cache, tmp_path, tokenizer):
    rows = [ROWS[0] | {"group": group} for group in ("a", "a", "b", "c")]
    write_rows(tmp_path / "groups.jsonl", rows)
    with pytest.raises(UserError, match=r"rows 1 and 3 have one prompt and two groups \('a', 'b'\)"):
        split(read_pairs(tmp_path / "groups.jsonl"), 0.1)
    with pytest.raises(UserError, match=r"rows 1 and 3 have one prompt and two groups \('a', 'b'\)"):
        open_examples(str(tmp_path / "groups.jsonl"), tokenizer, LENGTH, 0.1, None, {})


def test_what_is_no_file_is_refused_in_a_line(cache, tmp_path, tokenizer):
    for path, message in (("/dev/null", "no regular file"), (tmp_path, "is a folder"), (tmp_path / "x", "not exist")):
        with pytest.raises(UserError, match=message):
            open_examples(str(path), tokenizer, LENGTH, 0.1, None, {})


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, file, tokenizer):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("GPT_DPO_CACHE", str(tmp_path / "taken" / "cache"))
    check(file, tokenizer, 0.3, None, LENGTH)


def test_a_store_that_cannot_be_written_whole_is_done_without(cache, file, tokenizer):
    # a file where its folder is to be made; a disk that is full refuses a moment later, in the same way
    open_examples(file, tokenizer, LENGTH, 0.3, None, {})
    (made,) = cache.glob("*/")
    shutil.rmtree(made)
    made.with_name(made.name + ".part").write_text("in the way")
    check(file, tokenizer, 0.3, None, LENGTH)
    assert not stores(cache)


def test_a_file_that_is_saved_after_it_was_hashed_leaves_no_store(cache, file, tokenizer, monkeypatch):
    before = Path(file).read_bytes()

    @contextmanager
    def waited(lock: Path):
        write_rows(file, ROWS[:4])
        with locked(lock):
            yield

    with monkeypatch.context() as patched, pytest.raises(UserError, match="changed while it was read; start again"):
        patched.setattr("dpo.store.locked", waited)
        open_examples(file, tokenizer, LENGTH, 0.3, None, {})
    assert not [path for path in cache.iterdir() if path.is_dir()]
    check(file, tokenizer, 0.3, None, LENGTH)
    Path(file).write_bytes(before)
    check(file, tokenizer, 0.3, None, LENGTH)


def test_a_store_in_use_outlives_its_removal(cache, file, tokenizer):
    training, _ = open_examples(file, tokenizer, LENGTH, 0.3, None, {})
    before = content(training)
    for path in [*cache.glob("*/*")]:
        path.unlink()
    assert content(training) == before


# Several processes

OPEN = """
import sys
from dpo import store
from dpo.examples import open_examples
from gpt.tokenizer import Tokenizer

make = store._make
store._make = lambda *given, **named: print("made", flush=True) or make(*given, **named)
training, held_out = open_examples(sys.argv[1], Tokenizer.load(sys.argv[2]), 256, 0.1, False, {})
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(len(training.ids), training.fingerprint, int(status["VmHWM"].split()[0]) - int(status["RssFile"].split()[0]))
"""


def opening(file: Path, cache: Path) -> subprocess.Popen:
    environment = ENVIRONMENT | {"GPT_DPO_CACHE": str(cache.parent), "TQDM_DISABLE": "1"}  # bars come where it is slow
    words = command("-c", OPEN, file, TINY)
    return subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def many(folder: Path, count: int) -> Path:
    rng = Random(count)
    row = {"rejected": "No, thank you."}
    rows = (row | {"prompt": f"Say {i} and {rng.random()}. " * 3, "chosen": f"Of course! {i}"} for i in range(count))
    write_rows(folder / f"{count}.jsonl", rows)
    return folder / f"{count}.jsonl"


def test_processes_that_come_at_once_make_one_store(cache, tmp_path):
    file = many(tmp_path, 5000)
    ended = [process.communicate(timeout=120) for process in [opening(file, cache) for _ in range(3)]]
    assert [errors for _, errors in ended] == [""] * 3
    assert sum("made" in out for out, _ in ended) == 1
    assert len({out.splitlines()[-1].split()[1] for out, _ in ended}) == 1 == len(stores(cache))


def test_a_process_that_is_killed_while_it_makes_a_store_stops_nobody(cache, tmp_path):
    file = many(tmp_path, 60_000)
    killed, deadline = opening(file, cache), time.monotonic() + 60
    while not list(cache.glob("*.part/tokens")) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [name.endswith(".part") for name in stores(cache)] == [True]
    for made in (1, 0):
        out, errors = opening(file, cache).communicate(timeout=120)
        assert out.count("made") == made, errors
        assert [name.endswith(".part") for name in stores(cache)] == [False]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_memory_grows_by_the_small_columns_alone(cache, tmp_path):
    peaks = []
    for count in (20_000, 100_000):
        out, errors = opening(many(tmp_path, count), cache).communicate(timeout=300)
        peaks.append(1024 * int(out.splitlines()[-1].split()[-1]))
    assert (peaks[1] - peaks[0]) / 80_000 < 150  # bytes a pair; as lists of numbers and texts it would be thousands
