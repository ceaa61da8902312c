"""The training of a round: dpo/train.py in processes of its own, by what is behind launch.sh."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from dpo.run_folder import RunFolder
from gpt.stopping import StopSignal

ROOT = Path(__file__).resolve().parents[1]


class TrainingFailed(Exception):
    """Training ended with this exit code, and has said why."""


def train(words: list[str], folder: RunFolder, stop: StopSignal) -> None:
    """Run dpo/train.py by the launcher, which ends it when this process ends. What it says goes to train.log.

    Raises Stopped after a signal, which is passed on, and TrainingFailed.
    """
    script, launcher = ROOT / "dpo" / "train.py", ROOT / "gpt" / "launch" / "launcher.py"
    command = [sys.executable, str(launcher), "--follow", "--first", str(script), str(script), *words]
    environment = os.environ | {"N": os.environ.get("N") or str(torch.cuda.device_count() or 1)}
    passed_on = False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # of what sampling took, nothing is used any more
    with open(folder.path / "train.log", "ab") as log:
        # in a session of its own, that it hears of a Ctrl+C by this process alone
        with subprocess.Popen(command, stdout=log, env=environment, start_new_session=True) as job:
            while job.poll() is None:
                if stop.came and not passed_on:
                    job.terminate()
                    passed_on = True
                time.sleep(0.1)
    stop.check()
    if job.returncode:
        raise TrainingFailed(job.returncode if job.returncode > 0 else 1)
