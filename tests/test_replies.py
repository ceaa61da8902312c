"""data/replies.py: what was asked is kept, whatever happens to the file, and asked once."""

import json
import os
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.endpoint import Failed, Question, Reply
from data.llm import LLM
from data.replies import Replies, kept_replies, key_of
from gpt.command import Notice, UserError
from tests.openai_server import MODEL, serving
from tests.processes import ENVIRONMENT, ROOT


@pytest.fixture
def server():
    with serving(lambda text, request: f"{text}: {request['seed']}") as server:
        yield server


def llm(server, **how) -> LLM:
    return LLM(MODEL, server.address, **{"timeout": 5.0, "wait": 0.0, "retries": 0, **how})


def ask(server, path, *questions: Question, by: LLM | None = None) -> list[Reply]:
    with kept_replies(by or llm(server), path) as replies:
        return [replies.ask(question) for question in questions]


STUB = SimpleNamespace(has_answered=False, model="m", endpoint=SimpleNamespace(address="http://a/v1"))
QUESTIONS = [Question("é\n\"'\0\u2028"), Question("x", seed=1), Question("x", seed=2), Question("x" * 100_000)]


def test_what_was_replied_is_read_again_and_never_asked_again(server, tmp_path):
    path = tmp_path / "new" / "replies.jsonl"
    first = ask(server, path, *QUESTIONS)
    assert first == [Reply(f"{question.text}: {question.seed}", "stop") for question in QUESTIONS]
    content = path.read_bytes()
    with kept_replies(llm(server), path) as replies:
        assert [replies.ask(question) for question in QUESTIONS] == first
        assert (replies.asked, replies.known) == (0, 4)
    assert path.read_bytes() == content and len(server.asked) == 4


def test_a_refusal_is_a_reply_too(server, tmp_path):
    server.plan = ["null"]
    assert (
        ask(server, tmp_path / "r", Question("x"))
        == ask(server, tmp_path / "r", Question("x"))
        == [Reply(None, "stop")]
    )
    assert len(server.asked) == 1


def test_each_line_is_on_disk_before_the_next_question(server, tmp_path):
    with kept_replies(llm(server), tmp_path / "r") as replies:
        for n, question in enumerate(QUESTIONS, 1):
            replies.ask(question)
            assert len([json.loads(line) for line in (tmp_path / "r").read_bytes().splitlines()]) == n


@given(
    st.tuples(st.sampled_from(["a", "b"]), st.text(), st.text(), st.floats(0, 2), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.sampled_from(["a", "b"]), st.text(), st.text(), st.floats(0, 2), st.integers(0, 9), st.integers(0, 9)),
)
def test_another_address_model_question_temperature_seed_or_length_is_another_key(one, other):
    keys = [key_of(address, model, Question(*rest)) for address, model, *rest in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_without_a_file_replies_last_as_long_as_the_block(server):
    for asked in (1, 2):
        with kept_replies(llm(server), None) as replies:
            assert replies.ask(Question("x")) == replies.ask(Question("x")) == Reply("x: 0", "stop")
        assert len(server.asked) == asked


def test_threads_that_ask_the_same_meanwhile_wait_for_the_one_reply(server, tmp_path):
    go = threading.Event()
    server.reply = lambda text, request: text if go.wait(10) else None
    found = []
    with kept_replies(llm(server), tmp_path / "r") as replies:
        threads = [
            threading.Thread(target=lambda n=n: found.append(replies.ask(Question(f"same {n % 2}")))) for n in range(12)
        ]
        for thread in threads:
            thread.start()
        threading.Timer(0.3, go.set).start()
        for thread in threads:
            thread.join()
    assert len(found) == 12 and len(server.asked) == 2


def test_what_failed_is_not_kept(server, tmp_path):
    server.plan = ["400"]
    with kept_replies(llm(server), tmp_path / "r") as replies:
        with pytest.raises(Failed):
            replies.ask(Question("x"))
        assert replies.ask(Question("x")) == Reply("x: 0", "stop")


def test_replies_of_another_server_are_not_taken_for_this_ones_and_that_is_told(server, tmp_path):
    path = tmp_path / "r"
    with serving(lambda text, request: "other") as other:
        assert ask(other, path, Question("x"), Question("y")) == [Reply("other", "stop")] * 2
        with pytest.warns(Notice, match=f"the replies there are of '{MODEL} at {other.address}', not of {MODEL} at"):
            assert ask(server, path, Question("x")) == [Reply("x: 0", "stop")]
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            assert ask(server, path, Question("x")) == [Reply("x: 0", "stop")]
            assert ask(other, path, Question("y")) == [Reply("other", "stop")]
    assert len(server.asked) == 1 and len(other.asked) == 2
    assert {json.loads(line)["of"] for line in path.read_text().splitlines()} == {
        f"{MODEL} at {one.address}" for one in (server, other)
    }


# A file that was cut, or damaged


def test_a_file_cut_at_any_byte_keeps_the_lines_that_are_whole(server, tmp_path):
    path = tmp_path / "r"
    few, by = [Question("a"), Question("é"), Question("b")], llm(server)
    replied = ask(server, path, *few, by=by)
    content = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(content) if byte == ord("\n")]
    for end in {*range(0, len(content), 7), *(end + more for end in ends for more in (-2, -1, 0, 1))} - {
        len(content) + 1
    }:
        path.write_bytes(content[:end])
        server.asked.clear()
        assert ask(server, path, *few, by=by) == replied
        assert len(server.asked) == 3 - content[:end].count(b"\n")
        assert path.read_bytes() == content  # as if it had never been cut


