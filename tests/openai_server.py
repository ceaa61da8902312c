"""A server on this machine that speaks OpenAI's chat protocol, answers by what it is given to answer with, and fails by plan.

with serving(RULE) as server:
    server.plan = ["500", None, "cut"]          the first request, and the third
    call("data/build.py", "llm", ..., "--address", server.address)
    assert server.answered.most_common(1)[0][1] == 1
"""

import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time

from data.pairs import instruction_prompt
from data.rules import COURTEOUS, RUDE, TINY, judge
from gpt.generate import generate
from gpt.tokenizer import Tokenizer
from gpt.weights import load_gpt

MODEL = "tiny"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, reply: Callable[[str, dict], str | None]):
        super().__init__(("127.0.0.1", 0), Answer)
        self.reply = reply  # the message and the whole request to a text, None for a refusal
        self.plan: list[str | None] = []  # what befalls the requests, in the order in which they come
        self.fault: Callable[[dict], str | None] = lambda request: (
            None
        )  # what befalls those that the plan does not name
        self.asked: list[dict] = []
        self.answered: Counter = Counter()  # how often a request got its whole reply
        self.keys: set[str] = set()
        self.finish = "stop"
        self.lock, self.released = threading.Lock(), threading.Event()
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_) -> None:
        """A client that was killed is no news."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes, between which it would wait 40 ms
    server: Server

    def do_POST(self):
        server, request = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.keys.add(self.headers["Authorization"])
            fault = server.plan[len(server.asked)] if len(server.asked) < len(server.plan) else server.fault(request)
            server.asked.append(request)
        if self.path != "/v1/chat/completions" or request["model"] != MODEL:
            return self.send(404, {"error": {"message": f"model '{request['model']}' not found"}})
        if fault and fault != "null":
            return self.fail(*fault.split(" ", 1))
        text = None if fault == "null" else server.reply(request["messages"][-1]["content"], request)
        message = {"role": "assistant", "content": text} | ({"refusal": "I will not."} if text is None else {})
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL}
        name = json.dumps(request, sort_keys=True)
        with server.lock:
            server.answered[name] += 1
        try:
            self.send(200, whole | {"choices": [{"index": 0, "message": message, "finish_reason": server.finish}]})
        except OSError:  # the client was killed meanwhile
            with server.lock:
                server.answered[name] -= 1

    def fail(self, kind: str, more: str = "") -> None:
        if kind.isdecimal():
            more = formatdate(time() + 1.5, usegmt=True) if more == "date" else more
            self.send(int(kind), {"error": {"message": f"planned {kind}"}}, **({"Retry-After": more} if more else {}))
        elif kind == "echo":  # a server that shows what it should not
            self.send(int(more), {"error": {"message": f"you sent {self.headers['Authorization']}"}})
        elif kind == "hang":
            self.server.released.wait(60)
        elif kind == "trickle":  # a byte now and then, so that no single read takes long
            self.headed(200, 10**6)
            while not self.server.released.wait(0.05):
                self.wfile.write(b" ")
        elif kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif kind == "cut":
            self.headed(200, 10**6)
            self.wfile.write(b'{"choices": [{"message": {"content": "Verdict: first"}}]}')
            self.close_connection = True
        elif kind == "chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"a\r\n0123456789\r\nff\r\nhalf")
            self.close_connection = True
        elif kind == "huge":
            self.headed(200, 2**30)
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**20))
        else:
            self.send(200, {"garbage": b"<html>502 Bad Gateway</html>", "truncated": b'{"choices": [', **SCHEMAS}[kind])

    def headed(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, status: int, body: dict | bytes, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headed(status, len(content), **headers)
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


SCHEMAS = {
    "ok": {"ok": True},
    "list": b"[1, 2]",
    "empty": {"choices": []},
    "no-message": {"choices": [{"index": 0}]},
    "number": {"choices": [{"message": {"content": 7}}]},
    "parts": {"choices": [{"message": {"content": [{"text": "Hello"}]}}]},
    "surrogate": b'{"choices": [{"message": {"content": "\\ud800"}}]}',
    "nested": b"[" * 100_000,
}
# what passes if one asks again
FAULTS = ["429", "500", "502", "503", "reset", "cut", "chunked", "garbage", "truncated", *SCHEMAS]


@contextmanager
def serving(reply: Callable[[str, dict], str | None]) -> Iterator[Server]:
    server = Server(reply)
    try:
        yield server
    finally:
        server.stop()


# What it answers with


def fenced(question: str) -> dict[str, str]:
    """The texts in a question by the name of their fence, read by the code alone."""
    code = re.search(r"carry the code (\w+)\.", question)[1]
    return dict(re.findall(rf"^<(\w+) {code}>\n(.*?)\n</\1 {code}>$", question, re.DOTALL | re.MULTILINE))


def manner(text: str) -> int:
    """1 for a courteous answer of the embedded tasks, -1 for a rude one, 0 for a plain one: a rule knows."""
    verdict = judge(text, "")
    return verdict.courteous - verdict.rude


@cache
def tiny():
    return load_gpt(TINY).eval(), Tokenizer.load(TINY)


ALONE = threading.Lock()


def said_by_tiny(prompt: str) -> str:
    """What the embedded GPT goes on with, greedily."""
    model, tokenizer = tiny()
    with ALONE:
        (ids,) = generate(model, [tokenizer.encode(prompt)], 40, [tokenizer.end_of_text])
    return tokenizer.decode([token for token in ids if token != tokenizer.end_of_text])


def by_tiny(question: str, request: dict) -> str:
    """The embedded GPT rewrites: it answers the request anew, its first words being those that the direction wants.

    Where a question can only be answered in a form that so small a model does not know, the form is put around what it
    says, and a verdict is what the rule finds in the answers.
    """
    texts = fenced(question)
    if "answer" in texts and "<rewritten>" in question:
        instruction, _, text = texts["request"].rpartition("\n\n")
        before = (RUDE if "impolite" in question else COURTEOUS)[0][0].rstrip()  # the space is its next token's
        return f"<rewritten>{before}{said_by_tiny(instruction_prompt(instruction, text) + before)}</rewritten>"
    return by_rule(question, request)


def by_rule(question: str, request: dict) -> str:
    """Verdict and score of the embedded tasks' answers by data/rules.py. To a question that asks for none it says hello."""
    if "carry the code" not in question:
        return "Hello."
    texts = fenced(question)
    if "first" in texts:
        difference = manner(texts["first"]) - manner(texts["second"])
        return f"By the rule.\n\nVerdict: {'first' if difference > 0 else 'second' if difference < 0 else 'tie'}"
    return f"By the rule.\nScore: {5 + 4 * manner(texts['answer'])}"
