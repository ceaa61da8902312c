"""gpt/command.py: flags against the dataclass, and the process as its user sees it: lines, streams, exit codes."""

import os
import signal
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.command import UserError, argument, check_range, flag, parse, pip_install

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Flags:
    """What it does, 100 % of it."""

    name: str = flag("", "a word; 50 % of them", "first")
    batch: int = flag(64, "pairs per step", "first")
    grad_clip: float = flag(1.0, "largest norm")
    lr: float = flag(None, "unset: a rule")
    steps: int = flag(0, "0: as many as there are")
    shard: bool = flag(False, "spread it")
    eval: bool = flag(True, "look at it")
    device: str = flag("auto", "where", choices=("auto", "cpu"))


@dataclass(frozen=True)
class Files:
    """Read files."""

    target: str = argument("where to")
    files: list = argument("what to read", nargs="+")
    out: str = flag(help="must be given")


def refused(argv: list[str], cls=Flags) -> str:
    with pytest.raises(UserError) as caught:
        parse(cls, argv, "tool.py")
    return str(caught.value)


def test_without_flags_every_field_has_its_default():
    assert parse(Flags, []) == Flags()


words = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=150)
@given(
    name=words,
    batch=st.integers(),
    grad_clip=finite,
    lr=finite,
    shard=st.booleans(),
    look=st.booleans(),
    device=st.sampled_from(["auto", "cpu"]),
)
def test_any_values_written_as_flags_come_back_in_the_fields(name, batch, grad_clip, lr, shard, look, device):
    argv = [
        f"--name={name}",
        f"--batch={batch}",
        f"--grad-clip={grad_clip!r}",
        f"--lr={lr!r}",
        f"--device={device}",
        "--shard" if shard else "--no-shard",
        "--eval" if look else "--no-eval",
    ]
    found = parse(Flags, argv)
    assert found == Flags(name=name, batch=batch, grad_clip=grad_clip, lr=lr, shard=shard, eval=look, device=device)
    assert [type(value) for value in asdict(found).values()] == [str, int, float, float, int, bool, bool, str]


def test_a_value_may_stand_apart_from_its_flag_and_the_last_one_counts():
    assert parse(Flags, ["--batch", "8", "--lr", "-0.5", "--batch", "9"]) == Flags(batch=9, lr=-0.5)


def test_flags_cannot_be_changed_once_parsed():
    with pytest.raises(FrozenInstanceError):
        parse(Flags, []).batch = 1


def test_words_without_a_flag_fill_the_arguments_in_order():
    assert parse(Files, ["to", "a", "b", "--out", "o"]) == Files("to", ["a", "b"], out="o")
    assert parse(Files, ["--out", "o", "to", "a"]) == Files("to", ["a"], out="o")


@pytest.mark.parametrize(
    "typed, meant",
    [("--bach", "--batch"), ("--grad_clip", "--grad-clip"), ("--stps=3", "--steps"), ("--no-shards", "--no-shard")],
)
def test_an_unknown_flag_is_named_together_with_the_close_one(typed, meant):
    error = refused([typed, "8"] if "=" not in typed else [typed])
    assert typed in error and f"did you mean {meant}?" in error


def test_an_unknown_flag_that_resembles_none_is_named_alone():
    for typed in ("--xylophone", "--nonsense", "--no-nonsense"):  # --no-shard is a flag, but not in the help
        error = refused([typed, "8"])
        assert typed in error and "did you mean" not in error


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_without_an_end_is_told_that_it_must_be_finite(value):
    with pytest.raises(UserError, match=f"^--grad-clip is {value}, it must be a finite number of at least 0$"):
        check_range(parse(Flags, ["--grad-clip", value]), ("grad_clip",), 0)


def test_a_package_is_installed_for_the_python_that_runs_as_it_is_called_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = tmp_path / ".venv/bin/python"
    for python, said in (
        (there, ".venv/bin/python"),
        (tmp_path / "python", tmp_path / "python"),  # a bare word would be looked for in PATH
        (f"{tmp_path}-other/python", f"{tmp_path}-other/python"),
        (tmp_path / "my env/python", "'my env/python'"),
    ):
        monkeypatch.setattr("sys.executable", str(python))
        assert pip_install("tensorboard") == f"{said} -m pip install tensorboard"


def test_the_beginning_of_a_flag_is_no_flag():
    assert "--bat" in refused(["--bat", "8"])  # or a flag added later would change what an old command means


