"""A report that follows its runs: drawn anew when they have written something, served to this machine alone.

The page asks for itself again every few seconds. A browser that another site has led here by a name of its own (DNS rebinding)
sends that name as Host, and is refused; so is everything but the one page.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dpo.page.markup import tag
from dpo.page.page import document, page_of
from dpo.page.reading import goes_on, run_folders
from dpo.run_folder import RunFolder
from gpt.command import UserError

WATCHED = ("run.json", "metrics.jsonl", "evaluation.json", "samples.jsonl", "tokens.jsonl")
SHARE = 10  # drawing takes at most one of so many seconds: the run may need the processor


class Live:
    """The page as it is now. What cannot be read is said in its place, and watched on."""

    def __init__(self, draw: Callable[[], str], stamp: Callable[[], object]):
        self.draw, self.stamp, self.lock = draw, stamp, threading.Lock()
        self.seen: object = None
        self.page, self.next = b"", 0.0

    def now(self) -> bytes:
        """The page, drawn anew where its runs have changed and it is not too soon."""
        with self.lock:
            began, stamp = time.monotonic(), self.stamp()
            if stamp != self.seen and began >= self.next:
                try:
                    drawn = self.draw()
                except UserError as error:
                    drawn = document("report", tag("p", str(error), class_="lead"), watched=True)
                self.seen, self.page = stamp, drawn.encode()
                self.next = time.monotonic() + SHARE * (time.monotonic() - began)
            return self.page


def watch(paths: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """The server, which does not serve yet; on a free port where 0 is asked for. Raises UserError where the port is taken."""
    live = Live(lambda: page_of(paths, watched=True), lambda: stamp_of(paths))
    live.now()
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(live))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port}: {error}; 0 takes a free one") from None
    server.daemon_threads = True
    return server


def stamp_of(paths: Sequence[Path]) -> tuple:
    """What differs once a run has written something, or has ended."""
    folders = []
    for path in paths:
        try:
            folders += run_folders(path)
        except UserError:  # not begun yet
            folders.append(path)
    found = [file.stat() for folder in folders for name in WATCHED if (file := folder / name).exists()]
    stats = ((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)
    return *stats, *(goes_on(RunFolder(folder)) for folder in folders)


def _handler(live: Live) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server: ThreadingHTTPServer
        server_version, sys_version, timeout = "report", "", 10.0

        def do_GET(self) -> None:
            port = self.server.server_port
            if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
                return self.send_error(403, "this is another machine's report")
            if self.path != "/":
                return self.send_error(404, "there is one page, /")
            page = live.now()
            mark = f'"{hashlib.sha256(page).hexdigest()[:16]}"'
            fresh = self.headers.get("If-None-Match") != mark
            self.send_response(200 if fresh else 304)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("ETag", mark)
            self.send_header("Content-Length", str(len(page) if fresh else 0))
            self.end_headers()
            if fresh:
                self.wfile.write(page)

        def log_message(self, *of) -> None:
            """Nothing: the terminal is the run's."""

    return Handler


HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
