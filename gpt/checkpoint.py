"""A run's state on disk, whole or absent, and nothing in it that could run code.

    checkpoints/step-000120/
        model.safetensors        parameters that train, by name, float32
        optimizer.safetensors    AdamW's moments: NAME/exp_avg, NAME/exp_avg_sq, NAME/step
        state.json               the step and whatever else the caller must find again
        reference.safetensors    the reference, where it moves
        manifest.json            SHA-256 of the others, written last: without it the folder is no checkpoint

Random numbers need not be kept: they are seeded anew at every step from (seed, step, process).

Tensors are whole on disk, however many processes had parts of them. The main process writes and reads; the others send
it their parts, and are sent what it reads. So a run may go on with another number of processes, with or without
--shard, and on machines that do not see the folder.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt.command import UserError
from gpt.files import is_sealed, seal, whole_folder
from gpt.parallel import World, fill, gathered, on_main, parameters_at_rest, spread
from gpt.untrusted import read_json
from gpt.waiting import waiting

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
REFERENCE = "reference.safetensors"
NAME = re.compile(r"step-\d+")


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    world: World,
    reference: nn.Module | None = None,
    keep: int = 2,
    held_out: Callable[[], Mapping[int, float]] = dict,
) -> None:
    """Write `folder/step-N` for N = state["step"]; keep the newest `keep` and the best, remove the others. All must call it.

    reference: a second model whose parameters change too. held_out: asked by the main process for the loss on held-out
    pairs at those steps at which it is known; the checkpoint that has the lowest is the best.
    Where the step was saved already, with this state, and is whole, it is left as it is. What a killed save left is
    removed, and so are checkpoints of later steps, which this run, resumed from an earlier one, passed over as damaged.
    Raises UserError, in every process, where it cannot be written; what was there before is there still.
    """
    final, text = folder / f"step-{state['step']:06d}", json.dumps(state, indent=2)

    def is_there() -> str:
        _tidy(folder, state["step"])
        same = is_sealed(final, _files(final)) and (final / FILES[2]).read_text() == text
        return "yes" if same else ""

    if on_main(is_there, world):
        return
    trained = _trained(model)
    names: dict[Tensor, str] = {parameter: name for name, parameter in trained.items()}
    moments = {f"{names[p]}/{key}": value for p, kept in optimizer.state.items() for key, value in sorted(kept.items())}
    contents = {FILES[0]: gathered(trained, world), FILES[1]: gathered(moments, world)}
    if reference:
        contents[REFERENCE] = gathered(parameters_at_rest(reference), world)

    @waiting(f"writing {final.name}")
    def write() -> None:
        losses = held_out()
        with whole_folder(final) as part:
            for name, tensors in contents.items():
                save_file(tensors, part / name)
            (part / FILES[2]).write_text(text)
            seal(part, _files(part))
        best = next(iter(by_loss(folder, losses)), None)
        for old in _checkpoints(folder)[:-keep]:
            if old != best:
                shutil.rmtree(old)

    on_main(write, world)


@waiting("checking the checkpoints")
def latest_checkpoint(folder: Path, tell: Callable[[str], None] = print) -> tuple[Path, dict] | None:
    """The newest whole checkpoint and its state, or None where there is none yet. A damaged one is passed over, and `tell`
    is told of it. Raises UserError where all are damaged: to begin anew is for the user to decide."""
    # killed between two renames: what was there before stands in for what was not
    for old in folder.glob("step-*.old"):
        if NAME.fullmatch(old.stem) and not old.with_suffix("").exists():
            old.rename(old.with_suffix(""))
    found = _checkpoints(folder)
    for path in reversed(found):
        with suppress(UserError):
            if is_sealed(path, _files(path)) and isinstance(state := read_json(path / FILES[2], 2**24), dict):
                return path, state
        tell(f"{path} is damaged or unfinished, it is passed over")
    if found:
        raise UserError(
            f"{folder}: every checkpoint there is damaged; to begin anew remove the folder, or name a new --out"
        )
    return None


def best_checkpoint(folder: Path, held_out: Mapping[int, float]) -> Path | None:
    """The whole checkpoint of the step with the lowest loss. None where no step has a loss."""
    return next((path for path in by_loss(folder, held_out) if is_sealed(path, _files(path))), None)


def by_loss(folder: Path, held_out: Mapping[int, float]) -> list[Path]:
    """The checkpoints whose loss is known and finite, the best first; of two equal ones the later."""
    known = [path for path in _checkpoints(folder) if math.isfinite(held_out.get(step_of(path), math.nan))]
    return sorted(reversed(known), key=lambda path: held_out[step_of(path)])


def _tidy(folder: Path, step: int) -> None:
    """Remove what is no checkpoint of this run, which is at `step`."""
    later = [path for path in _checkpoints(folder) if step_of(path) > step]
    begun = [path for path in folder.glob("step-*") if path.suffix in (".part", ".old") and NAME.fullmatch(path.stem)]
    for path in (*later, *begun):
        if not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _files(path: Path) -> tuple[str, ...]:
    return (*FILES, REFERENCE) if (path / REFERENCE).exists() else FILES


def _checkpoints(folder: Path) -> list[Path]:
    """By step, as numbers: step-1000000 is newer than step-999999. Other names, such as a user's copy, are left alone."""
    return sorted(filter(_is_checkpoint, folder.glob("step-*")), key=step_of)


