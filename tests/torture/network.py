"""Failures of the network, one after another, each named in seconds: tests/test_preflight.py, with real sockets."""

import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Iterator

from tests.torture.ground import ROOT, Ground
from tests.torture.outcome import Outcome

TESTS = "tests/test_preflight.py"


def network(ground: Ground) -> Iterator[Outcome]:
    """One outcome a test, with the seconds that it took; a test that is left out on this machine is none."""
    report, log, what = ground.folder / "network.xml", ground.folder / "network.log", f"{TESTS}: network failures"
    with open(log, "w") as file:
        words = [sys.executable, "-m", "pytest", "-q", TESTS, f"--junitxml={report}"]
        done = subprocess.run(words, cwd=ROOT, env=ground.environment, stdout=file, stderr=subprocess.STDOUT)
    if not report.exists():
        yield Outcome(what, False, 0.0, said=f"pytest ended with {done.returncode} and no report ({log})")
        return
    for case in xml.parse(report).iter("testcase"):
        ends = {child.tag for child in case}
        if "skipped" not in ends:
            held = not ends & {"failure", "error"}
            said = "" if held else f"{case.get('name')} ({log})"
            yield Outcome(what, held, float(case.get("time")), said=said)
