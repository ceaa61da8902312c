"""What is tortured: a toy model that trains in a second on 34 pairs, in several kinds of runs, and what must be equal.

    ground = Ground(folder, seed=0)
    with ground.started(KINDS["dropout"], out) as job:      the run as users start it, for as long as the block lasts
        ...
    ground.finish(KINDS["dropout"], out)                    the same command with --resume, to its end
    same_bits(out, ground.undisturbed(KINDS["dropout"]))    every weight, moment and metric

20 steps in 4 epochs, each of which ends in a batch that is not full; a checkpoint after every second step, an evaluation
after every fifth.
"""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

from data.pairs import write_rows
from data.rules import preference_rows
from tests.processes import ENVIRONMENT
from tests.torture.jobs import Failed, Job, kill_all, need
from tests.torture.warm import ROOT, WarmJob, servers

TRAIN = ROOT / "dpo/train.py"
STEPS, SAVE_EVERY, EVAL_EVERY = 20, 2, 5
LONG = 120.0  # seconds, much more than anything here takes on two busy cores


class Kind(NamedTuple):
    """What a run computes."""

    name: str
    flags: tuple = ()
    processes: int = 0  # of torchrun; 0: without it

    def of(self, processes: int, *flags) -> "Kind":
        """The same in so many processes, and with more flags."""
        name = " ".join(map(str, [self.name, *flags, "in", processes]))
        return self._replace(name=name, flags=(*self.flags, *flags), processes=processes)


class Way(NamedTuple):
    """How it is started, which changes nothing in what it computes."""

    door: bool = False  # by launch.sh
    restarts: int = 0  # that torchrun may make
    cold: bool = False  # one process: in a new Python, not in the child of a warm one
    die_at: int = 0  # the operation on a file before which a warm child kills itself


PLAIN = Kind("plain")
DROPOUT = Kind("dropout", ("--dropout", 0.1))
MOVING = Kind("moving reference", ("--reference-every", 3))
ADAPTERS = Kind("adapters", ("--lora", 4))
ENDLESS = Kind("endless", ("--steps", 10**6, "--save-every", 100, "--eval-every", 0))


class Ground:
    """The toy, in a folder, and the runs that nothing disturbed: each kind is made once."""

    def __init__(self, folder: Path, seed: int = 0, at_once: int = 2):
        self.folder, self.seed, self.at_once = folder, seed, at_once
        self.environment = ENVIRONMENT | {
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # as launch.sh exports
            "PATH": f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}",
        }
        self.free = servers(at_once, self.environment)
        self.whole: dict[Kind, tuple[Path, float]] = {}
        self.lock = threading.Lock()
        make_toy(folder)

    def random(self, *what) -> Random:
        """Random numbers for one purpose, the same for the same seed."""
        return Random(f"{self.seed} {what}")

    def flags(self, kind: Kind, out: Path) -> list:
        every = ["--save-every", SAVE_EVERY, "--eval-every", EVAL_EVERY]
        data = ["--init", self.folder / "model", "--pairs", self.folder / "pairs.jsonl"]
        return [*data, "--batch", 8, "--lr", 1e-3, "--epochs", 4, *every, *kind.flags, "--out", out]

    @contextmanager
    def started(self, kind: Kind, out: Path, *more, way: Way = Way()) -> Iterator[Job]:  # noqa: B008  it never changes
        """A run in `out`, and nothing of it is left after the block. What it says goes into OUT.1.log, OUT.2.log ..."""
        words = [*self.flags(kind, out), *more]
        log = next(path for n in count(1) if not (path := out.with_name(f"{out.name}.{n}.log")).exists())
        environment = self.environment | {"GPT_DPO_CACHE": str(out.with_name(out.name + ".cache"))}
        if way.door:
            environment |= {"N": str(kind.processes or 1), "RESTARTS": str(way.restarts)}
            job = Job([ROOT / "launch.sh", "train", *words], log, environment)
        elif kind.processes or way.cold:
            job = Job([*launcher(kind, way), TRAIN, *words], log, environment)
        else:
            job = WarmJob(self.free, words, log, environment, way.die_at)
        try:
            yield job
        finally:
            kill_all(job)

    def finish(self, kind: Kind, out: Path, *more) -> str:
        """Continue the run with the command that it was started with and --resume, to its end. Returns what it said."""
        with self.started(kind, out, "--resume", *more) as job:
            code = job.wait(LONG)
            need(code == 0, f"{kind.name}: resumed, it ended with {code}: {last_line(job.said())}")
            return job.said()

    def undisturbed(self, kind: Kind) -> Path:
        """The folder of a run of this kind that nothing disturbed."""
        return self._whole(kind)[0]

    def seconds(self, kind: Kind) -> float:
        """How long that took."""
        return self._whole(kind)[1]

    def _whole(self, kind: Kind) -> tuple[Path, float]:
        with self.lock:
            if kind not in self.whole:
                out, began = self.folder / f"undisturbed {kind.name}", time.monotonic()
                with self.started(kind, out) as job:
                    code = job.wait(LONG)
                    need(code == 0, f"{kind.name}: undisturbed, it ended with {code}: {last_line(job.said())} ({out})")
                self.whole[kind] = out, time.monotonic() - began
            return self.whole[kind]