def _is_checkpoint(path: Path) -> bool:
    return bool(NAME.fullmatch(path.name)) and not path.is_symlink()


def step_of(path: Path) -> int:
    """The step that a checkpoint was made after."""
    return int(path.name.removeprefix("step-"))


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    world: World,
    reference: nn.Module | None = None,
) -> None:
    """Put the parameters and the optimizer's state back, in place. All must call it; the main process reads.

    Raises UserError, in every process, where they are of another model, and then changes nothing.
    """
    trained = _trained(model)
    weights, moments, others = {}, {}, {}

    @waiting(f"reading {path.name}")
    def read() -> None:
        weights.update(load_file(path / FILES[0]))
        if weights.keys() != trained.keys() or any(weights[name].shape != p.shape for name, p in trained.items()):
            raise UserError(f"{path} holds another model than --init and --lora name")
        if optimizer:
            moments.update(load_file(path / FILES[1]))
        if reference:
            others.update(load_file(path / REFERENCE))

    on_main(read, world)
    with torch.no_grad():
        for name, value in _sent(weights, trained, world):
            fill(trained[name], value)
        if reference:
            own = parameters_at_rest(reference)
            for name, value in _sent(others, own, world):
                fill(own[name], value)
        if optimizer:
            _load_moments(optimizer, trained, moments, world)


def _load_moments(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], moments: dict[str, Tensor], world: World
) -> None:
    """AdamW's state. A parameter that it has not met yet has none."""
    met = on_main(lambda: json.dumps({key: list(value.shape) for key, value in moments.items()}), world)
    for key, shape in json.loads(met).items():
        name, _, field = key.rpartition("/")
        parameter = trained[name]
        whole_shape = torch.empty(shape, dtype=torch.float32, device="meta")
        ((_, value),) = _sent(moments, {key: whole_shape}, world)
        if value.dim():
            kept = torch.zeros_like(parameter)
            fill(kept, value.to(parameter.device))
        else:  # the count of steps, which is not cut
            kept = value.to(parameter.device)
        optimizer.state[parameter][field] = kept


def _sent(tensors: dict[str, Tensor], shapes: Mapping[str, Tensor], world: World) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for each of `shapes`, which the main process has in `tensors`, one after another."""
    for name, like in shapes.items():
        value = tensors.pop(name) if world.is_main else torch.empty(like.shape, dtype=torch.float32)
        yield name, spread(value.to(world.device), world)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is frozen came from elsewhere, and is there still."""
    return {name: parameter for name, parameter in parameters_at_rest(model).items() if parameter.requires_grad}
