"""Where a run was left, which model it leaves, and which of its steps is best.

A checkpoint has the settings that it was made with. A run that goes on from it must have the same, or its steps would be
those of two different runs. How many processes there are, and where things lie, is free to change.
"""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

from dpo.card import model_card
from dpo.job import Job
from dpo.moving import Moving
from dpo.reference import Reference
from dpo.run_folder import RunFolder
from gpt.checkpoint import best_checkpoint, latest_checkpoint, load_checkpoint, step_of
from gpt.command import UserError
from gpt.launched import is_restarted
from gpt.lora import add_lora, merged, save_adapter
from gpt.model import GPT
from gpt.parallel import World, add_up, gathered, is_sharded, on_main, parameters_at_rest, say, spread
from gpt.weights import save_gpt


class LeftOff(NamedTuple):
    """The newest whole checkpoint of a run: the step it was made after, and the settings it was made with."""

    path: Path | None = None
    step: int = 0
    settings: dict = {}

    @classmethod
    def of(cls, folder: RunFolder, world: World) -> "LeftOff":
        """Step 0 where there is none. The main process looks: it has the folder, and the others are told."""

        def look() -> str:
            found = latest_checkpoint(folder.checkpoints)
            return json.dumps([str(found[0]), found[1]["step"], found[1]["settings"]] if found else None)

        found = json.loads(on_main(look, world))
        return cls(Path(found[0]), *found[1:]) if found else cls()

    def check_same(self, settings: dict, defaults: dict, folder: RunFolder) -> None:
        """Raises UserError that names the settings which differ. A flag that did not exist yet had its default."""
        before = defaults | self.settings
        free = ("micro", "tokens")  # how a step is cut, which changes its rounding alone
        known = [name for name in settings if name in before and name not in free]
        differ = [name for name in known if settings[name] != before[name]]
        # with these, other tokens are met in the same file
        if {"held_out", "max_length", "tokenizer_sha256"} & set(differ):
            differ = [name for name in differ if name not in ("pairs_sha256", "held_out_sha256")]
        if self.path and differ:
            said = dict.fromkeys(_told(name, before[name], settings[name]) for name in differ)
            raise UserError(
                f"--resume: {folder.path} was started with other flags: {', '.join(said)}; "
                "give the same, or a new --out"
            )

    def told_of(self, reference: Reference | Moving, settings: dict) -> str:
        """What to say of the reference's numbers, which are noted in `settings`; also where they are not those before.

        They differ, by rounding, once the cache that had them was removed and other threads or processes ask.
        """
        before, now = self.settings.get("reference_numbers"), reference.digest
        settings["reference_numbers"] = now
        other = "" if before in (None, now) else "; by rounding it says other numbers than before, and so will the run"
        return reference.described + other


# Whose contents a hash stands for, by the flag that names it
HASHED = {
    "tokenizer_sha256": "--init (another model)",
    "init_sha256": "--init (another model)",
    "reference_sha256": "--reference (another model)",
    "pairs_sha256": "--pairs (other pairs)",
    "held_out_sha256": "--pairs (other pairs)",
    "margins_sha256": "--pairs (other margins)",
}


def _told(name: str, before: object, now: object) -> str:
    """A setting that is not what it was, as the flag that made it."""
    if name in HASHED:
        return HASHED[name]
    then, this = ("unset" if value is None else value for value in (before, now))
    return f"--{name.replace('_', '-')} {this} (it was {then})"


def resumes(asked: bool, world: World) -> bool:
    """As --resume asks, and whenever torchrun starts processes again, be it on one machine of several."""
    return bool(add_up(torch.tensor(int(asked or is_restarted()), device=world.device), world))


def new_folder(job: Job) -> str:
    """Where a run goes that was told no place."""
    return f"runs/{job.loss.terms[0].name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


class SaveClock:
    """Rings `seconds` after it was started, by the main process's time, in all processes alike; with 0 seconds never.

    So a crash costs minutes at most, whatever a step takes, and a run of short steps does not spend its time on saving.
    """

    def __init__(self, seconds: float, world: World):
        self.seconds, self.world = seconds, world
        self.restart()

    def restart(self) -> None:
        """Begin to count anew."""
        self.began = time.monotonic()

    def rings(self) -> bool:
        """Whether it is time. All processes must ask equally often."""
        if not self.seconds:
            return False
        over = torch.tensor(int(time.monotonic() - self.began > self.seconds), device=self.world.device)
        return bool(spread(over, self.world))


def exported_step(job: Job, folder: RunFolder, policy: GPT, world: World) -> int:
    """The step whose weights the model folder gets, and `policy` then has: the last one, or with --export best the one that
    was best on held-out pairs. Says so where another than the last was."""
    best = on_main(lambda: str(best_checkpoint(folder.checkpoints, folder.held_out_losses()) or ""), world)
    step = step_of(Path(best)) if best else job.steps
    if step == job.steps:
        return step
    exported = job.flags.export == "best"
    what = "exported" if exported else "--export best writes that one"
    say(f"best     {best}, by the loss on held-out pairs; {what}", world)
    if not exported:
        return job.steps
    load_checkpoint(Path(best), policy, None, world)
    return step


def export(job: Job, settings: dict, folder: RunFolder, policy: GPT, step: int, world: World) -> None:
    """Write the model folder, and the adapter's. step: the one whose weights the policy has."""

    def write() -> None:
        assert plain is not None  # the main process has it
        if job.flags.lora and not job.origin.startswith("random:"):  # whose base stands nowhere
            save_adapter(folder.adapter, plain, job.origin)
        # the model last: a run that has it is finished
        save_gpt(folder.model, merged(plain), job.tokenizer, model_card(job, settings, folder, step))

    plain = _plain(policy, job, world)
    on_main(write, world)


def _plain(policy: GPT, job: Job, world: World) -> GPT | None:
    """The policy itself or, where each process has a part, on the main process a copy that has all of it."""
    if not is_sharded(policy):
        return policy
    state = gathered(parameters_at_rest(policy), world)
    if not world.is_main:
        return None
    plain = GPT.of(policy.config, {name: value for name, value in state.items() if ".lora_" not in name})
    if job.flags.lora:
        add_lora(plain, job.flags.lora, job.flags.lora_alpha)
        plain.load_state_dict(state, strict=False)
    return plain