def launcher(kind: Kind, way: Way) -> list:
    """This Python, and torchrun where there are processes for it."""
    if not kind.processes:
        return [sys.executable]
    torchrun = "-m torch.distributed.run --standalone --local-addr 127.0.0.1".split()
    return [sys.executable, *torchrun, "--max-restarts", way.restarts, "--nproc-per-node", kind.processes]


def make_toy(folder: Path) -> None:
    """A model of 44,000 parameters, and 37 pairs to train on or hold out."""
    import torch

    from gpt.model import GPT, GPTConfig
    from gpt.tokenizer import train_bpe
    from gpt.weights import save_gpt

    rows = preference_rows(37)
    tokenizer = train_bpe([f"{r['instruction']} {r['input']} {r['chosen']} {r['rejected']}" for r in rows], 320)
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    save_gpt(folder / "model", GPT(shape), tokenizer)
    write_rows(folder / "pairs.jsonl", rows)


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl that are whole."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_step(run: Path) -> int:
    """The last step that was logged, 0 where none was."""
    return max((line["step"] for line in metrics(run) if line["split"] == "train"), default=0)


def checkpoints(run: Path) -> list[Path]:
    """Those that have a manifest, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob("step-*[0-9]/manifest.json"))


def last_line(text: str) -> str:
    """The line that says why: our own error where there is one."""
    lines = [line for line in text.splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in reversed(lines) if "rror: " in line), lines[-1])


def bits(run: Path) -> dict[str, object]:
    """All that must be equal in two runs of one trajectory: every metric but speed, every weight and every moment."""
    files = [*(run / "model").glob("*.safetensors"), *(run / "adapter").glob("*.safetensors")]
    files += checkpoints(run)[-1].glob("*.safetensors") if checkpoints(run) else []
    found = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    lines = [{name: value for name, value in line.items() if name != "pairs_per_second"} for line in metrics(run)]
    return found | {"metrics.jsonl": lines}


def same_bits(run: Path, other: Path) -> None:
    """Raises Failed, naming what differs. Nothing half-written may be left in `run` either."""
    ours, theirs = bits(run), bits(other)
    differ = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    need(not differ, f"{', '.join(differ)} differ from those of the undisturbed run")
    left = [path.name for path in run.rglob("*") if path.suffix in (".part", ".old")]
    need(not left, f"{', '.join(left)} left behind")
    need("model/model.safetensors" in ours and checkpoints(run), "there is no model, or no checkpoint")


def nothing_lost(run: Path) -> None:
    """Raises Failed where a run that was just killed has no whole checkpoint within SAVE_EVERY steps of its last one."""
    done, kept = last_step(run), [int(path.name.removeprefix("step-")) for path in checkpoints(run)]
    if done >= SAVE_EVERY + 1 and max(kept, default=0) < done - SAVE_EVERY:
        raise Failed(f"step {done} was logged, the newest checkpoint is of {max(kept, default='no step')}")
