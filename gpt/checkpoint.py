"""A run's state on disk, whole or absent, and nothing in it that could run code.

    checkpoints/step-000120/
        model.safetensors        parameters that train, by name, float32
        optimizer.safetensors    AdamW's moments: NAME/exp_avg, NAME/exp_avg_sq, NAME/step
        state.json               the step and whatever else the caller must find again
        reference.safetensors    the reference, where it moves
        manifest.json            SHA-256 of the others, written last: without it the folder is no checkpoint

Random numbers need not be kept: they are seeded anew at every step from (seed, step, process).
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gpt.command import UserError
from gpt.files import is_sealed, seal, whole_folder
from gpt.launched import process_rank

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
REFERENCE = "reference.safetensors"


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    reference: nn.Module | None = None,
    keep: int = 2,
) -> Path:
    """Write `folder/step-N` for N = state["step"], and remove all but the newest `keep`. Only the main process calls it.

    reference: a second model whose parameters change too.
    """
    final = folder / f"step-{state['step']:06d}"
    names = {parameter: name for name, parameter in _trained(model).items()}
    with whole_folder(final) as part:
        save_file({name: p.detach().contiguous() for p, name in names.items()}, part / FILES[0])
        moments = {
            f"{names[p]}/{key}": value.contiguous()
            for p, kept in optimizer.state.items()
            for key, value in kept.items()
        }
        save_file(moments, part / FILES[1])
        (part / FILES[2]).write_text(json.dumps(state, indent=2))
        if reference:
            save_file({name: p.detach().contiguous() for name, p in reference.named_parameters()}, part / REFERENCE)
        seal(part, _files(part))
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(folder: Path) -> tuple[Path, dict] | None:
    """The newest whole checkpoint and its state, or None. A damaged one is passed over, and its path printed."""
    for path in reversed(_checkpoints(folder)):
        if is_sealed(path, _files(path)):
            return path, json.loads((path / FILES[2]).read_text())
        if process_rank() == 0:
            print(f"{path} is damaged or unfinished, the one before is used")
    return None


def _files(path: Path) -> tuple[str, ...]:
    return (*FILES, REFERENCE) if (path / REFERENCE).exists() else FILES


def _checkpoints(folder: Path) -> list[Path]:
    """By step, as numbers: step-1000000 is newer than step-999999. Other names, such as a user's copy, are left alone."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, reference: nn.Module | None = None
) -> None:
    """Put the parameters and the optimizer's state back, in place. Raises UserError where they are of another model."""
    names = _trained(model)
    weights, moments = load_file(path / FILES[0]), load_file(path / FILES[1])
    if weights.keys() != names.keys() or any(weights[name].shape != p.shape for name, p in names.items()):
        raise UserError(f"{path} holds another model than --init and --lora name")
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(weights[name])
        if reference:
            stored = load_file(path / REFERENCE)
            for name, parameter in reference.named_parameters():
                parameter.copy_(stored[name])
    for key, value in moments.items():
        name, _, field = key.rpartition("/")
        parameter = names[name]
        optimizer.state[parameter][field] = value.to(parameter.device)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is frozen came from elsewhere, and is there still."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
