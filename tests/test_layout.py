"""What must hold of the source itself: which room imports which, what is said of each function. What may not be called
stands in tests/test_security.py."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("gpt", "data", "dpo")  # each imports itself and those before it
FILES = {str(path.relative_to(ROOT)): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
SOURCES = {name: tree for name, tree in TREES.items() if not name.endswith("__init__.py")}
SCRIPTS = [name for name, path in FILES.items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


def imported(tree: ast.AST) -> list[str]:
    """Every module that is imported anywhere in the file, also within functions."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return names


def dotted(node: ast.AST) -> str:
    """torch.load for the call torch.load(...)"""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 15 and {Path(name).parts[0] for name in SOURCES} == set(ROOMS) and len(SCRIPTS) >= 3


@pytest.mark.parametrize("name", SOURCES)
def test_imports_go_one_way_gpt_data_dpo(name):
    room = Path(name).parts[0]
    later = ROOMS[ROOMS.index(room) + 1 :]
    assert not [module for module in imported(TREES[name]) if module.split(".")[0] in (*later, "tests")]


@pytest.mark.parametrize("name", SOURCES)
def test_imports_name_the_whole_path_of_a_module_that_exists(name):
    ours = [module for module in imported(TREES[name]) if module.startswith(".") or module.split(".")[0] in ROOMS]
    for module in ours:
        assert not module.startswith("."), f"{module} is relative"
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or path.is_dir(), module


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_imported_from_our_modules_is_public(name):
    private = [
        alias.name
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ROOMS
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not private


@pytest.mark.parametrize("room", ROOMS)
def test_init_files_are_there_and_empty(room):
    assert (ROOT / room / "__init__.py").read_bytes() == b""


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_bears_the_name_of_one_of_the_standard_library(name):
    # `python dpo/train.py` puts dpo/ first on the path: a dpo/types.py there would stand in for Python's own
    assert Path(name).stem not in sys.stdlib_module_names
    assert Path(name).stem not in ("utils", "common", "helpers", "misc")


@pytest.mark.parametrize("name", SOURCES)
def test_three_files_alone_know_of_other_processes(name):
    knows = [module for module in imported(TREES[name]) if module.startswith("torch.distributed")]
    knows += [node.lineno for node in ast.walk(TREES[name]) if dotted(node).startswith("torch.distributed")]
    assert not knows or name in ("gpt/parallel.py", "gpt/joining.py", "gpt/launch/agent.py")


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_short_enough_to_be_read_at_a_sitting(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 260


@pytest.mark.parametrize("name", SOURCES)
def test_every_file_and_every_public_function_says_what_it_is_for(name):
    """A command may leave it to its flags: the docstring of their dataclass is what --help shows."""
    tree = TREES[name]
    assert ast.get_docstring(tree)
    flags = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.decorator_list and ast.get_docstring(node)
    }

    def is_command(function: ast.FunctionDef) -> bool:
        parameters = function.args.args
        return len(parameters) == 1 and dotted(parameters[0].annotation) in flags

    silent = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not is_command(node)
    ]
    assert not silent


@pytest.mark.parametrize("name", SOURCES)
def test_no_variable_of_a_module_changes(name):
    assert not [node.lineno for node in ast.walk(TREES[name]) if isinstance(node, (ast.Global, ast.Nonlocal))]


def test_no_command_waits_for_what_only_some_need():
    """torch's compiler, sharding, and what comes with them, would double the time in which a command starts."""
    modules = [name.removesuffix(".py").replace("/", ".") for name in SCRIPTS]
    code = f"import sys\nimport {', '.join(modules)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "dpo.train", "data.build"} <= set(done.stdout.split())
    heavy = {"torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "sympy", "matplotlib", "openai"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_the_repository_from_its_own_place_before_it_imports_from_it(name):
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    ours = tuple(f"from {room}." for room in ROOMS)
    first = next((i for i, line in enumerate(lines) if line.startswith(ours)), None)
    if first is None:  # gpt/ending.py and gpt/launch/preflight.py need Python alone
        return
    assert any(line.startswith("sys.path.insert(0, str(Path(__file__).resolve()") for line in lines[:first])


def test_every_script_shows_its_help_from_another_folder(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    started = {
        name: subprocess.Popen(
            [sys.executable, str(ROOT / name), "--help"],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in SCRIPTS
    }
    for name, process in started.items():  # all at once: most of the time goes into importing torch
        out, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, ""), name
        assert "usage" in out.lower() and Path(name).name in out
    assert not list(tmp_path.iterdir())


def test_the_commands_of_a_script_show_their_flags(tmp_path):
    for command, flag in (("rules", "--count"), ("check", "--held-out")):
        done = subprocess.run(
            [sys.executable, str(ROOT / "data" / "build.py"), command, "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and flag in done.stdout
