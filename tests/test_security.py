"""What somebody else wrote - models, pairs, checkpoints, run folders - may be wrong, huge or hostile: it never runs code, fills
the memory, ends in a traceback, or writes where nobody asked it to."""

import ast
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data.pairs import read_pairs, write_rows
from data.reading import ROW
from data.rules import TINY
from dpo import online
from dpo.run_folder import RunFolder
from gpt import config_json, untrusted, vocabulary
from gpt.checkpoint import latest_checkpoint
from gpt.command import UserError
from gpt.config_json import read_config
from gpt.files import seal, whole, whole_folder
from gpt.hub import is_hub_name
from gpt.tokenizer import Tokenizer
from gpt.weights import load_gpt, open_folder
from tests.processes import ENVIRONMENT, ROOT, call

# What may not be called, or as much as named, by its full name whatever it was imported as

ROOMS = ("gpt", "data", "dpo", "tests/bench", "tests/torture")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]

FORBIDDEN = {
    "a pickle can run code": (
        r"(_?pickle|cPickle|cloudpickle|dill|marshal|shelve|joblib|jsonpickle|torch\.package)(\..*)?"
        r"|torch\.(load|save|serialization\..*|jit\.load)|.*\.(read_pickle|to_pickle)"
    ),
    "objects travel between processes as pickles": (
        r".*_object(_list)?|(torch\.)?multiprocessing(\..*)?|concurrent\.futures\.ProcessPoolExecutor"
        r"|torch\.distributed\.(rpc|checkpoint)(\..*)?|torch\.utils\.data\.DataLoader"
    ),
    "text is run as code": (
        r"(builtins\.)?(eval|exec|compile|__import__)|importlib\.import_module|runpy(\..*)?|torch\.hub(\..*)?"
        r"|yaml\.(load|load_all|full_load|unsafe_load)"
    ),
    "a file is run as code": (
        r"importlib\.(machinery|reload|util\.(spec_from|module_from).*)(\..*)?|.*\.(exec_module|load_module)"
        r"|pkgutil\.resolve_name|imp(\..*)?"
    ),
    "a shell runs text": r"os\.(system|popen)|subprocess\.(getoutput|getstatusoutput)|pty\..*",
    "a name that somebody else can take first": r"tempfile\.mktemp",
}
# Who may: what is named there is the user's own file, on his command line, and one of our own functions, in a table of ours
ALLOWED = {
    "data/own_score.py": {
        "importlib.util.spec_from_file_location",
        "importlib.util.module_from_spec",
        "spec.loader.exec_module",
    },
    "data/scores.py": {"pkgutil.resolve_name"},
    "tests/bench/record.py": {"pkgutil.resolve_name"},
}
# keyword: the one value, as it is written, that it may have
KEYWORDS = {"allow_pickle": "False", "weights_only": None, "trust_remote_code": "False", "shell": "False"}


