"""A run as the report sees it: all that its folder tells, checked, whoever wrote it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar

from data.fields import kind
from data.reading import Row, stream_rows
from dpo.run_folder import RunFolder
from gpt.checkpoint import NAME, step_of
from gpt.command import UserError
from gpt.files import locked

LARGEST = 1e30  # of a figure that can be drawn
# Where runs lie in a folder of dpo/compare.py, of dpo/online.py, of ./launch.sh online
INNER = ("*", "*/run", "*/*/run")
Curve = tuple[list[int], list[float]]  # steps, and the values there
T = TypeVar("T")


class Metrics(NamedTuple):
    """The lines of metrics.jsonl."""

    lines: Sequence[dict]

    def curve(self, name: str, split: str = "train") -> Curve:
        """The finite values of a metric, in the order of their lines."""
        found = [
            (line["step"], float(line[name]))
            for line in self.lines
            if line["split"] == split and _is_figure(line.get(name)) and 0 <= line["step"] < 2**53
        ]
        return [step for step, _ in found], [value for _, value in found]

    def names(self) -> list[str]:
        """Every metric, in the order in which they first stand."""
        return list(dict.fromkeys(name for line in self.lines for name in line))


class Sample(NamedTuple):
    """An answer of the start and one of the trained model to the same prompt.

    What is told of (before, after) is None where the file does not tell it of both.
    """

    prompt: str
    before: str
    after: str
    stopped: tuple[bool, bool] | None
    length: tuple[int, int] | None  # tokens
    correct: tuple[bool, bool] | None  # by the rule of a task
    expected: str = ""  # the plain answer that the rule knows; "" where there is none


class Answered(NamedTuple):
    """One answer of a pair, token by token."""

    tokens: list[str]
    policy: list[float]  # log p
    reference: list[float]

    @property
    def moved(self) -> list[float]:
        """By how much each token became likelier, in nats."""
        return [after - before for after, before in zip(self.policy, self.reference)]


class Pair(NamedTuple):
    """A held-out pair, as dpo/by_token.py has it. margin: beta included; None where there is one answer."""

    row: int
    prompt: str
    margin: float | None
    chosen: Answered
    rejected: Answered | None


class Run(NamedTuple):
    """What a run folder holds; what is not there yet is empty."""

    name: str
    record: dict  # run.json
    metrics: Metrics
    evaluation: dict
    samples: list[Sample]
    pairs: list[Pair]
    path: str = ""  # its folder, as it was named
    goes_on: bool | None = None  # whether a process writes there; None where that is not known
    written: float = 0.0  # when the last line of metrics was, in seconds since 1970
    saved: int = 0  # the step of the newest checkpoint; 0 where there is none

    @property
    def held_out(self) -> int:
        """How many pairs were held out; 0 where that is not known."""
        _, counts = self.metrics.curve("pairs", "held-out")
        return int(counts[-1]) if counts else 0

    @property
    def steps(self) -> tuple[int, int]:
        """(steps done, steps planned); 0 where that is not known."""
        done = [line["step"] for line in self.metrics.lines]
        planned = part(self.record, "settings").get("steps")
        return max(done, default=0), planned if isinstance(planned, int) else 0


class NotBegun(UserError):
    """A folder in which no run has written anything yet, if it is there at all."""


def run_folders(path: Path) -> list[Path]:
    """The run folder itself, or the runs in a folder of dpo/compare.py or dpo/online.py, in order.

    Raises UserError for a file, NotBegun where there is no such folder or none of them was measured yet.
    """
    if not path.exists():
        raise NotBegun(f"{path} does not exist; name a run folder, what dpo/train.py was given as --out")
    if not path.is_dir():
        raise UserError(f"{path} is a file; name the run folder that it is of")
    if (path / "metrics.jsonl").exists():
        return [path]
    inner = sorted(file.parent for pattern in INNER for file in path.glob(f"{pattern}/metrics.jsonl"))
    if not inner:
        what = "no metrics yet" if (path / "run.json").exists() else "no run: no metrics.jsonl"
        raise NotBegun(f"{path} holds {what}; name a run folder of dpo/train.py, or wait for its first line of metrics")
    return inner


def not_begun(paths: Sequence[Path]) -> list[Path]:
    """Those of the folders that are still to be waited for."""
    found = []
    for path in paths:
        try:
            run_folders(path)
        except NotBegun:
            found.append(path)
    return found


def read_run(path: Path, name: str = "") -> Run:
    """All that the folder tells. Raises UserError, naming file and line, where something cannot be read."""
    folder = RunFolder(path)
    record, evaluation = (
        folder.read_json(file) if (path / file).exists() else {} for file in ("run.json", "evaluation.json")
    )
    samples = [_sample(row.value, f"{folder.samples}, line {row.number}") for row in _rows(folder.samples)]
    pairs = [_pair(row.value, f"{folder.tokens}, line {row.number}") for row in _rows(folder.tokens)]
    metrics, written = Metrics(folder.all_metrics()), folder.metrics.stat().st_mtime if folder.metrics.exists() else 0.0
    saved = max(
        (step_of(found) for found in folder.checkpoints.glob("step-*") if NAME.fullmatch(found.name)), default=0
    )
    going = goes_on(folder)
    return Run(name or own_name(path), record, metrics, evaluation, samples, pairs, str(path), going, written, saved)


def goes_on(folder: RunFolder) -> bool | None:
    """Whether a process holds the folder's lock, to write there; None where that cannot be told."""
    if not folder.lock.exists():
        return False
    try:
        with locked(folder.lock, 0.0, shared=True):
            return False
    except BlockingIOError:
        return True
    except OSError:  # a folder of somebody else, or a file system without locks
        return None