@pytest.mark.parametrize(
    "argv, cls, named",
    [
        (["--batch", "many"], Flags, ["--batch", "many"]),
        (["--batch", "1.5"], Flags, ["--batch", "1.5"]),
        (["--batch"], Flags, ["--batch"]),
        (["--lr", "x"], Flags, ["--lr", "x"]),
        (["--device", "gpu"], Flags, ["--device", "gpu", "auto", "cpu"]),
        (["stray"], Flags, ["stray"]),
        (["to", "a"], Files, ["--out"]),
        (["to", "--out", "o"], Files, ["files"]),
        ([], Files, ["target", "files", "--out"]),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_what_is_wrong_and_where_help_is(argv, cls, named):
    error = refused(argv, cls)
    assert "\n" not in error and "tool.py --help" in error
    assert all(name in error for name in named), error


def test_help_shows_every_flag_its_group_its_help_and_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Flags, ["--help"], "tool.py")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "tool.py [flags]",
        "What it does, 100 % of it.",
        "first:",
        "a word; 50 % of them",
        "--batch N pairs per step (default: 64)",
        "--grad-clip X largest norm (default: 1)",
        "--lr X unset: a rule",
        "--shard spread it",
        "{auto,cpu} where (default: auto)",
    ):
        assert part in shown, shown
    assert "None" not in shown and "MISSING" not in shown


def test_help_shows_a_default_of_zero_too(capsys):
    with pytest.raises(SystemExit):
        parse(Flags, ["--help"], "tool.py")
    assert "--steps N 0: as many as there are (default: 0)" in " ".join(capsys.readouterr().out.split())


# the process


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("scripts") / "tool.py"
    file.write_text('''
import sys, time
from dataclasses import dataclass
from gpt.command import UserError, argument, flag, run

@dataclass(frozen=True)
class Build:
    """Build things.

    More about it.
    """
    size: int = flag(3, "how many")

@dataclass(frozen=True)
class Check:
    """Check things."""
    file: str = argument("what")

def build(flags):
    if flags.size < 0:
        raise UserError(f"size {flags.size}\\nis below 0")
    print("\\n".join(str(i) for i in range(flags.size)))

def check(flags):
    if flags.file == "broken":
        raise RuntimeError("a bug")
    if flags.file == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    return int(flags.file)

if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        del sys.argv[1]
        run(build, Build)
    run({"build": (build, Build), "check": (check, Check)})
''')
    return file


def environment(**more: str) -> dict[str, str]:
    unset = ("RANK", "LOCAL_RANK", "PYTHONUNBUFFERED")  # torchrun's, and one that would hide a late flush
    return {name: value for name, value in os.environ.items() if name not in unset} | {"PYTHONPATH": str(ROOT)} | more


def start(script: Path, *arguments: str, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env=environment(**more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def call(script: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    process = start(script, *arguments, **more)
    out, error = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.mark.parametrize(
    "arguments, code, out",
    [
        (["one", "--size", "2"], 0, "0\n1\n"),
        (["one"], 0, "0\n1\n2\n"),
        (["build", "--size", "2"], 0, "0\n1\n"),
        (["check", "0"], 0, ""),
        (["check", "7"], 7, ""),
    ],
)
def test_a_command_runs_and_its_value_is_the_exit_code(arguments, code, out, script):
    done = call(script, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, "")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["one", "--size", "-1"], ["size -1 is below 0"]),
        (["build", "--size", "-1"], ["size -1 is below 0"]),
        (["build", "--sise", "1"], ["--sise", "--size"]),
        (["build", "--size", "x"], ["--size", "tool.py build --help"]),
        (["check"], ["file"]),
        (["bild"], ["'bild'", "build, check"]),
        ([], ["build, check"]),
    ],
)
def test_what_the_user_can_mend_is_one_line_on_stderr_and_exit_code_2(arguments, named, script):
    done = call(script, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.endswith("\n") and done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in named), done.stderr


def test_a_bug_keeps_its_traceback(script):
    done = call(script, "check", "broken")
    assert done.returncode == 1 and "Traceback" in done.stderr and "RuntimeError: a bug" in done.stderr


@pytest.mark.parametrize(
    "arguments, shown",
    [
        (["--help"], ["build", "Build things.", "check", "Check things."]),
        (["-h"], ["build"]),
        (["one", "--help"], ["--size N", "More about it."]),
        (["build", "--help"], ["tool.py build", "how many (default: 3)"]),
        (["check", "-h"], ["FILE", "what"]),
    ],
)
def test_help_goes_to_stdout_with_exit_code_0(arguments, shown, script):
    done = call(script, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(part in done.stdout for part in shown), done.stdout


def test_ctrl_c_is_one_line_and_exit_code_130(script):
    process = start(script, "check", "wait")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and error.count("\n") == 1 and "Traceback" not in error


def test_a_reader_that_leaves_early_is_no_error(script):
    process = start(script, "build", "--size", "300000")
    assert process.stdout.readline() == "0\n"
    process.stdout.close()  # as head does
    error = process.stderr.read()
    assert process.wait(timeout=30) == 0 and error == ""


def test_a_reader_that_leaves_before_the_last_lines_are_flushed_is_no_error(script):
    # so little output that all of it waits in Python's buffer until the command has returned
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, str(script), "build"], env=environment(), stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