def test_lines_that_are_damaged_are_told_and_asked_again(server, tmp_path):
    path = tmp_path / "r"
    replied = ask(server, path, *QUESTIONS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 50 + b"\n" + lines[1][:40] + b"\n" + b"".join(lines[2:]))
    server.asked.clear()
    with pytest.warns(Notice, match="cannot be read: 2; "):
        assert ask(server, path, *QUESTIONS) == replied
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [b'{"prompt": "x"}\n', b"text", b"\0\0\0\0", b"[1]\n", b"\xff\n"])
def test_a_file_of_something_else_is_left_as_it_is(content, server, tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="pairs.jsonl holds something else than replies"):
        ask(server, tmp_path / "pairs.jsonl", Question("x"))
    assert (tmp_path / "pairs.jsonl").read_bytes() == content and not server.asked


@given(
    st.lists(
        st.binary(max_size=30) | st.sampled_from([b'{"asked": 3}', b'{"asked"', b'{"asked": "', b"[" * 9]), max_size=5
    )
)
def test_any_bytes_are_read_or_refused(lines):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "r")
        with open(path, "wb") as file:
            file.write(b"\n".join(lines))
        with open(path, "a+b", buffering=0) as file:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", Notice)
                    Replies(STUB, file).load(path)
            except UserError:
                return
            assert os.path.getsize(path) <= len(b"\n".join(lines))


# Several processes, links, a full disk


def test_one_process_at_a_time_writes(server, tmp_path):
    script = f"""
from data.llm import LLM
from data.replies import kept_replies
from gpt.command import UserError
try:
    with kept_replies(LLM("m", {server.address!r}), __import__("pathlib").Path({str(tmp_path / "r")!r})):
        print("open")
except UserError as error:
    print(error)
"""

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
        ).stdout

    with kept_replies(llm(server), tmp_path / "r"):
        assert "another process is writing there" in other()
    assert other() == "open\n"


def test_a_link_is_not_written_through(server, tmp_path):
    (tmp_path / "precious").write_text("")
    (tmp_path / "r").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="cannot be written"):
        ask(server, tmp_path / "r", Question("x"))
    assert (tmp_path / "precious").read_text() == ""


def test_a_full_disk_is_one_line_and_leaves_whole_lines(server, tmp_path, monkeypatch):
    write = os.write
    with kept_replies(llm(server), tmp_path / "r") as replies:
        replies.ask(Question("a"))
        before = (tmp_path / "r").read_bytes()

        def full(descriptor: int, data: bytes) -> int:
            if len(data) > 10:
                return write(descriptor, data[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(
            "data.replies.os.write", lambda d, data: full(d, data) if len(data) < 75 else write(d, data[:-70])
        )
        with pytest.raises(UserError, match="the replies cannot be kept: No space left on device"):
            replies.ask(Question("b"))
        assert (tmp_path / "r").read_bytes() == before
        monkeypatch.undo()
        assert replies.ask(Question("c")) == replies.ask(Question("c"))
