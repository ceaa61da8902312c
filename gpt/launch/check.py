"""Whether the processes that torchrun starts can meet and compute together: ./launch.sh check.

    process 0 of 2 on node-1: cpu, torch 2.13.0, Python 3.11.7
    process 1 of 2 on node-2: cpu, torch 2.13.0, Python 3.11.7
    sums     1.2 GB/s; a gradient of GPT-2 124M (498 MB) takes 0.41 s
    ok       2 processes in 3.9 s

What must hold before they can meet, gpt/launch/preflight.py looks at.
"""

import platform
import socket
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from gpt.command import UserError, flag, run
from gpt.joining import join, must_agree
from gpt.parallel import World, add_up, agree, say, spread

BUCKET = 6_553_600  # numbers: 25 MiB of float32, as DDP sends them
GRADIENT = 124_439_808  # parameters of GPT-2 124M
SECONDS, ROUNDS = 2.0, 20  # the most that the measurement takes


@dataclass(frozen=True)
class Flags:
    """Whether the processes that torchrun starts can meet and compute together.

    torchrun --nproc_per_node=2 gpt/launch/check.py --timeout 30
    """

    device: str = flag("auto", "as in train.py")
    timeout: float = flag(60.0, "seconds that a process waits for another")


def check(flags: Flags) -> None:
    started = time.monotonic()
    with join(flags.device, timeout=flags.timeout) as world:
        who = f"{world.device}, torch {torch.__version__}, Python {platform.python_version()}"
        for rank in range(world.size):
            mine = f"process {world.rank} of {world.size} on {socket.gethostname()}: {who}"
            say(agree(mine, world, rank), world)
        must_agree({}, world)
        check_sums(world)
        if world.size > 1:
            say(f"sums     {speed(world)}", world)
        say(f"ok       {world.size} process{'es' * (world.size > 1)} in {time.monotonic() - started:.1f} s", world)


def check_sums(world: World) -> None:
    """Raises UserError where a bucket of different numbers from each process does not add up to what is known."""
    places = torch.arange(BUCKET, device=world.device) % 10  # so that float32 has the sums of 1,800 processes exactly
    found = add_up(places.float() * (world.rank + 1), world)
    wrong = int((found != places * (world.size * (world.size + 1) // 2)).sum())
    if wrong:
        raise UserError(
            f"{wrong:,} of {BUCKET:,} numbers were added up wrongly on {socket.gethostname()}: its memory, or the "
            "network, changes them"
        )


def speed(world: World) -> str:
    """How fast gradients meet. All processes do the same number of rounds: as many as the main one has time for."""
    bucket = torch.zeros(BUCKET, device=world.device)
    seconds = min(timed(bucket, world) for _ in range(2))
    rounds = int(spread(torch.tensor(float(min(ROUNDS, SECONDS / seconds)), device=world.device), world)) or 1
    seconds = sum(timed(bucket, world) for _ in range(rounds)) / rounds
    rate = BUCKET * 4 / seconds
    return f"{rate / 1e9:.3g} GB/s; a gradient of GPT-2 124M ({GRADIENT * 4 / 1e6:.0f} MB) takes {GRADIENT * 4 / rate:.3g} s"


def timed(values: torch.Tensor, world: World) -> float:
    """Seconds in which they are added up."""
    started = time.monotonic()
    float(add_up(values, world)[0])  # looked at: a device returns before it has computed
    return time.monotonic() - started


if __name__ == "__main__":
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device")
    parser.add_argument("--timeout")
    parser.add_argument("--help", "-h", action="store_true")
    given, _ = parser.parse_known_args()  # of the flags of train.py, which looks at them itself, two matter here
    sys.argv[1:] = [
        word for name, value in vars(given).items() if value for word in (f"--{name}", value) if word is not True
    ]
    run(check, Flags)
