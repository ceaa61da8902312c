"""gpt/hub.py against a server on this machine that answers as the Hugging Face Hub does, and against caches laid by hand."""

import ast
import json
import os
import re
import subprocess
import time
from collections import Counter
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote

import pytest
from safetensors.torch import load_file, save_file

from gpt.command import UserError
from gpt.hub import is_hub_name
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import train_bpe
from gpt.weights import fingerprint, load_gpt, model_folder, save_gpt
from tests.processes import ENVIRONMENT, ROOT, call, command

# One line for each name: the folder, or the error with every line break in it visible.
SCRIPT = """
import sys
from gpt.command import UserError
from gpt.hub import fetch
for name in sys.argv[1:]:
    try:
        print(fetch(name), flush=True)
    except UserError as error:
        print(repr(str(error)), flush=True)
"""
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


class Hub(ThreadingHTTPServer):
    """The few answers of the Hub that fetching a model needs, and a record of what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}  # (repository, commit): its files
        self.revisions: dict[tuple[str, str], str] = {}  # (repository, branch or tag or start of a commit): commit
        self.moved: dict[str, str] = {}  # old name of a repository: new one
        self.refuses: dict[tuple[str, str], tuple] = {}  # (repository, kind of question): status and headers
        self.asked: list[str] = []
        self.slowness, self.weights_may_go = 0.0, Event()
        self.weights_may_go.set()
        Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    def push(self, repository: str, files: dict[str, bytes], *revisions: str) -> str:
        commit = sha1(repr((repository, sorted(files.items()))).encode()).hexdigest()
        self.commits[repository, commit] = files
        self.revisions |= {(repository, revision): commit for revision in (*revisions, commit)}
        return commit

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def sent(self) -> Counter:
        """How often each file was asked for with GET."""
        return Counter(line.split("/")[-1] for line in self.asked if re.match("GET .*/resolve/", line))


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        hub, path = self.server, unquote(self.path.partition("?")[0])
        hub.asked.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/models/(?P<name>.+?)/(?P<kind>revision|tree)/(?P<revision>.+)", path)
        asked = api or re.fullmatch(r"/(?P<name>.+?)/(?P<kind>resolve)/(?P<revision>[^/]+)/(?P<file>.+)", path)
        if not asked:
            return self.answer(404)
        name, kind, revision = asked["name"], asked["kind"], asked["revision"]
        if name in hub.moved:
            return self.answer(307, Location=self.path.replace(f"/{name}/", f"/{hub.moved[name]}/", 1))
        if (name, kind) in hub.refuses:
            status, headers = hub.refuses[name, kind]
            return self.answer(status, b"{}", **headers)
        if not any(known == name for known, _ in hub.commits):
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        commit = hub.revisions.get((name, revision))
        if commit is None:
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        files = hub.commits[name, commit]
        if kind == "revision":
            return self.answer(200, json.dumps({"id": name, "sha": commit, "siblings": []}).encode())
        if kind == "tree":
            oid = {file: sha1(content).hexdigest() for file, content in files.items()}
            entries = [{"type": "file", "path": file, "size": len(files[file]), "oid": oid[file]} for file in files]
            return self.answer(200, json.dumps(entries).encode())
        content = files[asked["file"]]
        if self.command == "GET":
            time.sleep(hub.slowness)
            if asked["file"] == "model.safetensors":
                hub.weights_may_go.wait(60)
        return self.answer(200, content, ETag=f'"{sha1(content).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[dict[str, bytes]]:
    """The files of three small models."""
    found = []
    for channels in (2, 4, 6):
        folder = tmp_path_factory.mktemp("model") / "model"
        config = GPTConfig(vocab_size=257, n_positions=8, n_embd=channels, n_layer=1, n_head=2)
        save_gpt(folder, GPT(config), train_bpe([], 257), card="A model card.")
        found.append({file.name: file.read_bytes() for file in folder.iterdir()})
    return found


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.stop()


def surroundings(hub: Hub, folder: Path) -> dict[str, str]:
    """Variables of processes whose Hub is `hub` and whose cache is in `folder`, where a script to fetch with lies too."""
    (folder / "fetch.py").write_text(SCRIPT)
    here = "127.0.0.1"
    return {
        "HF_ENDPOINT": f"http://{here}:{hub.server_port}",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "home" / "hub"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "NO_PROXY": here,
        "no_proxy": here,
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    return surroundings(hub, tmp_path)


@pytest.fixture
def fetched(environment, tmp_path):
    """A function that fetches names in a new process, and returns a folder for each, or its error."""

    def run(*names: str, **changes: str) -> list[Path | str]:
        return read(call(tmp_path / "fetch.py", *names, **environment | changes).stdout)

    return run


def read(out: str) -> list[Path | str]:
    return [ast.literal_eval(line) if line[0] in "'\"" else Path(line) for line in out.splitlines()]


def placed(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def wanted(files: dict[str, bytes]) -> dict[str, bytes]:
    """Those of a model's files that are read here."""
    return {name: files[name] for name in ("config.json", "model.safetensors", "vocab.json", "merges.txt")}