def offences(source: str) -> list[str]:
    """'line 3: torch.load: a pickle can run code' for each place of a file that names what is forbidden."""
    tree = ast.parse(source)
    origin, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                origin[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                found.append((node.lineno, alias.name))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                found.append((node.lineno, f"{node.module}.{alias.name}"))

    def name(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return f"{name(node.value)}.{node.attr}"
        return origin.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            found.append((node.lineno, name(node)))
    bad = [
        f"line {line}: {one}: {why}"
        for line, one in sorted(set(found))
        for why, names in FORBIDDEN.items()
        if re.fullmatch(names, one)
    ]
    return bad + [
        f"line {node.value.lineno}: {node.arg}={ast.unparse(node.value)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in KEYWORDS and ast.unparse(node.value) != KEYWORDS[node.arg]
    ]


def test_there_are_files_to_look_at():
    assert len(FILES) > 60


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_unpickled_or_run_that_came_as_data_and_no_objects_travel_between_processes(file):
    allowed = ALLOWED.get(str(file.relative_to(ROOT)), set())
    found = offences(file.read_text(encoding="utf-8"))
    assert not [line for line in found if line.split(": ")[1] not in allowed]
    assert allowed <= {line.split(": ")[1] for line in found}  # none is allowed for nothing


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import _pickle",
        "import pickle as json",
        "from pickle import loads",
        "def f():\n    import dill",
        "import cloudpickle\n",
        "import joblib",
        "import marshal",
        "import shelve",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=True)",
        "import torch as t\nt.load('a')",
        "from torch import load as read\nread('a')",
        "import torch\nread = torch.load",
        "import torch\ntorch.save({}, 'a')",
        "from torch import jit\njit.load('a')",
        "import torch.hub",
        "import torch\ntorch.hub.load('a', 'b')",
        "import torch\ntorch.hub.load_state_dict_from_url('a')",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "import numpy as np\nnp.load('a', allow_pickle=flag)",
        "import pandas as pd\npd.read_pickle('a')",
        "import torch.distributed as dist\ndist.all_gather_object(a, b)",
        "import torch.distributed as dist\ndist.broadcast_object_list(a)",
        "import torch.distributed as dist\ndist.gather_object(a)",
        "from torch.distributed import scatter_object_list",
        "from torch.distributed import send_object_list as send\nsend(a)",
        "from torch.distributed.distributed_c10d import recv_object_list",
        "import torch.distributed.checkpoint as dcp",
        "from torch.distributed.checkpoint import load",
        "from torch.distributed import checkpoint",
        "import torch.distributed as dist\ndist.checkpoint.load(a)",
        "from torch.distributed import rpc",
        "import multiprocessing",
        "import torch.multiprocessing as mp\nmp.spawn(f)",
        "from concurrent.futures import ProcessPoolExecutor",
        "from torch.utils.data import DataLoader",
        "import torch\ntorch.utils.data.DataLoader(a, num_workers=2)",
        "eval('1')",
        "exec('1')",
        "compile('1', 'a', 'eval')",
        "import builtins\nbuiltins.eval('1')",
        "run = eval",
        "__import__('pickle')",
        "import importlib\nimportlib.import_module(name)",
        "import importlib\nimportlib.util.spec_from_file_location('a', 'b')",
        "from importlib.util import module_from_spec",
        "from importlib.machinery import SourceFileLoader",
        "spec.loader.exec_module(module)",
        "from pkgutil import resolve_name",
        "import pkgutil\npkgutil.resolve_name(text)",
        "import os\nos.system('ls')",
        "from os import popen\npopen('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import Popen\nPopen('ls', shell=1)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import yaml\nyaml.load(text)",
        "import tempfile\ntempfile.mktemp()",
        "from transformers import AutoModel\nAutoModel.from_pretrained('a', trust_remote_code=True)",
    ],
)
def test_what_is_forbidden_is_seen_whatever_it_is_called(source):
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import re\nre.compile('a')",
        "import torch\ntorch.compile(model)",
        "import json\njson.load(file)",
        "from importlib.util import find_spec\nfind_spec('openai')",
        "from safetensors.torch import load_file\nload_file('a')",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import numpy as np\nnp.load('a', allow_pickle=False)",
        "import torch.distributed as dist\ndist.broadcast(values, src=0)",
        "# pickle, torch.load, eval(text)",
        "'''never torch.load(file)'''",
    ],
)
def test_what_is_allowed_is_let_by(source):
    assert not offences(source)


# Real attacks: files that run code when somebody unpickles them


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path) -> Path:
    """The file that a bomb makes; at the end of the test it must not be there."""
    mark = tmp_path / "code-has-run"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # the bombs work
    mark.unlink()
    yield mark
    assert not mark.exists()


def hostile(folder: Path, mark: Path) -> None:
    """Put beside what is there all the files by which tools that unpickle have been attacked."""
    folder.mkdir(exist_ok=True)
    for name in (
        *("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.pt"),
        *("adapter_model.bin", "tf_model.h5", "consolidated.00.pth", "checkpoint.pkl", "state.pkl"),
    ):
        torch.save({"transformer.wte.weight": Bomb(mark)}, folder / name)
    for name in (".metadata", "vocab.pkl", "data.pickle"):  # the first is what torch.distributed.checkpoint unpickles
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    for name in ("modeling_gpt2.py", "tokenization_gpt2.py", "sitecustomize.py", "torch.py", "json.py", "__init__.py"):
        (folder / name).write_text(f"open({str(mark)!r}, 'w')\n")


