"""A training run before it begins: everything that can be wrong is found here, in one process, and nothing is written."""

import math
import os
from dataclasses import asdict

import torch

from data.pairs import summary
from dpo.losses import parse_loss
from dpo.order import steps_in_epochs
from dpo.run_folder import RunFolder
from dpo.start import EMBEDDED, open_examples, open_model
from gpt import precision
from gpt.command import UserError
from gpt.optim import default_learning_rate
from gpt.parallel import World
from gpt.weights import fingerprint

# Flags that may differ when a run is resumed; all others change what is computed.
FREE = {"out", "resume", "dry_run", "device", "eval_every", "save_every", "micro", "precision", "init", "reference", "pairs", "epochs"}


class Job:
    """The models, the pairs and the loss that the flags of dpo/train.py name. Raises UserError for what cannot be used."""

    def __init__(self, flags):
        _check_ranges(flags)
        self.flags, self.loss = flags, parse_loss(flags.loss, flags.beta)
        if flags.out:
            RunFolder(flags.out).check_free(flags.resume)
        elif flags.resume:
            raise UserError("--resume needs --out, the run folder to continue")
        self.policy, self.tokenizer = open_model(flags.init, flags.seed)
        self.reference = open_model(flags.reference)[0] if flags.reference and self.loss.needs_reference else None
        if self.reference and self.reference.config.vocab_size != self.policy.config.vocab_size:
            raise UserError(f"--reference {flags.reference} has another vocabulary than the model that is trained: "
                            f"{self.reference.config.vocab_size} ids, not {self.policy.config.vocab_size}")
        context = self.policy.config.n_positions
        if flags.max_length > context:
            raise UserError(f"--max-length is {flags.max_length}, the model's context is {context}")
        self.counted: dict[str, list[int]] = {}
        self.train, self.held_out = open_examples(flags.pairs, self.tokenizer, flags.max_length or context, flags.held_out,
                                                  not self.loss.needs_rejected, self.counted)
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if len(self.train.ids) < processes:
            raise UserError(f"{flags.pairs or EMBEDDED}: {len(self.train.ids)} pairs to train on, fewer than the {processes} processes; "
                            "start fewer (--nproc_per_node)")
        if flags.batch < processes:
            raise UserError(f"--batch is {flags.batch}, fewer pairs a step than there are processes ({processes})")
        self.steps = flags.steps or steps_in_epochs(len(self.train.ids), flags.batch, flags.epochs)
        self.lr = flags.lr if flags.lr is not None else default_learning_rate(self.policy.parameter_count, self.loss.needs_rejected)

    def settings(self, world: World, kept: dict) -> dict:
        """What this run computes, and from what: stored with it, and compared before it is resumed.

        `kept` are the settings of the run that is resumed: its micro-batch, precision and threads are taken over, since
        they change how sums are rounded.
        """
        flags = self.flags
        return {name: value for name, value in asdict(flags).items() if name not in FREE} | {
            "loss": str(self.loss), "lr": self.lr, "steps": self.steps,
            "micro": flags.micro or kept.get("micro") or self._micro(world),
            "precision": kept.get("precision") if kept and flags.precision == "auto" else
            precision.resolve(flags.precision, world.device, self.policy.parameter_count),
            "threads": kept.get("threads", torch.get_num_threads()),
            "init_sha256": fingerprint(self.policy), "reference_sha256": fingerprint(self.reference) if self.reference else None,
            "pairs_sha256": self.train.fingerprint, "held_out_sha256": self.held_out.fingerprint}

    def _micro(self, world: World) -> int:
        """As many pairs as keep the activations of a forward pass within 2 GiB, and no more than a process's share."""
        c, longest = self.policy.config, max(ids.length for ids in self.train.ids)
        answers = max(len(ids.chosen) + len(ids.rejected) for ids in self.train.ids)
        # floats a row: about 34 C a token in each layer, two (T, T) of each head, two (N, V) for the answers' logits
        floats = c.n_layer * longest * (34 * c.n_embd + 2 * c.n_head * longest) + 2 * answers * c.vocab_size
        return max(1, min(2 * 2**30 // (4 * floats), math.ceil(self.flags.batch / world.size)))

    def describe(self, settings: dict, folder: RunFolder, world: World) -> str:
        """What is about to happen, for the person who waits."""
        model, flags = self.policy, self.flags
        rate = "given" if flags.lr is not None else "by size" if self.loss.needs_rejected else "by size, sft"
        lines = {
            "model": f"{flags.init or 'data/tiny'}, {model.parameter_count:,} parameters, {model.config.n_positions} positions",
            "pairs": f"{flags.pairs or EMBEDDED}: {len(self.train.ids):,} to train on, {len(self.held_out.ids):,} held out",
            "counted": summary(self.counted),
            "loss": f"{self.loss}" + (f", reference {flags.reference or 'the start'}" if self.loss.needs_reference else ", no reference"),
            "steps": f"{self.steps} of {flags.batch} pairs: {world.size} process{'es' * (world.size > 1)}, {settings['micro']} pairs a forward pass",
            "numbers": f"lr {self.lr:g} ({rate}), {settings['precision']} on {world.device.type}, {settings['threads']} threads a process",
            "out": f"{folder.path}"}
        return "\n".join(f"{name:8}{text}" for name, text in lines.items() if text)


def _check_ranges(flags) -> None:
    at_least_one, at_least_zero = ("epochs", "batch"), ("steps", "micro", "seed", "weight_decay", "grad_clip", "eval_every",
                                                        "save_every", "max_length", "lr")
    for names, low in ((at_least_one, 1), (at_least_zero, 0)):
        for name in names:
            value = getattr(flags, name)
            if value is not None and not low <= value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} is {value}, it must be at least {low}")
    for name in ("warmup", "held_out"):
        if not 0 <= getattr(flags, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(flags, name)}, it must be at least 0 and below 1")
