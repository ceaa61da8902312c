"""data/endpoint.py and data/llm.py against a real server on this machine that fails by plan."""

import os
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.endpoint import BODY, Endpoint, Failed, Passing, Question, Reply, check_address, retry_after
from data.llm import LLM, LLMFlags
from gpt.command import UserError, parse
from tests.openai_server import FAULTS, MODEL, SCHEMAS, serving

KEY = "sk-a-key-that-nobody-may-see"


@pytest.fixture
def server():
    with serving(lambda text, request: f"heard: {text}") as server:
        yield server


def llm(server, **how) -> LLM:
    return LLM(MODEL, server.address, **{"timeout": 5.0, "wait": 0.01, "retries": 3, **how})


def test_a_question_goes_out_as_it_was_asked_and_the_reply_comes_back(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert llm(server).reply(Question("Héllo\n<|endoftext|>\0", 0.5, 7, 33)) == Reply(
        "heard: Héllo\n<|endoftext|>\0", "stop"
    )
    (asked,) = server.asked
    assert asked.pop("messages") == [{"role": "user", "content": "Héllo\n<|endoftext|>\0"}]
    assert asked == {"model": MODEL, "temperature": 0.5, "seed": 7, "max_tokens": 33}
    llm(server).reply(Question("x", max_tokens=0))
    assert "max_tokens" not in server.asked[1]


@pytest.mark.parametrize("fault", [*FAULTS, "408", "409", "429 0.2", "huge"])
def test_what_passes_is_asked_again_and_the_reply_comes_once(fault, server):
    server.plan = [fault, fault]
    assert llm(server).reply(Question("again")).text == "heard: again"
    assert len(server.asked) == 3 and list(server.answered.values()) == [1]


@pytest.mark.parametrize("fault", [*FAULTS, "hang", "trickle"])
def test_what_does_not_pass_fails_after_the_retries_and_says_why(fault, server):
    server.fault = lambda request: fault
    with pytest.raises(Failed) as failed:
        llm(server, retries=1, timeout=0.4).reply(Question("never"))
    assert len(server.asked) == 2 and not isinstance(failed.value, Passing)
    kinds = {"hang": "no reply within 0.4 s", "trickle": "no reply within 0.4 s", "reset": "the connection failed"}
    kinds |= dict.fromkeys(["cut", "chunked"], "the reply broke off")
    kinds |= dict.fromkeys(["garbage", "truncated", *SCHEMAS], "no chat completion came")
    assert failed.value.kind == kinds.get(fault, f"HTTP {fault}")


@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_a_reply_has_so_long_and_no_longer_to_its_last_byte(fault, server):
    server.fault = lambda request: fault
    begun = time.monotonic()
    with pytest.raises(Passing, match="no reply within 0.5 s"):
        Endpoint(MODEL, server.address, timeout=0.5).reply(Question("x"))
    assert 0.4 < time.monotonic() - begun < 3


def test_no_more_of_a_reply_is_read_than_one_may_have(server):
    server.plan = ["huge"]
    with pytest.raises(Passing, match=f"more than {BODY >> 20} MiB"):
        Endpoint(MODEL, server.address, timeout=20).reply(Question("x"))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_fails_at_once_and_others_go_on(status, server):
    server.plan = [str(status)]
    asks = llm(server)
    with pytest.raises(Failed) as failed:
        asks.reply(Question("too long"))
    assert (failed.value.kind, failed.value.detail) == (f"HTTP {status}", f"planned {status}")
    assert asks.reply(Question("short")).text == "heard: short" and len(server.asked) == 2


@pytest.mark.parametrize("status, words", [(401, ["key", "OPENAI_API_KEY"]), (403, ["OPENAI_API_KEY"]), (404, ["/v1"])])
def test_what_would_befall_every_question_ends_it_with_one_line(status, words, server):
    server.plan = [str(status)]
    with pytest.raises(UserError) as ended:
        llm(server).reply(Question("x"))
    said = str(ended.value)
    assert len(server.asked) == 1 and "\n" not in said
    assert all(word in said for word in [server.address, MODEL, f"HTTP {status}", f"planned {status}", *words])


def test_a_model_that_the_server_does_not_have_is_named(server):
    with pytest.raises(UserError, match="model other: not found there"):
        LLM("other", server.address).reply(Question("x"))


def test_without_a_server_one_line_says_what_to_start_and_nothing_is_waited_for():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    begun = time.monotonic()
    with pytest.raises(UserError, match=rf"nothing answers at {address}: start the server"):
        LLM(MODEL, address, wait=10).reply(Question("x"))
    assert time.monotonic() - begun < 5


def test_a_server_that_went_away_after_it_had_replied_is_waited_for(server):
    asks = llm(server, retries=2)
    asks.reply(Question("x"))
    server.fault = lambda request: "reset"  # the connection that was kept
    server.stop()
    with pytest.raises(Failed, match="the connection failed"):
        asks.reply(Question("y"))


# Waiting


def test_the_wait_that_a_server_asks_for_is_kept_by_all_threads(server):
    server.plan = ["429 0.8"]
    asks, begun, ended = llm(server, wait=0.0), time.monotonic(), []

    def ask(text: str) -> None:
        asks.reply(Question(text))
        ended.append(time.monotonic() - begun)

    first = Thread(target=ask, args=["first"])
    first.start()
    while len(server.asked) < 1:
        time.sleep(0.01)
    time.sleep(0.2)
    others = [Thread(target=ask, args=[str(n)]) for n in range(4)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    assert min(ended) > 0.75


def test_a_wait_may_be_a_date(server):
    server.plan = ["503 date"]  # a second and a half from now, cut to whole seconds
    begun = time.monotonic()
    assert llm(server, wait=20.0).reply(Question("x")).text == "heard: x"
    assert time.monotonic() - begun < 4


def test_a_wait_of_an_hour_ends_it_with_one_line(server):
    server.plan = ["429 3600"]
    with pytest.raises(UserError, match="asks to wait 3,600 s .*planned 429"):
        llm(server).reply(Question("x"))


def test_backoff_doubles(server, monkeypatch):
    slept = []
    monkeypatch.setattr("data.llm.time.sleep", slept.append)
    server.fault = lambda request: "500"
    with pytest.raises(Failed):
        llm(server, retries=5, wait=3.0).reply(Question("x"))
    for pause, whole in zip(slept, [3, 6, 12, 24, 48], strict=True):
        assert whole / 2 <= pause <= whole


def test_the_longest_backoff_is_a_minute(server, monkeypatch):
    slept = []
    monkeypatch.setattr("data.llm.time.sleep", slept.append)
    llm(server, wait=1.0)._pause(None, 5000)
    assert 30 <= slept[0] <= 60


def test_where_everything_fails_it_stops_and_says_what_failed_last(server):
    server.fault = lambda request: "500"
    asks = llm(server, retries=1, wait=0.0, at_once=2)
    kinds = []
    with pytest.raises(UserError, match="the last 20 requests all failed, most recently so: HTTP 500: planned 500"):
        for n in range(50):
            try:
                asks.reply(Question(str(n)))
            except Failed as failed:
                kinds.append(failed.kind)
    assert kinds == ["HTTP 500"] * 9 and len(server.asked) == 20


def test_one_reply_among_many_failures_is_enough_to_go_on(server):
    server.fault = lambda request: None if len(server.asked) % 15 == 0 else "500"
    asks, failed = llm(server, retries=0, wait=0.0, at_once=1), 0
    for n in range(100):
        try:
            asks.reply(Question(str(n)))
        except Failed:
            failed += 1
    assert failed == 93 and len(server.asked) == 100


def test_questions_that_are_refused_end_it_only_where_none_was_ever_answered(server):
    server.plan, server.fault = [None], lambda request: "400"
    asks = llm(server, at_once=1)
    asks.reply(Question("short"))
    for n in range(60):  # as where the long rows of a file stand together
        with pytest.raises(Failed):
            asks.reply(Question(f"long {n}"))
    never = llm(server, at_once=1)
    with pytest.raises(UserError, match="the last 20 requests all failed, most recently so: HTTP 400: planned 400"):
        for n in range(60):
            with pytest.raises(Failed):
                never.reply(Question(f"with a setting that the model does not take {n}"))


@given(st.floats(0, 1e9))
def test_a_number_of_seconds_is_read(seconds):
    assert retry_after(str(seconds)) == seconds


@given(st.text() | st.none())
def test_any_header_is_read_or_passed_over(text):
    found = retry_after(text)
    assert found is None or found >= 0


def test_a_date_is_as_many_seconds_from_now():
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 97 < retry_after(format_datetime(later, usegmt=True)) < 101
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("nan") is None and retry_after("soon") is None


# Addresses and keys


@pytest.mark.parametrize("address", ["http://localhost:11434/v1", "https://api.openai.com/v1/", "http://[::1]:8000"])
def test_an_address_is_one(address):
    assert check_address(address) == address.rstrip("/")


@pytest.mark.parametrize(
    "address",
    ["", "localhost:11434", "ftp://host/v1", "http://", "http://host:port/v1", "http://host:99999/v1", "http://[::1/v1"]
    + ["http://user:secret@host/v1", "http://secret@host/v1", "http://host/v1?key=secret"],
)
def test_what_is_no_address_is_refused_without_showing_it(address):
    with pytest.raises(UserError, match="an address has the form") as refused:
        LLM(MODEL, address)
    assert "secret" not in str(refused.value)


def test_the_key_comes_from_the_environment_and_goes_to_the_server_alone(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # as a file that was read into the variable ends
    llm(server).reply(Question("x"))
    assert server.keys == {f"Bearer {KEY}"}
    monkeypatch.delenv("OPENAI_API_KEY")
    llm(server).reply(Question("x"))
    assert server.keys == {f"Bearer {KEY}", "Bearer none"}


@pytest.mark.parametrize("key", ["sk-über-geheim", "sk-geheim\u2026", "sk-geheim\nmore", "sk-\x1bgeheim"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(key, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds a character") as refused:
        llm(server)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_server_that_repeats_the_key_does_not_make_us_show_it(status, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.fault = lambda request: f"echo {status}"
    with pytest.raises((UserError, Failed)) as ended:
        llm(server, retries=0).reply(Question("x"))
    assert KEY not in str(ended.value) and "you sent Bearer ***" in str(ended.value)


def test_a_reply_that_repeats_the_key_has_it_blotted_out(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.reply = lambda text, request: f"your key is {KEY}"
    assert llm(server).reply(Question("x")).text == "your key is ***"


def test_what_a_server_says_is_one_line_that_prints(server):
    server.plan = ["400"]
    server.fault = None
    asks = llm(server)
    original, server.RequestHandlerClass.fail = (
        server.RequestHandlerClass.fail,
        lambda self, *_: self.send(400, {"error": {"message": "line\nline \x1b[31m" + "x" * 9999}}),
    )
    try:
        with pytest.raises(Failed) as failed:
            asks.reply(Question("x"))
    finally:
        server.RequestHandlerClass.fail = original
    assert "\n" not in str(failed.value) and "\x1b" not in str(failed.value) and len(str(failed.value)) < 300


def test_a_word_that_a_local_server_takes_for_a_key_may_stand_in_a_reply(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "ollama")
    server.reply = lambda text, request: "by ollama"
    assert llm(server).reply(Question("x")).text == "by ollama"


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert llm(server).reply(Question("x")).text == "heard: x"


# Flags


@pytest.mark.parametrize(
    "words", ["--at-once 0", "--retries -1", "--timeout 0", "--timeout inf", "--timeout nan", "--wait -1", "--wait nan"]
)
def test_flags_that_make_no_sense_are_named(words):
    with pytest.raises(UserError, match=words.split()[0]):
        parse(LLMFlags, words.split()).llm(MODEL)


def test_the_default_address_is_ollamas_and_the_flags_reach_the_model():
    found = parse(LLMFlags, ["--timeout", "7", "--retries", "2", "--at-once", "3"]).llm("llama3.1")
    assert found.endpoint.address == "http://localhost:11434/v1"
    assert (found.model, found.endpoint.timeout, found.retries, found.at_once) == ("llama3.1", 7.0, 2, 3)


def test_without_the_client_one_line_says_how_to_install_it(tmp_path):
    from tests.processes import ROOT, call

    (tmp_path / "openai.py").write_text("raise ImportError('No module named openai')")
    words = ["llm", tmp_path / "absent", "--out", tmp_path / "out", "--model", "m"]
    done = call(ROOT / "data/build.py", *words, code=2, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.stderr.count("\n") == 1 and "pip install openai" in done.stderr
