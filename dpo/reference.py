"""The reference's log-probabilities: computed once, kept on disk, and read again by the next run.

The reference does not change, so neither do its numbers. One pass without gradients over the pairs that the run will
meet stands in for a second model in memory and a second forward pass in every step. They are kept for each answer
token in a file that is named by all that they depend on: the weights, the ids of the pairs (so tokenizer, template,
length and data), the precision and the way it is computed. Pairs that no run has met yet are NaN there. What is known
is written every minute, so that a pass of hours that is stopped, or dies, goes on where it was.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.tally import rows_listed
from dpo.examples import Examples
from dpo.forward import Way, ask
from dpo.order import Limit, micro_batches
from gpt.command import UserError
from gpt.files import cache_folder, locked, whole
from gpt.packed import packed
from gpt.parallel import add_up, is_sharded, spread
from gpt.stopping import Stopped

# Rows of a forward pass, by device, whatever --micro is: so that the numbers depend on nothing else
AT_ONCE = {"cpu": Limit(pairs=1024, tokens=4096), "cuda": Limit(pairs=4096, tokens=32768), "mps": Limit(1024, 8192)}
KEEP = 32  # files in the cache, the last used
EVERY = 60.0  # seconds after which what is known is written
FORMAT = 1  # counted up when the same weights and pairs would give other numbers


class Reference(NamedTuple):
    """log pi_ref of every answer token of some pairs: chosen, then rejected, pair after pair."""

    logps: Tensor  # float32 on the CPU
    starts: np.ndarray  # (pairs + 1,): where each pair begins
    computed: int = 0  # pairs that were asked in this run, over all processes
    seconds: float = 0.0
    digest: str = ""  # SHA-256 of the numbers of the pairs that were wanted
    model: None = None  # it is asked no more

    @property
    def described(self) -> str:
        """What it took, for the person who waited."""
        known = int((~self.logps[self.starts[:-1]].isnan()).sum()) - self.computed
        asked = f"asked about {self.computed:,} pairs in {self.seconds:.1f} s" if self.computed else "asked about none"
        return f"reference {asked}, {known:,} known from before"

    def of(self, rows: Sequence[int]) -> Tensor:
        """Of the pairs `rows`, (S,), in the order in which a batch has them."""
        return torch.cat([self.logps[self.starts[i] : self.starts[i + 1]] for i in rows])

    def follow(self, policy: nn.Module, step: int) -> None:
        """It stays where it is; dpo/moving.py has one that does not."""

    def sums(self, examples: Examples) -> Tensor:
        """log pi_ref of whole answers, (pairs, 2): chosen, rejected."""
        cuts = [(a, a + len(ids.chosen), b) for ids, a, b in zip(examples.ids, self.starts, self.starts[1:])]
        return torch.stack([torch.stack([self.logps[a:b].sum(), self.logps[b:c].sum()]) for a, b, c in cuts])


def no_reference(examples: Examples) -> Reference:
    """Zeros, for losses that compare with none."""
    starts = _starts(examples)
    return Reference(torch.zeros(int(starts[-1])), starts)


@torch.no_grad()
def reference_logps(model: nn.Module, examples: Examples, wanted: Sequence[int], way: Way, sha256: str) -> Reference:
    """The reference's log-probabilities of the pairs `wanted`: what the cache has of them, and the rest computed, each
    process its share, and added to the cache. Pairs that are not wanted may be NaN.

    model: the reference itself, whose weights are `sha256`; it is put in eval mode. Raises UserError, in every process,
    where a number of a wanted pair is not finite, naming the rows.
    """
    began, starts, world = time.perf_counter(), _starts(examples), way.world
    way = way._replace(limit=AT_ONCE[world.device.type])
    key = [FORMAT, sha256, examples.fingerprint, way.precision, world.device.type, torch.__version__, *way.limit]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    known = torch.full((int(starts[-1]),), torch.nan)
    if world.is_main and (kept := _read(name, len(known))) is not None:
        known = kept
    known = spread(known.to(world.device), world).cpu()
    wanted = np.asarray(wanted, dtype=np.int64)
    there = ~known[starts[wanted]].isnan().numpy()
    missing = wanted[~there].tolist()
    if missing:
        # cut as if nothing were known: a run that goes on where another was stopped has the same batches, and bits
        batches = micro_batches(wanted.tolist(), examples, way.limit, world, without=set(wanted[there].tolist()))
        fresh = _asked(model, examples, starts, batches, known, partial(_keep, name), way)
        places = _places(starts, missing)
        known[places] = add_up(fresh.to(world.device), world).cpu()[places]
        if world.is_main:
            known = _keep(name, known)
        known = spread(known.to(world.device), world).cpu()
    numbers = known[_places(starts, wanted.tolist())]
    if not numbers.isfinite().all():
        bad = [i for i in wanted if not known[starts[i] : starts[i + 1]].isfinite().all()]
        raise UserError(
            "the reference model gives log-probabilities that are not finite; look at its weights, or try --precision fp32. "
            f"It is so for {len(bad)} of {len(wanted)} pairs (one makes others so that are read with it): "
            + rows_listed(examples.rows[bad].tolist())
        )
    digest = hashlib.sha256(numbers.numpy().data).hexdigest()
    return Reference(known, starts, len(missing), time.perf_counter() - began, digest)


def _asked(
    model: nn.Module,
    examples: Examples,
    starts: np.ndarray,
    batches: list[list[int]],
    known: Tensor,
    keep: Callable[[Tensor], Tensor],
    way: Way,
) -> Tensor:
    """What the model says of the pairs in `batches`, this process's own, and 0 of all others.

    It is written into `known` too, which from time to time, and when a signal comes, is given to `keep`.
    """
    model.eval()
    # of a matrix in parts there is nothing to pack; the same bits, which in float32 another library would round otherwise
    if way.precision == "bf16" and not is_sharded(model):
        model = packed(model, torch.bfloat16)
    fresh = torch.zeros_like(known)
    unread: list[tuple[Tensor, Tensor]] = []  # places and log p on the device; a GPU is not waited for

    def read() -> None:
        for places, logps in unread:
            known[places] = fresh[places] = logps.cpu()
        unread.clear()

    due = time.monotonic() + EVERY
    try:
        for rows in tqdm(batches, desc="reference", unit="batch", disable=not way.world.is_main, leave=False):
            if rows:
                unread.append((_places(starts, rows), ask(model, examples.ids, rows, way).logps))
            elif is_sharded(model):
                ask(model, examples.ids, [0], way)  # as often as the others, who wait for this process's part
            else:
                way.stop()  # as often as the others
            if (now := time.monotonic()) > due:
                read()
                keep(known)
                due = time.monotonic() + max(EVERY, 20 * (time.monotonic() - now))  # a large file takes its time
    except Stopped:
        read()
        keep(known)
        raise Stopped(
            "stopped by a signal in the reference pass; started again, the run goes on from what the cache has of it"
        ) from None
    read()
    return fresh


def _places(starts: np.ndarray, rows: Sequence[int]) -> Tensor:
    """Where the answer tokens of the pairs `rows` stand."""
    rows = np.asarray(rows, dtype=np.int64)
    counts = starts[rows + 1] - starts[rows]
    first = np.cumsum(counts) - counts  # of each pair, among those that are returned
    return torch.from_numpy(np.repeat(starts[rows] - first, counts) + np.arange(counts.sum()))


def _starts(examples: Examples) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(examples.lengths[:, 1:].sum(1, dtype=np.int64))])


def _read(name: str, count: int) -> Tensor | None:
    """What _keep wrote, or None where it is missing, cut, damaged or of another size."""
    try:
        path = cache_folder("references") / name
        digest, data = (content := path.read_bytes())[:32], content[32:]
    except OSError:
        return None
    if len(data) != 4 * count or hashlib.sha256(data).digest() != digest:
        return None
    with suppress(OSError):  # another user's
        os.utime(path)
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def _keep(name: str, logps: Tensor) -> Tensor:
    """Add these numbers to those in the file, and return both. What the file has already stays: so a run that is resumed
    reads what it was trained with, whatever other runs write meanwhile. A cache that cannot be written, or tidied, costs
    time only.

    The file: the SHA-256 of the numbers, then the numbers.
    """
    with suppress(OSError):
        folder = cache_folder("references")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(cache_folder("references.lock")):
            if (kept := _read(name, len(logps))) is not None:
                logps = torch.where(kept.isnan(), logps, kept)
            data = logps.numpy().data
            with whole(folder / name, binary=True) as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            for old in sorted(folder.iterdir(), key=os.path.getmtime, reverse=True)[KEEP:]:
                old.unlink()
    return logps
