"""A run's folder: what was asked, what was measured, where it stopped, what came out.

runs/NAME/
    lock               names the process that writes here
    run.json           every flag, what it was resolved to, versions, hashes
    metrics.jsonl      one line a step and one an evaluation
    tensorboard/       with --log-to tensorboard the same; wandb/ with --log-to wandb, and wandb.json, its id there
    checkpoints/       gpt/checkpoint.py
    model/             the trained model, a model folder
    adapter/           with --lora its adapters alone, as peft reads them (a random start has no base to name)
    tokens.jsonl       what training did to each answer token of some held-out pairs (dpo/by_token.py)
    evaluation.json    dpo/evaluate.py, samples.jsonl too; with --judge judge.jsonl, its replies
    report.html        dpo/report.py: all of that as a page
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dpo.loggers import Beginning, Loggers
from gpt.command import UserError
from gpt.files import Unwritable, held, make_folder, whole
from gpt.untrusted import read_json, read_text, shown

# Seconds to wait for a run that is no more to let go of its folder: what a killed torchrun leaves ends after one
WAIT = 5.0

METRICS = 2**30  # the most bytes that are read of metrics.jsonl: a line of each of a million steps has 600

# What is shown of a line of metrics.jsonl, in short
SHOWN = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}


class RunFolder:
    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lock = self.path / "lock"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        self.loggers: Loggers | None = None
        self.tokens = self.path / "tokens.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.report = self.path / "report.html"

    def check_free(self, resume: bool) -> None:
        """Raises UserError where the folder holds something that a new run would overwrite, or cannot be written."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file; name a folder")
        loggers = (self.path / "tensorboard", self.path / "wandb")
        for path in (self.lock, self.checkpoints, self.model, self.adapter, self.metrics, *loggers):
            if path.is_symlink():
                raise UserError(f"--out {self.path}: {path} is a link; a run writes into its own folder alone")
        if self.lock.exists():
            with held(self.lock, WAIT if resume else 0.0, f"--out {self.path}", shared=True):
                pass
        # what a killed run had only begun is nothing yet
        there = self.path.iterdir() if self.path.is_dir() else []
        taken = any(path != self.lock and path.suffix != ".part" for path in there)
        if taken and not resume:
            what = (
                "holds another run; continue it with --resume, or"
                if (self.path / "run.json").exists()
                else "is not empty;"
            )
            raise UserError(f"--out {self.path} {what} name a new folder")
        if resume and taken and not (self.path / "run.json").exists():
            raise UserError(f"--out {self.path} holds no run to resume (no run.json)")
        existing = self._existing()
        if not existing.is_dir():
            raise UserError(f"--out {self.path}: {existing} is a file, not a folder")
        if not os.access(existing, os.W_OK):
            raise UserError(f"--out {self.path}: {existing} is not writable")

    def check_room(self, checkpoint: int, model: int) -> None:
        """Raises UserError where the disk has no room for three checkpoints (two are kept while a third is written) and
        the model. Sizes are in bytes; checkpoints that are there already need no more."""
        there = min(2, sum(path.suffix == "" for path in self.checkpoints.glob("step-*")))
        needed = (3 - there) * checkpoint + model
        free = shutil.disk_usage(self._existing()).free
        if free < needed:
            raise UserError(
                f"--out {self.path}: {free / 2**30:.3g} GiB are free there, but checkpoints and the model need "
                f"{needed / 2**30:.3g} GiB; make room, or name a folder on another disk"
            )

    def _existing(self) -> Path:
        """The folder, or the nearest above it that is there."""
        return next(p for p in (self.path, *self.path.absolute().parents) if p.exists())

    @contextmanager
    def held(self, wait: float = WAIT) -> Iterator[None]:
        """Be the only process that writes here. Raises UserError, naming the other, where one goes on for `wait` seconds.

        At the end, whatever it is, the loggers are closed.
        """
        make_folder(self.path)
        with held(self.lock, wait, f"--out {self.path}"):
            ok = False
            try:
                yield
                ok = True
            finally:
                if self.loggers:
                    self.loggers.close(ok)

    def write_json(self, name: str, value: dict) -> None:
        """Write a JSON file of the folder; it is whole or as it was."""
        with whole(self.path / name) as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> dict:
        """A JSON file of the folder. Raises UserError where it cannot be read, or holds no object."""
        found = read_json(self.path / name, 2**24)
        if not isinstance(found, dict):
            raise UserError(f"{self.path / name} holds no JSON object")
        return found

    def log(self, line: dict) -> None:
        """Append a line to metrics.jsonl, and tell the loggers. Raises Unwritable where the system refuses."""
        # seven digits, all that float32 has
        rounded = {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in line.items()}
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(rounded) + "\n")
        except OSError as error:
            raise Unwritable.because(self.metrics, error) from None
        if self.loggers:
            self.loggers.log(rounded)

    def all_metrics(self) -> list[dict]:
        """Every line of metrics.jsonl; [] where there is none.

        A last line without an end is left out: a run is writing it, or was killed as it did. Raises UserError, naming file
        and line, for any other that is none of metrics.
        """
        text = read_text(self.metrics, METRICS) if self.metrics.exists() else ""
        return [self._read(line, number) for number, line in enumerate(text.split("\n")[:-1], 1)]

    def held_out_losses(self) -> dict[int, float]:
        """The loss on held-out pairs, by step; from now on the lines are on the disk."""
        if self.metrics.exists():
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())
        return {line["step"]: line["loss"] for line in self.held_out_metrics()}

    def last_split(self) -> str:
        """The split of the last line of metrics.jsonl, "" where there is none."""
        lines = self._lines()
        return self._read(lines[-1], len(lines))["split"] if lines else ""

    def held_out_metrics(self) -> list[dict]:
        """The lines of metrics.jsonl that are about held-out pairs."""
        lines = [self._read(line, number) for number, line in enumerate(self._lines(), 1)]
        return [line for line in lines if line["split"] == "held-out"]

    def _lines(self) -> list[str]:
        return self.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if self.metrics.exists() else []

    def _read(self, line: str, number: int) -> dict:
        found = _metrics(line)
        if found is None:
            raise UserError(f"{self.metrics}, line {number}: this is no line of metrics: {shown(line)}")
        return found

    def held_out_change(self) -> str:
        """'loss 1.025 to 0.373, accuracy ...' from the first evaluation to the last; "" where there was none."""
        lines = self.held_out_metrics()
        names = [name for name in SHOWN.values() if lines and name in lines[-1]]
        short = {long: short for short, long in SHOWN.items()}
        figures = {name: " to ".join(figure(line[name], 4) for line in (lines[0], lines[-1])) for name in names}
        return ", ".join(f"{short[name]} {said}" for name, said in figures.items())

    def begin_metrics(self, last: int, loggers: Collection[str], flags: dict) -> None:
        """Open the loggers, whose hyperparameters are `flags`, and go on after step `last`."""
        logged = self.cut_metrics(last)
        self.loggers = Loggers(loggers, Beginning(self.path, flags, last + 1, logged))

    def cut_metrics(self, step: int) -> set[tuple[int, str]]:
        """Forget what was logged after `step`, so that a resumed run has every step once. Returns step and split of all
        that had been logged."""
        # the last line of a run that was killed may be half of one
        found = [(line, metrics) for line in self._lines() if (metrics := _metrics(line))]
        with whole(self.metrics) as file:
            file.writelines(line + "\n" for line, metrics in found if metrics["step"] <= step)
        return {(metrics["step"], metrics["split"]) for _, metrics in found}


def figure(value: float, digits: int) -> str:
    """A metric in so many digits. A margin of -1e-9 is rounding: it is 0, which has no sign."""
    return f"{round(value, 6) + 0.0:.{digits}g}"


def _metrics(line: str) -> dict | None:
    """A line of metrics.jsonl; None for anything else."""
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("step"), int) and isinstance(found.get("split"), str):
            return found
    return None
