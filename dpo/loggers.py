"""Where metrics go beside metrics.jsonl, under the same names: TensorBoard, Weights & Biases.

    --log-to tensorboard   runs/NAME/tensorboard/train and held-out: two runs of TensorBoard, whose curves share their charts
    --log-to wandb         train/loss, held-out/loss and so on, over `step`: one run of W&B, with its files in runs/NAME/wandb

Only the main process has loggers. They are guests: what goes wrong in one costs a warning and that logger, never the run.
"""

import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import NamedTuple, Protocol

from gpt.command import Notice, UserError, pip_install
from gpt.files import whole
from gpt.untrusted import read_json, shown

# Seconds that W&B may take at the end to send the rest: a run that a signal stops has to leave in time. What is not sent
# stays on the disk, for `wandb sync`
LAST_WORDS = 10.0


class Beginning(NamedTuple):
    """What a logger is told when a run begins, or goes on."""

    path: Path  # of the run folder
    flags: dict  # the hyperparameters
    first: int  # no step before this one will come again
    logged: Collection[
        tuple[int, str]
    ]  # step and split of every line that was logged before, also of steps that come again


class Logger(Protocol):
    """One place where lines of metrics go."""

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Take one line."""

    def close(self, ok: bool) -> None:
        """The run has ended; ok: by itself, with its last step."""


def check_loggers(names: Collection[str]) -> None:
    """Raises UserError for a logger whose package is missing, or that nobody is logged in to."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"--log-to {name}: the package is not installed; {pip_install(name)}")
    if "wandb" in names:
        _check_login()


class Loggers:
    """The loggers of a run. Never raises: a logger that fails is dropped, with a warning."""

    def __init__(self, names: Collection[str], begun: Beginning):
        self.open: dict[str, Logger] = {}
        for name in names:
            with self._as_guest(name):
                self.open[name] = KINDS[name](begun)

    def log(self, line: dict) -> None:
        """A line of metrics.jsonl, to all of them."""
        metrics = {name: value for name, value in line.items() if name not in ("step", "split")}
        for name, logger in list(self.open.items()):
            with self._as_guest(name):
                logger.log(line["step"], line["split"], metrics)

    def close(self, ok: bool) -> None:
        """The run has ended; ok: by itself, with its last step."""
        for name in list(self.open):
            with self._as_guest(name):
                self.open.pop(name).close(ok)

    @contextmanager
    def _as_guest(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.open.pop(name, None)
            why = str(error) or type(error).__name__
            warnings.warn(Notice(f"--log-to {name} failed, and the run goes on without it: {why}"), stacklevel=3)


class TensorBoard:
    """Event files of two runs, so that TensorBoard draws train and held-out into one chart for each name."""

    def __init__(self, begun: Beginning):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # steps that come again are struck out of the files of before
        self.writers = {
            split: SummaryWriter(str(begun.path / "tensorboard" / split), purge_step=begun.first)
            for split in ("train", "held-out")
        }
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in begun.flags.items()
        }
        # not by add_hparams: that makes another file, and TensorBoard follows only the newest of a folder
        files = self.writers["train"].file_writer
        assert files is not None  # until it is closed
        for summary in hparams(plain, {}):
            files.add_summary(summary)

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Take one line; it is in the file afterwards, whatever ends the process."""
        for name, value in metrics.items():
            self.writers[split].add_scalar(name, value, step)
        self.writers[split].flush()

    def close(self, ok: bool) -> None:
        """End the files."""
        for writer in self.writers.values():
            writer.close()


class WandB:
    """A run of W&B, which is the same one after a resume: its id is kept in the run folder.

    Project, entity, mode and the rest come from W&B's own variables; WANDB_MODE=offline writes files alone.
    """

    def __init__(self, begun: Beginning):
        import wandb

        kept = begun.path / "wandb.json"
        self.logged = begun.logged if kept.exists() else ()
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gpt-dpo"),
            name=os.environ.get("WANDB_NAME", begun.path.resolve().name),
            id=_kept_id(kept) if kept.exists() else None,
            resume="allow",
            dir=str(begun.path),
            config=begun.flags,
            allow_val_change=True,
            # console: what the run prints is its own, and goes through pipes that a signal may have closed
            settings=wandb.Settings(console="off", finish_timeout=LAST_WORDS),
        )
        # W&B counts its own steps and refuses to go back: ours is a number like any other, that charts are drawn over
        self.run.define_metric("*", step_metric="step")
        with whole(kept) as file:
            file.write(json.dumps({"id": self.run.id}) + "\n")

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Take one line, unless it has it: what was logged after the checkpoint that a run resumes from comes again."""
        if (step, split) not in self.logged:
            self.run.log({"step": step} | {f"{split}/{name}": value for name, value in metrics.items()})

    def close(self, ok: bool) -> None:
        """Send the rest, and say how the run ended."""
        self.run.finish(exit_code=0 if ok else 1)


KINDS: dict[str, Callable[[Beginning], Logger]] = {"tensorboard": TensorBoard, "wandb": WandB}
NAMES = tuple(KINDS)


def _kept_id(path: Path) -> str:
    found = read_json(path, 2**16)
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        raise UserError(f"{path} holds no id of a run: {shown(found)}")
    return found["id"]


def _check_login() -> None:
    import wandb

    try:
        mode = wandb.setup().settings.mode
        with redirect_stderr(StringIO()):  # where the key comes from, once for each process
            known = mode in ("offline", "disabled", "dryrun") or wandb.login(prompt=False, verify=False)
    except Exception as error:  # a key that cannot be one
        raise UserError(f"--log-to wandb: {error}") from None
    if not known:
        raise UserError("--log-to wandb: nobody is logged in; wandb login, or WANDB_MODE=offline to write files alone")