def own_name(path: Path) -> str:
    """What a run is called: its folder's name, or that of the round whose training it is."""
    path = path.absolute()
    return path.parent.name if path.name == "run" else path.name


def part(record: dict, name: str) -> dict:
    """An object within an object; {} where it is absent or something else."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def figure(record: dict, name: str) -> float | None:
    """A finite number within an object, or None."""
    found = record.get(name)
    return float(found) if _is_figure(found) else None


def _rows(file: Path) -> list[Row]:
    return list(stream_rows(file)) if file.exists() else []


def _sample(value: Any, where: str) -> Sample:
    prompt, before, after = (_text(value, name, where) for name in ("prompt", "before", "after"))
    stopped, length, correct = _told(value, "stopped", bool), _told(value, "length", int), _told(value, "correct", bool)
    expected = value.get("expected")
    return Sample(prompt, before, after, stopped, length, correct, expected if isinstance(expected, str) else "")


def _told(value: dict, name: str, wanted: type[T]) -> tuple[T, T] | None:
    before, after = (part(value, name).get(when) for when in ("before", "after"))
    return (before, after) if type(before) is type(after) is wanted else None


def _pair(value: Any, where: str) -> Pair:
    prompt = _text(value, "prompt", where)
    row = value.get("row") if isinstance(value.get("row"), int) else 0
    margin, rejected = figure(value, "rewards/margins"), None
    if "tokens/rejected" in value:
        rejected = _answered(value, "rejected", where)
    return Pair(row, prompt, margin, _answered(value, "chosen", where), rejected)


def _answered(value: dict, name: str, where: str) -> Answered:
    columns: list[Any] = [value.get(f"{of}/{name}") for of in ("tokens", "logps", "reference_logps")]
    tokens, policy, reference = columns
    sound = all(isinstance(column, list) and len(column) == len(tokens) for column in columns)
    if not sound or not all(isinstance(token, str) for token in tokens) or not all(map(_is_figure, policy + reference)):
        raise UserError(
            f"{where}: tokens/{name}, logps/{name} and reference_logps/{name} must be lists of equal length, of texts and of "
            "finite numbers; dpo/evaluate.py --policy RUN writes the file anew where it is missing"
        )
    return Answered(tokens, policy, reference)


def _text(value: Any, name: str, where: str) -> str:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise UserError(f"{where}: field {name!r} must be text, found {kind(found)}")
    return found


def _is_figure(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < LARGEST