def assert_refused(found, *named: str) -> None:
    assert isinstance(found, str), f"{found} was found"
    assert found and "\n" not in found and "Traceback" not in found
    assert all(name in found for name in named), found


# from the Hub


def test_a_model_is_fetched_once_and_then_found_in_the_cache_with_or_without_the_hub(hub, fetched, files):
    commit = hub.push("owner/model", files[0], "main")
    [folder] = fetched("owner/model")
    assert folder.name == commit and contents(folder) == wanted(files[0])
    first = hub.sent
    assert set(first) == set(wanted(files[0])) and set(first.values()) == {1}
    assert fetched("owner/model") == [folder] and hub.sent == first
    hub.stop()
    assert fetched("owner/model", "owner/model@main", f"owner/model@{commit}") == [folder] * 3
    assert fetched("owner/model", HF_HUB_OFFLINE="1") == [folder]


def test_a_revision_after_the_name_pins_the_model_and_no_revision_is_the_newest(hub, fetched, files):
    old = hub.push("owner/model", files[0], "main", "v1.0", "refs/pr/1")
    assert [folder.name for folder in fetched("owner/model")] == [old]
    new = hub.push("owner/model", files[1], "main")
    ways = [old, "v1.0", "refs/pr/1", new, "main"]
    folders = fetched("owner/model", *(f"owner/model@{revision}" for revision in ways))
    assert [folder.name for folder in folders] == [new, old, old, old, new, new]
    assert contents(folders[0]) == wanted(files[1]) and contents(folders[1]) == wanted(files[0])
    hub.push("owner/model", files[2], "main")
    hub.stop()
    assert fetched("owner/model", *(f"owner/model@{revision}" for revision in ways)) == folders


def test_a_name_without_an_owner_and_one_that_moved_are_fetched(hub, fetched, files):
    commit = hub.push("openai-community/gpt2", files[0], "main")
    hub.push("model", files[1], "main")
    hub.moved["gpt2"] = "openai-community/gpt2"
    moved, plain = fetched("gpt2", "model")
    assert moved.name == commit and contents(moved) == wanted(files[0])
    assert contents(plain) == wanted(files[1])


def test_pickles_and_whatever_else_is_not_read_here_are_never_asked_for(hub, fetched, files):
    others = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tf_model.h5", "model.fp16.safetensors")
    others += ("onnx/model.safetensors", "onnx/config.json", "model-00001-of-00002.bin", "evil.py", "x.pkl")
    hub.push("owner/model", files[0] | {name: b"not to be fetched" for name in others}, "main")
    [folder] = fetched("owner/model")
    assert contents(folder) == wanted(files[0])
    assert {line.split("/", 5)[-1] for line in hub.asked if "/resolve/" in line} == set(wanted(files[0]))