def test_a_model_that_is_a_pickle_alone_is_refused_and_does_not_run(tmp_path, mark):
    shutil.copytree(TINY, tmp_path / "model")
    hostile(tmp_path / "model", mark)
    (tmp_path / "model/model.safetensors").unlink()
    with pytest.raises(UserError, match="pickle, which can run code"):
        open_folder(tmp_path / "model")


def test_a_pickle_under_the_name_of_a_safetensors_file_is_refused_and_does_not_run(tmp_path, mark):
    shutil.copytree(TINY, tmp_path / "model")
    for content in (pickle.dumps(Bomb(mark)), b"\x80\x04" + b"." * 100):
        (tmp_path / "model/model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="no whole safetensors file"):
            load_gpt(tmp_path / "model")
    torch.save({"a": Bomb(mark)}, tmp_path / "model/model.safetensors")
    with pytest.raises(UserError, match="no whole safetensors file"):
        load_gpt(tmp_path / "model")


@pytest.mark.parametrize("at_a_checkpoint", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hostile_files_beside_a_model_pairs_and_a_checkpoint_are_not_looked_at(tmp_path, mark, at_a_checkpoint):
    shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((TINY / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_gpt2.GPT"}, "trust_remote_code": True}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    hostile(tmp_path / "model", mark)
    out = tmp_path / "run"
    words = ["--init", tmp_path / "model", "--steps", 2, "--batch", 4, "--eval-every", 0, "--save-every", 1]
    words = [ROOT / "dpo/train.py", *words, "--out", out]
    # where a user stands counts for nothing: json.py and torch.py of this folder stay unread
    call(*words, *([] if at_a_checkpoint else ["--dry-run"]), cwd=tmp_path / "model")
    if at_a_checkpoint:
        shutil.rmtree(out / "model")
        for folder in (out, out / "checkpoints", *(out / "checkpoints").iterdir(), out / "checkpoints/step-000009"):
            hostile(folder, mark)
        said = call(*words, "--resume", cwd=tmp_path / "model")
        assert "step-000009 is damaged or unfinished" in said.stdout
        assert (out / "model/model.safetensors").exists()


def test_a_run_folder_whose_state_is_a_pickle_is_no_checkpoint(tmp_path, mark):
    folder = tmp_path / "checkpoints/step-000003"
    checkpoint_of(folder, "{}")
    assert latest_checkpoint(folder.parent) == (folder, {})
    (folder / "state.json").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError, match="every checkpoint there is damaged"):
        latest_checkpoint(folder.parent)


def test_a_folder_of_rounds_whose_score_is_a_file_of_code_does_not_run_it(tmp_path, mark):
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds/evil.py").write_text(f"open({str(mark)!r}, 'w')\ndef score(prompt, answer): return 1\n")
    evil = f"{tmp_path}/rounds/evil.py:score"
    for spec in (evil, f"rules:correct + 0.5*{evil}", f"-1*{evil} + length:longer"):
        (tmp_path / "rounds/run.json").write_text(json.dumps({"flags": {"rounds": 1, "score": spec}}))
        with pytest.raises(UserError, match="a folder runs no code, so say it again: --score"):
            online.main(online.Flags(resume=True, out=str(tmp_path / "rounds")))
    write_rows(
        tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "score": evil, "family": evil}]
    )
    assert read_pairs(tmp_path / "pairs.jsonl")[0].family == evil


# What is too large, too deep, or no number


def checkpoint_of(folder: Path, state: str) -> None:
    """A sealed checkpoint with this state.json."""
    folder.mkdir(parents=True)
    for name in ("model", "optimizer"):
        save_file({"a": torch.zeros(2)}, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(state)
    seal(folder, ("model.safetensors", "optimizer.safetensors", "state.json"))


def refusal(read, *arguments) -> str:
    """The one line, of nothing but printing characters, with which something is refused."""
    with pytest.raises(UserError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000, message[:2000]
    return message


BOMBS = {
    "lists in lists": "[" * 100_000,
    "objects in objects": '{"a":' * 100_000,
    "lists in an object": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "a number of many digits": '{"n_layer": ' + "9" * 5000 + "}",
    "a text that does not end": '{"a": "' + "x" * 100_000,
    "nothing": "",
}


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_in_a_model_folder_is_one_line_that_names_the_file(name, what, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    if name.endswith("index.json"):
        (tmp_path / "model/model.safetensors").unlink()
    (tmp_path / "model" / name).write_text(BOMBS[what])
    assert str(tmp_path / "model" / name) in refusal(open_folder, tmp_path / "model")


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("what", list(BOMBS)[:5])
def test_a_bomb_among_pairs_is_one_line_that_names_the_file_and_the_line(what, ending, tmp_path):
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    between = "\n" if ending == "jsonl" else ",\n"
    file = tmp_path / f"pairs.{ending}"
    file.write_text("[" * (ending == "json") + good + between + BOMBS[what])
    assert f"{file}, line 2" in refusal(read_pairs, file)


def test_a_bomb_is_one_line_and_code_2_for_the_user_too(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model/config.json").write_text(BOMBS["lists in lists"])
    done = call("dpo/train.py", "--init", tmp_path / "model", "--out", tmp_path / "run", code=2, cwd=ROOT)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_what_is_nested_less_deep_than_the_bound_is_read(tmp_path):
    deep = untrusted.DEPTH - 1
    nested = "[" * deep + "]" * deep
    shutil.copytree(TINY, tmp_path / "model")
    file = tmp_path / "model/config.json"
    whole_config = file.read_text().rstrip().removesuffix("}")
    file.write_text(f'{whole_config}, "more": {nested}}}')
    assert read_config(file).n_layer == 5
    file.write_text(f'{whole_config}, "more": [{nested}]}}')
    assert "nested too deep" in refusal(read_config, file)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "more": ' + "[" * 300 + "]" * 300 + "}")
    assert len(read_pairs(pairs)) == 1


COUNTED = ("n_layer", "n_positions", "n_embd", "vocab_size", "n_head", "n_inner")
NO_COUNTS = ("-1", "0", "1.0", "1e9", "1e999", "NaN", "Infinity", "true", '"8"', "[]", "1" + "0" * 12, "9" * 4000)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("value", NO_COUNTS, ids=lambda value: value[:8])
def test_a_size_that_is_none_or_beyond_all_reason_is_refused_by_name(name, value, tmp_path):
    config = json.loads((TINY / "config.json").read_text()) | {name: "@"}
    (tmp_path / "config.json").write_text(json.dumps(config).replace('"@"', value))
    assert f"{name} is" in refusal(read_config, tmp_path / "config.json")


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", "1e-999", "true", "1"])
def test_an_epsilon_that_is_no_fraction_is_refused(value, tmp_path):
    config = json.loads((TINY / "config.json").read_text()) | {"layer_norm_epsilon": "@"}
    (tmp_path / "config.json").write_text(json.dumps(config).replace('"@"', value))
    assert "layer_norm_epsilon is" in refusal(read_config, tmp_path / "config.json")


@pytest.mark.parametrize("name", ["margin"])
@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", "1e7", "9" * 4000, "true", '"1"', "[1]"])
def test_a_margin_that_is_no_number_of_a_margin_is_refused_by_its_row(name, value, tmp_path):
    row = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", name: "@"}).replace('"@"', value)
    (tmp_path / "pairs.jsonl").write_text(row.replace(value, "1") + "\n" + row)
    assert f"row 2: field '{name}'" in refusal(read_pairs, tmp_path / "pairs.jsonl")


# What it costs to refuse, in a process of its own

COST = """
import resource, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from gpt.command import UserError
from {module} import {function}
peak = lambda: next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
before, began = peak(), time.monotonic()
try:
    list({function}({path!r}) or ())
except UserError as error:
    print((peak() - before) // 1024, time.monotonic() - began, error)
"""
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of a process")


def cost(module: str, function: str, path: Path) -> tuple[int, float, str]:
    """(MiB, seconds, the message) of refusing what lies there."""
    script = COST.format(root=str(ROOT), module=module, function=function, path=str(path))
    megabytes, seconds, message = call("-c", script).stdout.split(" ", 2)
    return int(megabytes), float(seconds), message


@LINUX
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_row_of_200_megabytes_is_refused_by_its_number_without_reading_all_of_it(tmp_path, ending):
    file = tmp_path / f"pairs.{ending}"
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    between = "\n" if ending == "jsonl" else ","
    with open(file, "w") as out:
        out.write("[" * (ending == "json") + between.join([good] * 3) + between + '{"prompt": "')
        for _ in range(200):
            out.write("x" * 2**20)
        out.write('"}' + "]" * (ending == "json"))
    megabytes, _, message = cost("data.pairs", "read_pairs", file)
    assert f"{file}, row 4: longer than 16 MiB" in message and megabytes < 150


def test_a_row_as_long_as_the_bound_is_read_and_one_byte_more_is_not(tmp_path):
    around = len(json.dumps({"prompt": "", "chosen": "b", "rejected": "c"}))
    row = {"prompt": "x" * (ROW - around), "chosen": "b", "rejected": "c"}
    for ending, left, right in ((".jsonl", "", "\r\n"), (".json", "[ ", " ]")):
        file = tmp_path / f"pairs{ending}"
        file.write_text(left + json.dumps(row) + right, newline="")
        assert len(read_pairs(file)[0].prompt) == ROW - around
        file.write_text(left + json.dumps(row | {"rejected": "cc"}) + right, newline="")
        assert "row 1: longer than" in refusal(read_pairs, file)


@LINUX
def test_white_space_without_end_is_refused(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(" \n" * 50_000_000)
    megabytes, _, message = cost("data.pairs", "read_pairs", file)
    assert "white space" in message and megabytes < 150


@LINUX
def test_a_shape_that_no_file_could_fill_takes_no_memory_and_little_time(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    largest = dict.fromkeys(("n_positions", "n_embd", "vocab_size", "n_inner"), config_json.SIZE)
    config = json.loads((TINY / "config.json").read_text()) | largest | {"n_layer": config_json.LAYERS, "n_head": 1}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    megabytes, seconds, message = cost("gpt.weights", "load_gpt", tmp_path / "model")
    assert "is missing" in message and megabytes < 200 and seconds < 60


def header(content: bytes, claimed: int | None = None) -> bytes:
    return (len(content) if claimed is None else claimed).to_bytes(8, "little") + content


def tensor(*offsets: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DATA = b"\0" * 12
HEADERS = {
    "a header of 4 exabytes": header(b"{}", 2**62),
    "a header of 99 megabytes, cut": header(b"{}", 99 * 2**20),
    "a header longer than the file": header(b"{}", 2**20),
    "a header of brackets": header(b"[" * 100_000),
    "brackets in the metadata": header(b'{"__metadata__": {"a": ' + b"[" * 100_000 + b"}}"),
    "tensors that overlap": header(json.dumps({"a": tensor(0, 8), "b": tensor(4, 12)}).encode()) + DATA,
    "a tensor beyond the file": header(json.dumps({"a": tensor(0, 8 * 10**12)}).encode()) + DATA,
    "a tensor that ends before it begins": header(json.dumps({"a": tensor(8, 0)}).encode()) + DATA,
    "a shape that overflows": header(json.dumps({"a": tensor(0, 8, shape=(2**62, 2**62))}).encode()) + DATA,
    "a negative shape": header(json.dumps({"a": tensor(0, 8, shape=(-2,))}).encode()) + DATA,
    "a kind of number that is none": header(json.dumps({"a": tensor(0, 8, dtype="\x1b[2J\n")}).encode()) + DATA,
    "a name that clears the screen": header(json.dumps({"\x1b[2J\n" * 9999: tensor(0, 8)}).encode()) + DATA[:8],
    "numbers of four bits": header(json.dumps({"a": tensor(0, 8, shape=(16,), dtype="F4")}).encode()) + DATA[:8],
    "bytes of data that belong to nobody": header(json.dumps({"a": tensor(0, 8)}).encode()) + DATA,
    "no bytes at all": b"",
}


@pytest.mark.parametrize("what", HEADERS)
def test_weights_with_a_hostile_header_are_refused_in_one_line(what, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_bytes(HEADERS[what])
    assert str(tmp_path / "model/model.safetensors") in refusal(load_gpt, tmp_path / "model")


def test_a_million_tensors_are_refused_before_they_are_listed(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    listed = ",".join(f'"a{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(1_000_000))
    (tmp_path / "model/model.safetensors").write_bytes(header(f"{{{listed}}}".encode()))
    began = time.monotonic()
    assert "a header of" in refusal(load_gpt, tmp_path / "model")
    assert time.monotonic() - began < 5


def test_a_vocabulary_beyond_the_bounds_is_refused(tmp_path):
    Tokenizer.load(TINY).save(tmp_path)
    file, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    known, learned = json.loads(file.read_text()), merges.read_text()
    many = {f"t{i:x}": len(known) + i for i in range(vocabulary.TOKENS)}
    file.write_text(json.dumps(known | many, separators=(",", ":")))
    assert f"the most that are read are {vocabulary.TOKENS:,}" in refusal(Tokenizer.load, tmp_path)
    file.write_text(json.dumps(known | {"a" * 100_000: len(known)}))
    assert "has 100,000 bytes" in refusal(Tokenizer.load, tmp_path)  # to find its merges would take an hour
    file.write_text(json.dumps(known))
    merges.write_text(learned + "a b\n" * 2**23)
    assert f"{merges} is larger than 32 MiB" in refusal(Tokenizer.load, tmp_path)
    merges.write_text(learned)
    assert Tokenizer.load(tmp_path).encode("hello") == Tokenizer.load(TINY).encode("hello")


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt"])
def test_a_file_that_never_ends_or_waits_for_a_writer_is_refused(name, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    file = tmp_path / "model" / name
    for make in (lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero")):
        file.unlink()
        make()
        message = refusal(read_config if name == "config.json" else lambda file: Tokenizer.load(file.parent), file)
        assert f"{file} is no regular file" in message


# What a message repeats


TEXTS = {"escape": "\x1b[2J\x1b]0;a\x07", "line end": "a\nb", "right to left": "\u202eabc", "long": "x" * 10**6}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_a_message_repeats_of_a_file_is_short_and_prints(text, tmp_path):
    config = json.loads((TINY / "config.json").read_text())
    for settings in ({"model_type": text}, {"activation_function": text}, {"n_layer": text}, {"n_layer": {text: text}}):
        (tmp_path / "config.json").write_text(json.dumps(config | settings))
        refusal(read_config, tmp_path / "config.json")
    pairs = tmp_path / "pairs.jsonl"
    for row in ({text: text}, {"prompt": text, "chosen": "b", text: 1, "rejected": 5}, {"prompt": "a", "chosem": text}):
        pairs.write_text(json.dumps(row))
        refusal(read_pairs, pairs)
    pairs.write_text(json.dumps({f"{text[:50]}{i}": 1 for i in range(100_000)}))
    assert "and 99,990 more" in refusal(read_pairs, pairs)
    Tokenizer.load(TINY).save(tmp_path)
    known = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(known | {text: text}))
    refusal(Tokenizer.load, tmp_path)


# Names that come from data


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/a.safetensors", "..", ".", "a/b.safetensors", "a\\b.safetensors"]
    + ["a\nb.safetensors", "a\0.safetensors", "\x1b[2J.safetensors", "~/a.safetensors", ".safetensors", "a.bin", 5, None]
)  # fmt: skip
def test_an_index_names_files_beside_it_and_no_others(name, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model/model.safetensors").rename(tmp_path / "a.safetensors")
    index = tmp_path / "model/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    assert "is not the name of a safetensors file beside it" in refusal(load_gpt, tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["../gpt2", "a/../b", "gpt2@../../x", "gpt2@a/../../../b", "a..b", "/gpt2", "~/gpt2", "a b", "a\n"]
)
def test_a_name_that_could_lead_out_of_the_cache_is_none_of_the_hub(name):
    assert not is_hub_name(name) and is_hub_name("openai-community/gpt2@refs/pr/12") and is_hub_name("a.b/c.d@v1.0")


# What is written stays in its folder


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A folder with a file, outside of what the test writes; at the end it must be as it was."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    yield folder
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("precious", "precious")]
    assert sorted(path.name for path in tmp_path.iterdir() if "elsewhere" in path.name) == ["elsewhere"]


def test_a_folder_takes_the_place_of_a_link_not_of_what_the_link_names(tmp_path, elsewhere):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(elsewhere)
    try:
        with whole_folder(tmp_path / "run/model") as part:
            (part / "a").write_text("a")
        assert (tmp_path / "run/model/a").read_text() == "a" and not (tmp_path / "run/model").is_symlink()
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]
    finally:
        found = [path.name for path in elsewhere.iterdir()] if elsewhere.exists() else []
        if found != ["precious"]:  # as long as this fails: what the fixture looks at is put back
            shutil.rmtree(elsewhere, ignore_errors=True)
            elsewhere.mkdir()
            (elsewhere / "precious").write_text("precious")


def test_a_file_is_not_written_through_a_link_of_its_partial_name(tmp_path, elsewhere):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json.part").symlink_to(elsewhere / "precious")
    try:
        with whole(tmp_path / "run/run.json") as file:
            file.write("{}")
        assert (tmp_path / "run/run.json").read_text() == "{}" and not (tmp_path / "run/run.json").is_symlink()
        assert (elsewhere / "precious").read_text() == "precious"
    finally:
        (elsewhere / "precious").write_text("precious")


def test_a_file_takes_the_place_of_a_link_not_of_what_the_link_names(tmp_path, elsewhere):
    (tmp_path / "run.json").symlink_to(elsewhere / "precious")
    with whole(tmp_path / "run.json") as file:
        file.write("{}")
    assert (tmp_path / "run.json").read_text() == "{}" and not (tmp_path / "run.json").is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "model", "metrics.jsonl", "lock"])
def test_a_run_whose_folder_leads_elsewhere_is_not_resumed(tmp_path, elsewhere, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / name).symlink_to(elsewhere / "precious" if "." in name else elsewhere)
    assert str(run / name) in refusal(RunFolder(run).check_free, True)


def test_a_checkpoint_that_is_a_link_is_no_checkpoint(tmp_path):
    checkpoint_of(tmp_path / "elsewhere", "{}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-000003").symlink_to(tmp_path / "elsewhere")
    assert latest_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize(
    "name, what",
    [
        ("state.json", "lists in lists"),
        ("state.json", "a number of many digits"),
        ("state.json", "a list"),
        ("manifest.json", "lists in lists"),
        ("manifest.json", "a number of many digits"),
        ("manifest.json", "a list"),
    ],
)
def test_a_bomb_in_a_checkpoint_makes_it_a_damaged_one(tmp_path, name, what):
    folder = tmp_path / "checkpoints/step-000003"
    content = "[]" if what == "a list" else BOMBS[what]
    checkpoint_of(folder, content if name == "state.json" else "{}")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match="every checkpoint there is damaged"):
        latest_checkpoint(folder.parent)


@pytest.mark.parametrize("what", ["lists in lists", "objects in objects", "a list"])
def test_a_bomb_in_run_json_is_one_line(tmp_path, what):
    (tmp_path / "run.json").write_text("[]" if what == "a list" else BOMBS[what])
    assert str(tmp_path / "run.json") in refusal(RunFolder(tmp_path).read_json, "run.json")


@pytest.mark.parametrize("what", ["lists in lists", "a number of many digits", "a list"])
@pytest.mark.parametrize("read", ["last_split", "held_out_metrics", "held_out_change"])
def test_a_bomb_in_metrics_is_one_line(tmp_path, what, read):
    (tmp_path / "metrics.jsonl").write_text("[]" if what == "a list" else BOMBS[what])
    assert str(tmp_path / "metrics.jsonl") in refusal(getattr(RunFolder(tmp_path), read))


# What can be reached from the network


def listening(process: int) -> set[str]:
    """The addresses on which a process and its descendants listen, as 127.0.0.1 or ::, asked of Linux."""
    family, waiting = [], [process]
    while waiting:
        one = waiting.pop()
        family.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            waiting += map(int, task.read_text().split())
    sockets = set()
    for one in family:
        for descriptor in Path(f"/proc/{one}/fd").glob("*"):
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:
                found.add(columns[1].partition(":")[0])
    return found


@LINUX
@pytest.mark.slow
def test_on_one_machine_nothing_listens_on_another_interface_than_loopback(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(100)])
    words = ["--pairs", tmp_path / "pairs.jsonl", "--batch", 2, "--epochs", 1000, "--held-out", 0, "--eval-every", 0]
    job = subprocess.Popen(
        [str(ROOT / "launch.sh"), "train", *map(str, words), "--out", str(tmp_path / "run")],
        env=ENVIRONMENT | {"N": "2", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (tmp_path / "run/metrics.jsonl").exists() or not (tmp_path / "run/metrics.jsonl").read_text():
            assert job.poll() is None
            time.sleep(0.1)
        found = listening(job.pid)
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(timeout=60)
    assert found == {"0100007F"}  # 127.0.0.1, as /proc/net/tcp writes it
