"""dpo/loggers.py with the real packages: what TensorBoard and W&B read back is what metrics.jsonl says."""

import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from dpo import loggers
from dpo.job import Job
from dpo.loggers import Beginning, Loggers
from dpo.run_folder import RunFolder
from dpo.train import Flags
from gpt.command import Notice, UserError, parse, pip_install
from tests.processes import ENVIRONMENT, ROOT, call, command

TRAIN = ROOT / "dpo" / "train.py"
LINES = [
    {"step": 0, "split": "held-out", "loss": 0.6931472, "pairs": 4},
    {"step": 1, "split": "train", "loss": 0.6931472, "pairs": 8, "rewards/margins": 0.0},
    {"step": 2, "split": "train", "loss": 0.6512345, "pairs": 8, "rewards/margins": 0.1234567},
    {"step": 2, "split": "held-out", "loss": 0.6612345, "pairs": 4},
    {"step": 3, "split": "train", "loss": 0.6012345, "pairs": 8, "rewards/margins": 0.25},
]


def numbers(line: dict) -> dict:
    return {name: value for name, value in line.items() if name not in ("step", "split")}


def expected(lines: list[dict]) -> dict[tuple[int, str], dict]:
    return {(line["step"], line["split"]): numbers(line) for line in lines}


def from_tensorboard(run: Path) -> dict[tuple[int, str], dict]:
    """What TensorBoard shows; float32, so to seven digits."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is absent"
    )
    found = {}
    for split in ("train", "held-out"):
        events = accumulator.EventAccumulator(str(run / "tensorboard" / split)).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                values = found.setdefault((event.step, split), {})
                assert name not in values, "doubled"
                values[name] = event.value
    return found


def records(file: Path) -> Iterator[bytes]:
    """The records of a file of W&B's: after 7 bytes LevelDB's log, blocks of 32 KiB with pieces of records, which begin
    with a checksum (4 bytes), their length (2) and which piece they are (1: all, 2: first, 3: middle, 4: last)."""
    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def from_wandb(run: Path) -> tuple[dict[tuple[int, str], dict], dict, list[int]]:
    """What is in the files that `wandb sync` would send, in the order of their making: lines, config, exit codes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service has then written all
    found, config, codes = {}, {}, []
    for file in sorted(run.glob("wandb/*run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        for record in map(Record.FromString, records(file)):
            if record.HasField("run"):
                assert record.run.run_id == json.loads((run / "wandb.json").read_text())["id"]
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("exit"):
                codes.append(record.exit.exit_code)
            elif record.HasField("history"):
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                values = {name: json.loads(value) for name, value in items.items() if name[0] != "_"}
                step = values.pop("step")
                (split,) = {name.partition("/")[0] for name in values}
                assert (step, split) not in found, "doubled"
                found[step, split] = {name.removeprefix(f"{split}/"): value for name, value in values.items()}
    return found, config, codes


READ = {"tensorboard": from_tensorboard, "wandb": lambda run: from_wandb(run)[0]}


@pytest.fixture(params=READ)
def name(request, monkeypatch):
    pytest.importorskip(request.param, reason=f"{request.param} is absent (pip install {request.param})")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return request.param


def logged(run: Path, lines: list[dict], last: int, *names: str) -> None:
    """`lines`, as a run writes them that goes on after step `last`."""
    folder = RunFolder(run)
    for file in run.glob("tensorboard/*/*"):  # files are read by the second of their making, which is in their names
        time.sleep(max(0.0, int(file.name.split(".")[3]) + 1.01 - time.time()))
    with folder.held():
        folder.begin_metrics(last, names, {"lr": 1e-4, "loss": "dpo", "beta": None, "log": list(names)})
        for line in lines:
            folder.log(line)


def close_to(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(
        values == pytest.approx(wanted[key], rel=1e-6) for key, values in found.items()
    )


def test_lines_come_back_under_their_names_train_apart_from_held_out(tmp_path, name):
    logged(tmp_path, LINES, -1, name)
    assert close_to(READ[name](tmp_path), expected(LINES))


def test_a_run_that_goes_on_from_an_earlier_step_has_every_step_once(tmp_path, name):
    logged(tmp_path, LINES[:4], -1, name)  # was killed after step 2, and its last checkpoint is of step 1
    logged(tmp_path, LINES[2:], 1, name)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == LINES
    assert close_to(READ[name](tmp_path), expected(LINES))


def test_a_run_without_a_checkpoint_that_begins_anew_has_every_step_once(tmp_path, name):
    logged(tmp_path, LINES[:3], -1, name)
    logged(tmp_path, LINES, -1, name)
    assert close_to(READ[name](tmp_path), expected(LINES))


def test_a_logger_that_comes_later_has_what_comes_from_then_on(tmp_path, name):
    logged(tmp_path, LINES[:4], -1)
    logged(tmp_path, LINES[2:], 1, name)
    assert close_to(READ[name](tmp_path), expected(LINES[2:]))


def test_the_flags_are_tensorboards_hyperparameters(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    logged(tmp_path, LINES, -1, "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "train")).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["lr"].number_value == 1e-4 and found["loss"].string_value == "dpo"


def test_the_flags_are_wandbs_config_and_the_exit_code_is_the_runs(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged(tmp_path, LINES[:2], -1, "wandb")
    with pytest.raises(RuntimeError):
        with (folder := RunFolder(tmp_path)).held():
            folder.begin_metrics(1, ["wandb"], {"lr": 2.0})
            raise RuntimeError("a bug")
    found, config, codes = from_wandb(tmp_path)
    assert config["lr"] == 2.0 and config["loss"] == "dpo" and config["beta"] is None and codes == [0, 1]


# Nothing that a logger does ends a run


class Sick:
    """Fails at one of its calls."""

    def __init__(self, at: str):
        self.at, self.calls = at, []

    def __call__(self, begun: Beginning) -> "Sick":
        return self._do("open") or self

    def log(self, step, split, metrics):
        self._do(f"log {step}")

    def close(self, ok):
        self._do("close")

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if call == self.at:
            raise OSError("no space left")


@pytest.mark.parametrize("at", ["open", "log 1", "close"])
def test_one_that_fails_is_dropped_with_one_warning_and_the_other_goes_on(at, tmp_path, monkeypatch):
    sick, well = Sick(at), Sick("never")
    monkeypatch.setattr(loggers, "KINDS", {"sick": sick, "well": well})
    with pytest.warns(Notice) as warned:
        found = Loggers(["sick", "well"], Beginning(tmp_path, {}, 0, ()))
        for line in LINES:
            found.log(line)
        found.close(ok=True)
    assert [str(warning.message) for warning in warned] == [
        "--log-to sick failed, and the run goes on without it: no space left"
    ]
    assert sick.calls[-1] == at
    assert well.calls == ["open", *(f"log {line['step']}" for line in LINES), "close"]


def test_a_folder_of_tensorboards_that_cannot_be_made_is_a_warning(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.warns(Notice, match="--log-to tensorboard failed"):
        logged(tmp_path, LINES, -1, "tensorboard")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(LINES)


PROGRAM = """
import sys
from dpo.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
with folder.held():
    folder.begin_metrics(-1, ["wandb"], {})
    folder.log({"step": 1, "split": "train", "loss": 0.5})
"""


@pytest.mark.slow
def test_a_server_of_wandbs_that_is_not_there_is_a_warning(tmp_path):
    """In a process of its own, since W&B reads its variables once."""
    pytest.importorskip("wandb")
    with socket.socket() as nobody:  # listens never
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        variables = {
            "WANDB_BASE_URL": address,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_INIT_TIMEOUT": "2",
            "WANDB_MODE": "online",
        }
        done = call("-c", PROGRAM, tmp_path, cwd=ROOT, **variables)
    assert "--log-to wandb failed, and the run goes on without it" in done.stderr
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


# What is checked before


def refused(toy: Path, *flags) -> str:
    with pytest.raises(UserError) as caught:
        Job(parse(Flags, ["--init", str(toy / "model"), "--pairs", str(toy / "pairs.jsonl"), *flags]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("missing", loggers.NAMES)
def test_without_its_package_one_line_says_how_to_install_it_before_anything_is_read(missing, toy, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)  # as Python marks what is not there
    line = refused(toy, "--log-to", missing, "--init", "no/model")
    assert line == f"--log-to {missing}: the package is not installed; {pip_install(missing)}"


@pytest.mark.parametrize(
    "key, said", [("", "nobody is logged in; wandb login, or WANDB_MODE=offline"), ("no", "invalid")]
)
def test_without_a_login_one_line_says_so(key, said, tmp_path):
    pytest.importorskip("wandb")
    variables = {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_API_KEY": key, "WANDB_MODE": "online"}
    program = (
        "from dpo.loggers import check_loggers\ntry: check_loggers(['wandb'])\nexcept ValueError as error: print(error)"
    )
    done = call("-c", program, cwd=ROOT, **variables)
    assert done.stdout.startswith("--log-to wandb: ") and done.stdout.count("\n") == 1 and said in done.stdout
    assert done.stderr == ""


def test_no_flag_of_train_is_the_beginning_of_one_of_torchruns():
    """torchrun looks at the flags of the script too, and stops at one that could be short for several of its own."""
    of_torchrun = [option for action in get_args_parser()._actions for option in action.option_strings]
    flags = ["--" + field.name.replace("_", "-") for field in fields(Flags)]
    assert not [(flag, option) for flag in flags for option in of_torchrun if option.startswith(flag)]


def test_an_unknown_one_is_refused_by_name(toy):
    assert "invalid choice: 'mlflow' (choose from" in refused(toy, "--log-to", "mlflow")


# Whole runs


@pytest.fixture
def environment() -> dict[str, str]:
    for package in loggers.NAMES:
        pytest.importorskip(package, reason=f"{package} is absent (pip install {package})")
    return {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_and_resumed_logs_everywhere_what_metrics_jsonl_has(toy, tmp_path, environment):
    run = tmp_path / "run"
    words = ["--init", toy / "model", "--pairs", toy / "pairs.jsonl", "--batch", 8, "--lr", 1e-3, "--steps", 60]
    words += ["--eval-every", 10, "--out", run, "--log-to", "tensorboard", "wandb"]
    job = subprocess.Popen(
        command(TRAIN, *words),
        env=ENVIRONMENT | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 5:
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 143 and "warning" not in errors and "Traceback" not in errors
    call(TRAIN, *words, "--resume", **environment)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 67 and close_to(from_tensorboard(run), expected(lines))
    found, config, codes = from_wandb(run)
    assert close_to(found, expected(lines)) and config["batch"] == 8 and codes == [1, 0]


@pytest.mark.slow
def test_of_two_processes_the_main_one_alone_has_loggers(toy, tmp_path, environment):
    run = tmp_path / "run"
    words = ["--init", toy / "model", "--pairs", toy / "pairs.jsonl", "--batch", 8, "--lr", 1e-3, "--steps", 2]
    call(TRAIN, *words, "--out", run, "--log-to", "tensorboard", "wandb", processes=2, **environment)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert close_to(from_tensorboard(run), expected(lines)) and close_to(from_wandb(run)[0], expected(lines))
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