def test_a_model_in_pieces_with_a_tokenizer_json_is_fetched_whole(hub, fetched, files, tmp_path):
    whole, index = placed(files[0], tmp_path / "whole"), {}
    state = load_file(whole / "model.safetensors")
    pieces = {"config.json": files[0]["config.json"], "tokenizer.json": b"{}"}
    for half, shard in enumerate(SHARDS):
        names = sorted(state)[half::2]
        save_file({name: state[name] for name in names}, tmp_path / shard)
        pieces[shard] = (tmp_path / shard).read_bytes()
        index |= dict.fromkeys(names, shard)
    pieces["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    hub.push("owner/model", pieces, "main")
    [folder] = fetched("owner/model")
    assert contents(folder) == pieces
    assert fingerprint(load_gpt(folder)) == fingerprint(load_gpt(whole))


# several processes, and one that was killed


def together(count: int, hub: Hub, environment, tmp_path, name: str) -> list[Path | str]:
    """What as many processes as `count` find that ask for a name at the same moment, while the Hub holds weights back."""
    ready = "from huggingface_hub import snapshot_download\nprint('ready', flush=True)\n"
    (tmp_path / "ready.py").write_text(ready + SCRIPT)
    words, surrounded = command(tmp_path / "ready.py", name), ENVIRONMENT | environment
    hub.weights_may_go.clear()
    started = [subprocess.Popen(words, env=surrounded, text=True, stdout=subprocess.PIPE) for _ in range(count)]
    assert all(process.stdout.readline() == "ready\n" for process in started)
    time.sleep(1)
    hub.weights_may_go.set()
    said = [process.stdout.read() for process in started]  # not communicate: it forgets what came along with "ready"
    assert [process.wait(60) for process in started] == [0] * count
    return [found for words in said for found in read(words)]


def test_of_processes_that_ask_at_the_same_moment_one_fetches_and_the_others_wait(hub, environment, files, tmp_path):
    hub.push("owner/model", files[0], "main")
    folders = together(4, hub, environment, tmp_path, "owner/model")
    assert len(folders) == 4 and len(set(folders)) == 1 and contents(folders[0]) == wanted(files[0])
    assert hub.sent == dict.fromkeys(wanted(files[0]), 1)
    assert len([line for line in hub.asked if "/owner/model/revision/" in line]) == 1  # who waited asks the cache alone


def test_processes_that_ask_at_the_same_moment_are_all_told_why_there_is_nothing(hub, environment, files, tmp_path):
    hub.push("owner/model", files[0], "main")
    errors = together(3, hub, environment, tmp_path, "owner/model@nowhere")
    assert len(errors) == 3
    for error in errors:
        assert_refused(error, "owner/model@nowhere", "branch, tag or commit", "'nowhere'")


def test_the_processes_of_torchrun_load_a_model_by_its_name_and_fetch_each_file_once(hub, environment, files, tmp_path):
    hub.push("owner/model", files[0], "main")
    hub.slowness = 0.5
    (tmp_path / "load.py").write_text("from gpt.weights import *\nprint(fingerprint(load_gpt('owner/model')) + ' ')")
    done = call(tmp_path / "load.py", processes=2, **environment)
    assert done.stdout.split() == [fingerprint(load_gpt(placed(files[0], tmp_path / "here")))] * 2
    assert hub.sent == dict.fromkeys(wanted(files[0]), 1)


def test_a_fetch_that_was_killed_leaves_no_lock_and_no_half_a_model(hub, environment, fetched, files, tmp_path):
    commit = hub.push("owner/model", files[0], "main")
    hub.weights_may_go.clear()
    process = subprocess.Popen(command(tmp_path / "fetch.py", "owner/model"), env=ENVIRONMENT | environment)
    snapshot = tmp_path / "home" / "hub" / "models--owner--model" / "snapshots" / commit
    end = time.monotonic() + 60
    while not (snapshot.is_dir() and len(list(snapshot.iterdir())) == 3 and hub.sent["model.safetensors"]):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    hub.weights_may_go.set()
    assert_refused(
        *fetched("owner/model", HF_HUB_OFFLINE="1"),
        "owner/model",
        "not downloaded, or not completely",
        str(tmp_path / "home"),
    )
    assert contents(*fetched("owner/model")) == wanted(files[0])


# what cannot be had


REFUSED = {
    "nobody/nothing": ["no folder here", "no model of that name", "hf auth login"],
    "nothing": ["no folder here", "no model of that name"],
    "owner/model@nowhere": ["no branch, tag or commit 'nowhere'"],
    f"owner/model@{'9' * 40}": ["no branch, tag or commit", "9" * 40],
    "owner/gated": ["gated", "ask for access", "hf auth login"],
    "owner/gated-files": ["gated", "ask for access", "hf auth login"],
    "owner/pickle": ["no model.safetensors", "pytorch_model.bin", "pickle", "not fetched", "save_pretrained"],
    "owner/expired-token": ["token", "hf auth login"],
    "owner/a--b": ["cannot be fetched", "--"],
    "owner/" + "x" * 100: ["cannot be fetched"],
}


@pytest.fixture(scope="module")
def answers(files, tmp_path_factory) -> dict[str, str]:
    """To each of REFUSED, from one process; it says nothing else."""
    hub, folder = Hub(), tmp_path_factory.mktemp("refused")
    for repository in ("owner/model", "owner/gated", "owner/gated-files"):
        hub.push(repository, files[0], "main")
    hub.push("owner/pickle", {"config.json": b"{}", "pytorch_model.bin": b"\x80"}, "main")
    hub.refuses = {
        ("owner/gated", "revision"): (403, {"X_Error_Code": "GatedRepo"}),
        ("owner/gated-files", "resolve"): (403, {"X_Error_Code": "GatedRepo"}),
        ("owner/expired-token", "revision"): (401, {"X_Error_Message": "Invalid credentials in Authorization header"}),
    }
    done = call(folder / "fetch.py", *REFUSED, **surroundings(hub, folder))
    hub.stop()
    assert done.stderr == "" and "pytorch_model.bin" not in hub.sent
    return dict(zip(REFUSED, read(done.stdout), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_does_not_give_is_one_line_that_says_why(name, answers):
    assert_refused(answers[name], name, *REFUSED[name])


def test_a_repository_without_any_file_of_a_model_is_one_line_that_says_so(hub, fetched):
    hub.push("owner/card", {"README.md": b"", "model.gguf": b""}, "main")
    assert_refused(*fetched("owner/card"), "owner/card", "has no config.json, model.safetensors")


@pytest.mark.parametrize("way", ["the Hub is away", "HF_HUB_OFFLINE"])
def test_without_the_hub_and_without_a_cache_one_line_says_what_to_do(way, hub, environment, tmp_path):
    hub.stop()
    changes = {"HF_HUB_OFFLINE": "1"} if way == "HF_HUB_OFFLINE" else {}
    done = call(tmp_path / "fetch.py", "owner/model", "gpt2", **environment | changes)
    assert done.stderr == ""
    for found, name in zip(read(done.stdout), ("owner/model", "gpt2"), strict=True):
        assert_refused(found, name, "no folder here", str(tmp_path / "home" / "hub"), "HF_HUB_CACHE", "model folder")


@pytest.mark.parametrize("place", ["cache", "cache/far/below"])
def test_a_cache_that_cannot_be_written_is_one_line_that_names_it(place, hub, fetched, files, tmp_path):
    (tmp_path / "cache").write_text("in the way")  # root may write everywhere else
    hub.push("owner/model", files[0], "main")
    for offline in ("0", "1"):
        found = fetched("owner/model", HF_HUB_CACHE=str(tmp_path / place), HF_HUB_OFFLINE=offline)
        assert_refused(*found, "owner/model", str(tmp_path / "cache"))
    assert (tmp_path / "cache").read_text() == "in the way"


def test_without_huggingface_hub_one_line_says_how_to_install_it(fetched, tmp_path):
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "huggingface_hub.py").write_text("raise ModuleNotFoundError('No module named that')")
    found = fetched("owner/model", "gpt2@main", PYTHONPATH=os.pathsep.join([str(tmp_path / "absent"), str(ROOT)]))
    for name, error in zip(("owner/model", "gpt2@main"), found, strict=True):
        assert_refused(error, name, "no folder here", "pip install huggingface_hub")


# caches of other tools


def lay(
    cache: Path, repository: str, files: dict[str, bytes], commit: str = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
):
    """A cache as huggingface_hub has laid it for years: blobs by hash, a snapshot of links to them, a branch."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True)
    for name, content in files.items():
        blob = folder / "blobs" / sha1(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    (folder / "refs" / "main").write_text(commit)
    return snapshot


@pytest.mark.parametrize("way", ["the Hub is away", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("repository", ["openai-community/gpt2", "gpt2"])
def test_gpt2_is_found_in_the_cache_of_another_tool(repository, way, hub, fetched, files, tmp_path):
    snapshot = lay(tmp_path / "home" / "hub", repository, files[0])
    (snapshot.parents[1] / "refs" / "v1").write_text(snapshot.name)
    hub.stop()
    names = ["gpt2", repository, f"{repository}@main", "gpt2@v1"]
    if way == "HF_HUB_OFFLINE":  # else huggingface_hub tries for 23 seconds to list the files of the commit
        names += [f"gpt2@{snapshot.name}", f"{repository}@{snapshot.name}"]
    found = fetched(*names, "gpt2@v2", "gpt2-medium", HF_HUB_OFFLINE=str(int(way == "HF_HUB_OFFLINE")))
    assert found[:-2] == [snapshot] * len(names)
    assert_refused(found[-2], "gpt2@v2")
    assert_refused(found[-1], "gpt2-medium")
    assert fingerprint(load_gpt(snapshot))


@pytest.mark.parametrize("there", [("config.json",), ("config.json", "model.safetensors"), ("model.safetensors",)])
def test_what_a_cache_has_a_part_of_is_completed_or_named(there, hub, fetched, files, tmp_path):
    commit = hub.push("owner/model", files[0], "main")
    part = {name: files[0][name] for name in there}
    snapshot = lay(tmp_path / "home" / "hub", "owner/model", part, commit)
    missing = next(n for n in ("config.json", "model.safetensors", "vocab.json") if n not in there)
    for name in (f"owner/model@{commit}", "owner/model"):
        (found,) = fetched(name, HF_HUB_OFFLINE="1")
        assert_refused(found, name, missing, "connect once")
    assert fetched(f"owner/model@{commit}") == [snapshot]
    assert contents(snapshot) == wanted(files[0])


def test_a_cache_in_which_no_lock_can_be_made_is_read_all_the_same(hub, fetched, files, tmp_path):
    cache = tmp_path / "home" / "hub"
    snapshot = lay(cache, "owner/model", files[0])
    (cache / ".locks").write_text("as if the cache could only be read, which holds for root too")
    assert fetched("owner/model", HF_HUB_OFFLINE="1") == [snapshot]
    hub.stop()
    assert fetched("owner/model") == [snapshot]


# names


@pytest.mark.parametrize(
    "name, is_one",
    [
        ("gpt2", True),
        ("openai-community/gpt2", True),
        ("gpt2@main", True),
        ("owner/model@607a30d783dfa663caf39e06633721c8d4cfcd7e", True),
        ("owner/model@refs/pr/1", True),
        ("cerebras/Cerebras-GPT-1.3B", True),
        ("a_b/c.d", True),
        ("", False),
        (".", False),
        ("..", False),
        ("./x", False),
        ("../x", False),
        ("~/x", False),
        ("/abs", False),
        ("/abs/model", False),
        ("a/", False),
        ("/a", False),
        ("a/b/c", False),
        ("a//b", False),
        ("a/./b", False),
        ("a/../b", False),
        ("a/.b", False),
        ("x y", False),
        ("x\n", False),
        ("x\\y", False),
        ("모델", False),
        ("random:tiny", False),
        ("https://huggingface.co/gpt2", False),
        ("gpt2@", False),
        ("@main", False),
        ("gpt2@@main", False),
        ("gpt2@../main", False),
        ("gpt2@a b", False),
        ("-model", False),
        ("--init", False),
    ],
)
def test_a_name_of_the_hub_is_a_word_or_two_with_a_slash_and_maybe_a_revision(name, is_one):
    assert is_hub_name(name) is is_one


def test_a_folder_of_that_name_comes_first(files, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    placed(files[0], tmp_path / "owner" / "model")
    assert model_folder("owner/model") == Path("owner/model")
    placed(files[0], tmp_path / "owner" / "run" / "model")
    assert model_folder("owner/run") == Path("owner/run/model")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "distilgpt2").write_text("")
    wrong = {"gpt2": "no config.json", "distilgpt2": "it is a file", "a/b/c": "does not exist"}
    wrong |= {f"owner/{'x' * 9}": "does not exist; owner/ has ", "runs/none": "runs/none does not exist"}
    for name, named in wrong.items():
        with pytest.raises(UserError, match=named) as caught:
            model_folder(name)
        assert_refused(str(caught.value), name)
