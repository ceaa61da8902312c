"""dpo/report.py: the command, the page that follows a run over real sockets, and runs that end without matplotlib."""

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from dpo import report
from dpo.page import serve
from dpo.run_folder import RunFolder
from gpt.command import UserError, parse
from tests.pages import Taken, dpo_lines, make_run
from tests.processes import ENVIRONMENT, ROOT, call
from tests.processes import command as words


def command(*flags) -> int:
    return report.main(parse(report.Flags, [str(word) for word in flags]))


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run")


def test_the_command_writes_the_page_beside_the_run_or_where_it_is_told(run, tmp_path, capsys, monkeypatch):
    assert command(run) == 0 and Taken((run / "report.html").read_text()).of("svg")
    assert str(run / "report.html") in capsys.readouterr().out
    elsewhere, other = tmp_path / "elsewhere", make_run(tmp_path / "deep/other")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert command(run, other) == 0 and "2 runs" in (tmp_path / "report.html").read_text()
    assert command("../deep/other", "../run") == 0 and (tmp_path / "deep/report.html").exists()
    assert not list(elsewhere.iterdir()) and str(Path("../deep/report.html")) in capsys.readouterr().out
    monkeypatch.chdir(other)  # named ".", it is not its own parent
    assert command(".", run) == 0 and not (other / "report.html").exists()
    assert command(run, "--out", "there/page.html") == 0 and (other / "there/page.html").exists()


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["nowhere"], "nowhere is no folder; name a run folder"),
        (["run/empty"], "run/empty holds no run: no metrics.jsonl; name a run folder of dpo/train.py"),
        (["run", "--port", 80], "--port is of --watch"),
        (["run", "--watch", "--port", 70000], "--port is 70000"),
        (["run", "--watch", "--out", "x.html"], "--watch writes no file"),
        (["run/run.json", "--watch"], "run/run.json is no folder"),
        (["run", "--out", "."], "is a folder; name a file"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, flags, expected, monkeypatch):
    monkeypatch.chdir(run.parent)
    (run / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        command(*flags)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_page_that_cannot_be_made_leaves_the_old_one(run):
    command(run)
    before = (run / "report.html").read_bytes()
    (run / "metrics.jsonl").write_text("damaged\n")
    with pytest.raises(UserError, match="line 1"):
        command(run)
    assert (run / "report.html").read_bytes() == before


# at the end of a training


def test_a_run_ends_well_without_matplotlib_and_says_what_to_install(toy, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('No module', name='matplotlib')")
    flags = [
        "--init",
        toy / "model",
        "--pairs",
        toy / "pairs.jsonl",
        "--steps",
        2,
        "--eval-every",
        0,
        "--out",
        tmp_path / "run",
    ]
    done = call(ROOT / "dpo/train.py", *flags, PYTHONPATH=str(tmp_path))
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("report")]
    assert "pip install matplotlib" in line and done.stdout.splitlines()[-1].startswith("done")
    assert not (tmp_path / "run/report.html").exists() and (tmp_path / "run/model/config.json").exists()
    # what is missing is made later, from what the run left
    command(tmp_path / "run")
    found = Taken((tmp_path / "run/report.html").read_text())
    assert "2 steps of 64 pairs" in found.text and "Where training acted" in found.text


def test_whatever_goes_wrong_in_drawing_a_finished_run_stays_finished(run, monkeypatch):
    monkeypatch.setattr(report, "write_page", lambda paths, out: 1 / 0)
    said = report.write_report(RunFolder(run))
    assert said.startswith("none: ZeroDivisionError") and f"python dpo/report.py {run}" in said and "\n" not in said


# --watch


@pytest.fixture
def served(run, monkeypatch):
    """(port, folder) of a page that is served in this process, and drawn as often as its run changes."""
    monkeypatch.setattr(serve, "SHARE", 0)
    with serve.watch([run], 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1], run
        server.shutdown()
        thread.join()


def get(port: int, path: str = "/", method: str = "GET", **headers) -> tuple[int, dict, str]:
    """(status, headers, body) of a request to the server; host= is sent as Host."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read().decode()
    connection.close()
    return found


def test_the_page_is_served_with_the_one_script_that_its_policy_names(served):
    port, run = served
    status, headers, body = get(port)
    page = Taken(body)
    assert status == 200 and page.of("svg") and len(page.of("script")) == 1
    (policy,) = page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    assert re.search(r"script-src 'sha256-[\w+/=]+'; connect-src 'self'$", policy["content"])
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert get(port, If_None_Match=headers["ETag"])[0] == 304


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{}", "127.0.0.1", "127.0.0.1:1", ""])
def test_a_request_by_another_name_is_refused_as_dns_rebinding_makes_it(served, host):
    port, _ = served
    status, _, body = get(port, Host=host.format(port))
    assert status == 403 and "svg" not in body


@pytest.mark.parametrize("path", ["/run.json", "/../run.json", "/metrics.jsonl", "/?x"])
def test_nothing_but_the_page_is_served(served, path):
    assert get(served[0], path)[0] == 404
    assert get(served[0], method="POST")[0] == 501


def test_it_listens_on_loopback_alone_and_a_port_that_is_taken_is_one_line(served, run):
    port, _ = served
    with pytest.raises(UserError, match=f"--port {port}"):
        serve.watch([run], port)
    with socket.socket() as other:  # of this machine too, but not loopback's first address
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", port)) != 0


def test_the_page_is_drawn_anew_when_the_run_has_written_something_and_not_before(run, monkeypatch):
    drawn = []
    live = serve.Live(lambda: drawn.append(0) or f"{len(drawn)}", lambda: serve.stamp_of([run]))
    monkeypatch.setattr(serve, "SHARE", 0)
    assert [live.now(), live.now()] == [b"1", b"1"]
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(dpo_lines()[-1]) + "\n")
    assert live.now() == b"2"
    (run / "evaluation.json").unlink()
    assert [live.now(), live.now()] == [b"3", b"3"]


def test_drawing_takes_but_a_part_of_the_time(run, monkeypatch):
    clock = iter(range(0, 1000, 1))
    monkeypatch.setattr(serve.time, "monotonic", lambda: next(clock))
    stamps = iter(range(100))
    drawn = []
    live = serve.Live(lambda: drawn.append(0) or "x", lambda: next(stamps))
    for _ in range(40):
        live.now()
    assert 2 <= len(drawn) <= 8  # each took a second or two, of 40 that went by


def test_what_cannot_be_read_is_said_on_the_page_and_watched_on(served):
    port, run = served
    good = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("<b>damaged</b>\n")
    body = get(port)[2]
    assert "&lt;b&gt;damaged" in body and "line 1" in body and not Taken(body).of("svg")
    (run / "metrics.jsonl").write_text(good)
    assert Taken(get(port)[2]).of("svg")


def test_the_command_serves_a_run_that_has_not_begun_and_ends_with_ctrl_c_in_one_line(tmp_path):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = tmp_path / "there/<b>run"  # not even its folder is there
    process = subprocess.Popen(words(ROOT / "dpo/report.py", folder, "--watch"), env=ENVIRONMENT, text=True, **pipes)
    try:
        line = process.stdout.readline()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ shows it until Ctrl\+C\n", line)[1])
        assert process.stdout.readline() == f"waiting for {folder} to begin\n"
        assert f"Waiting for {folder} to begin." in Taken(get(port)[2]).text
        make_run(folder)
        until = time.monotonic() + 60  # it draws for a part of the time only, and so not at once
        while not Taken(get(port)[2]).of("svg"):
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert out == "" and errors.count("\n") == 1 and "Ctrl+C" in errors and process.returncode == 130
