"""A run that explains itself: what was run, what it brought, its curves, its answers, and where training acted.

    python dpo/report.py runs/NAME                  writes runs/NAME/report.html, as training and evaluation do at their end
    python dpo/report.py runs/A runs/B              both on one page, runs/report.html
    python dpo/report.py runs/NAME --watch          follows a run that goes on or is yet to begin, in a browser of this machine

A page is one file without script or network. Its parts stand in dpo/page/, and are imported when one is drawn: matplotlib
is an extra.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dpo.run_folder import RunFolder
from gpt.command import UserError, argument, check_range, flag, pip_install, run
from gpt.files import whole


@dataclass(frozen=True)
class Flags:
    """Write a run's report, or that of several runs, as one HTML file; or serve it while they go on.

    python dpo/report.py runs/NAME
    python dpo/report.py runs/NAME --watch
    """

    runs: list = argument("run folders; a folder of dpo/compare.py or dpo/online.py stands for its runs", nargs="+")
    out: str = flag("", "file to write; empty: report.html in the folder that is named, of several beside the first")
    watch: bool = flag(False, "serve the page on 127.0.0.1 and draw it anew while the runs go on, until Ctrl+C")
    port: int = flag(0, "of --watch; 0: a free one")


def main(flags: Flags) -> int:
    paths = [Path(name) for name in flags.runs]
    check_range(flags, ("port",), 0, below=2**16)
    for path in paths:
        if not (path.is_dir() or flags.watch and not path.exists()):
            raise UserError(f"{path} is no folder; name a run folder, what dpo/train.py was given as --out")
    if flags.watch:
        return follow(paths, flags)
    if flags.port:
        raise UserError("--port is of --watch")
    out = Path(flags.out or os.path.normpath(paths[0] / ("report.html" if len(paths) == 1 else "../report.html")))
    write_page(paths, out)
    print(f"written to {out}")
    return 0


def follow(paths: list[Path], flags: Flags) -> int:
    """Serve the page until Ctrl+C."""
    if flags.out:
        raise UserError("--watch writes no file; leave out --out")
    with_matplotlib()
    from dpo.page.reading import not_begun
    from dpo.page.serve import watch

    with watch(paths, flags.port) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/ shows it until Ctrl+C", flush=True)
        for path in not_begun(paths):
            print(f"waiting for {path} to begin", flush=True)
        server.serve_forever()
    return 0


def write_page(paths: list[Path], out: Path) -> None:
    """Draw the page and write it. Raises UserError where a run cannot be read, or matplotlib is missing."""
    with_matplotlib()
    from dpo.page.page import page_of

    page = page_of(paths)
    with whole(out) as file:
        file.write(page)


def write_report(folder: RunFolder) -> str:
    """Write a run's report.html. Returns where it stands, or in one line why there is none: a run that is finished stays so."""
    try:
        write_page([folder.path], folder.report)
    except UserError as error:
        return f"none: {error}"
    except Exception as error:  # ours to mend, but no reason to call a training failed that is not
        return f"none: {type(error).__name__}: {error}; python dpo/report.py {folder.path} shows where"
    return str(folder.report)


def with_matplotlib() -> None:
    """Raises UserError where it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(f"matplotlib, which draws, is not installed; {pip_install('matplotlib')}") from None


if __name__ == "__main__":
    run(main, Flags)
