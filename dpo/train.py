"""Train a GPT on preferences (DPO and its kin) or on answers (SFT): one script, one loop.

    torchrun --nproc_per_node=2 dpo/train.py                          DPO of the embedded model on the embedded pairs
    python dpo/train.py --pairs FILE --init MODEL --loss dpo          the same thing in one process
    torchrun --local-addr 127.0.0.1 --nproc_per_node=2 dpo/train.py   where the host name resolves to nothing

What happens in a step stands in dpo/step.py; what is checked before, in dpo/job.py.
"""

import os
import platform
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt.ending import end_with_launcher

end_with_launcher()  # before the seconds in which torch is imported: a launcher may die then too

import torch
from tqdm import tqdm

from dpo.finish import finish
from dpo.forward import Way
from dpo.job import Job
from dpo.loggers import NAMES
from dpo.losses.family import table
from dpo.order import Limit, steps_of
from dpo.resume import LeftOff, SaveClock, new_folder, resumes
from dpo.run_folder import SHOWN, RunFolder, figure
from dpo.step import Plan, add_gradients, check_unmoved, held_out_metrics
from dpo.watch import Done, Watch
from gpt import precision
from gpt.checkpoint import load_checkpoint, save_checkpoint
from gpt.command import flag, run
from gpt.help import FIRST
from gpt.joining import join, must_agree
from gpt.launched import kept_over_restarts
from gpt.memory import keep_freed_memory
from gpt.optim import adamw, learning_rate, update
from gpt.parallel import World, on_main, replicate, say
from gpt.stopping import Stopped, StopSignal


@dataclass(frozen=True)
class Flags:
    """Train a GPT on preference pairs, or with --loss sft on answers.

    Give torchrun --local-addr 127.0.0.1 where it hangs because the host name resolves to nothing.

    torchrun --nproc_per_node=2 dpo/train.py --pairs pairs.jsonl --init gpt2 --loss "dpo + 0.2*sft"
    """

    pairs: str = flag("", "JSON or JSONL file of pairs; empty: the embedded set")
    init: str = flag(
        "",
        "where to start: model folder, run folder, name on the Hugging Face Hub (gpt2, OWNER/NAME@REVISION) or random:SIZE; "
        "empty: the embedded data/tiny",
    )
    loss: str = flag("dpo", "a loss, or a sum such as 'dpo(beta=0.2) + 0.5*sft'; list: print all of them")
    out: str = flag("", "run folder; empty: a new one under runs/", FIRST, metavar="DIR")
    beta: float = flag(
        None, "for every loss that takes one; unset: each loss's own. Higher stays closer to the reference", "loss"
    )
    reference: str = flag(
        "", "model, as in --init, that log-ratios are taken against; empty: what --init names", "loss"
    )
    reference_every: int = flag(
        0, "steps after which the reference moves towards the policy (TR-DPO); 0: it never does", "loss"
    )
    reference_mix: float = flag(None, "how much of the way it moves, 1 being all; unset: 0.6", "loss")
    epochs: int = flag(1, "passes over the pairs", "steps")
    steps: int = flag(0, "optimizer steps; 0: as many as the epochs give", "steps")
    batch: int = flag(64, "pairs per step, over all processes", "steps")
    micro: int = flag(0, "pairs per forward pass and process; 0: what fits half of the free memory", "steps")
    seed: int = flag(0, "of the order of pairs and of random weights", "steps")
    lr: float = flag(
        None,
        "peak rate; unset: 1e-6 at 124M parameters, in inverse proportion to size, 5e-7 to 1e-4; sft 20 times that, lora 10",
        "optimizer",
    )
    warmup: float = flag(
        0.1, "fraction of the steps over which the rate rises; then half a cosine down to 0", "optimizer"
    )
    lora: int = flag(0, "rank of adapters to train in place of the model's own weights; 0: none", "model")
    lora_alpha: float = flag(None, "strength of the adapters, divided by their rank; unset: 2 x rank", "model")
    dropout: float = flag(0.0, "of embeddings, attention and residuals; best left 0 for preference losses", "model")
    weight_decay: float = flag(0.01, "AdamW's, on matrices and embeddings", "optimizer")
    grad_clip: float = flag(1.0, "largest norm of a step's gradient; 0: no limit", "optimizer")
    max_length: int = flag(
        0, "tokens of prompt and longer answer; a longer prompt is cut from the left; 0: the model's context", "data"
    )
    held_out: float = flag(0.1, "fraction of the prompts, chosen by hash, that is never trained on", "data")
    eval_every: int = flag(50, "steps between evaluations on held-out pairs; 0: at start and end only", "running")
    log_every: int = flag(
        0,
        "steps between looks at what a device computed; 0: 1 on cpu, 10 on others, which compute on meanwhile",
        "running",
    )
    log_to: list = flag((), "where metrics go beside metrics.jsonl; pip install it first", "running", NAMES)
    save_every: int = flag(0, "steps between checkpoints; 0: none but those of --save-minutes and the last", "running")
    save_minutes: float = flag(10.0, "minutes after which one is saved in any case; 0: none", "running")
    keep: int = flag(2, "newest checkpoints to keep; the one best on held-out pairs is kept beside them", "running")
    export: str = flag(
        "last", "which weights model/ gets: the last, or the best on held-out pairs", "running", ("last", "best")
    )
    resume: bool = flag(False, "continue the run in --out from its newest checkpoint", "running")
    shard: bool = flag(False, "cut weights, gradients and moments into parts, one a process (FSDP2)", "many processes")
    timeout: float = flag(600.0, "seconds that a process waits for another before it gives up", "many processes")
    debug: bool = flag(False, "verbose logs of torch's communication", "many processes")
    device: str = flag("auto", "auto is cuda where there is one, else cpu", "running", ("auto", "cpu", "cuda", "mps"))
    precision: str = flag(
        "auto",
        "of matrix products; auto is bf16 where it is native and the model large enough",
        "running",
        precision.CHOICES,
    )
    dry_run: bool = flag(False, "check flags, model and data, and stop", "running")


def main(flags: Flags) -> int:
    if flags.loss == "list":
        print(table())
        return 0
    if flags.debug:
        os.environ |= {"TORCH_DISTRIBUTED_DEBUG": "DETAIL", "NCCL_DEBUG": "INFO"}
    keep_freed_memory()
    job = Job(flags)
    if flags.dry_run:
        return 0
    with join(flags.device, flags.timeout) as world:
        must_agree({name: value for name, value in asdict(flags).items() if name not in OWN}, world)
        folder = RunFolder(on_main(lambda: flags.out or kept_over_restarts("out", lambda: new_folder(job)), world))
        try:
            with ExitStack() as stack:
                on_main(lambda: stack.enter_context(folder.held()) and None, world)
                return train(job, folder, world)
        except Stopped as stopped:
            say(str(stopped), world)
            return 143


# Of each machine: what lies there is compared by hash; one that comes back is given --resume
OWN = ("out", "pairs", "init", "reference", "resume")


def train(job: Job, folder: RunFolder, world: World) -> int:
    """The run. Returns the exit code. Raises Stopped after a signal, with the last finished step saved."""
    flags, loss, steps = job.flags, job.loss, job.steps
    left = LeftOff.of(folder, world) if resumes(flags.resume, world) else LeftOff()
    settings = job.settings(world, left.settings)
    must_agree(settings, world)
    left.check_same(settings, asdict(Flags()), folder)
    done = left.step
    if done == steps and on_main(lambda: str((folder.model / "config.json").exists()), world) == "True":
        say(f"{folder.path} is finished: {steps} steps", world)
        return 0
    torch.set_num_threads(settings["threads"])
    stop = StopSignal(world)
    policy, reference = job.models(world)
    say(job.describe(settings, folder, world), world)
    plan = Plan(loss, Way(Limit(settings["micro"], settings["tokens"]), settings["precision"], world, stop.check))
    train_reference, held_out_reference = job.references(policy, reference, settings, plan.way)
    if loss.needs_reference:
        say(left.told_of(train_reference, settings), world)

    optimizer = adamw(policy, flags.weight_decay)
    if left.path:
        load_checkpoint(left.path, policy, optimizer, world, train_reference.model)

    def begin() -> None:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        record: dict = {"flags": job.record(), "settings": settings, "processes": world.size, "versions": versions}
        record["reference"] = {"pairs": train_reference.computed, "seconds": round(train_reference.seconds, 3)}
        folder.write_json("run.json", record)
        folder.begin_metrics(done if left.path else -1, flags.log_to, record["flags"])

    on_main(begin, world)
    model = replicate(policy, world, *EXAMPLE)

    def evaluate(step: int) -> None:
        if job.held_out.ids:
            line = held_out_metrics(policy, job.held_out, held_out_reference, plan)
            if world.is_main:
                folder.log({"step": step, "split": "held-out", **line})

    def due(step: int, every: int) -> bool:
        return step == steps or every > 0 and step % every == 0

    def save(step: int) -> None:
        state, more = {"step": step, "settings": settings}, (train_reference.model, flags.keep, folder.held_out_losses)
        save_checkpoint(folder.checkpoints, policy, optimizer, state, world, *more)

    def look() -> None:
        """Log the steps since the last look."""
        for line in watch.lines():
            if world.is_main:
                folder.log(line)
                bar.set_postfix({short: figure(line[name], 3) for short, name in BAR.items() if name in line})

    watch = Watch(policy, job.train, train_reference, plan, flags.pairs)
    clock = SaveClock(60 * flags.save_minutes, world)
    log_every = flags.log_every or (1 if world.device.type == "cpu" else 10)
    bar = tqdm(
        steps_of(done + 1, steps, len(job.train.ids), flags.batch, flags.seed),
        initial=done,
        total=steps,
        desc=loss.terms[0].name,
        unit="step",
        disable=not world.is_main,
    )
    try:
        if (not done or due(done, flags.eval_every)) and on_main(folder.last_split, world) != "held-out":
            evaluate(done)  # also where the run was cut off between its checkpoint and its evaluation
        watch.restart()
        clock.restart()
        for step, indices in bar:
            torch.manual_seed((flags.seed * 1_000_003 + step) * 4096 + world.rank)  # for dropout, and nothing else
            model.train()
            totals, log_ratio = add_gradients(model, job.train, train_reference, indices, plan)
            if step == 1 and loss.needs_reference and not (flags.reference or flags.dropout) and totals.sound:
                check_unmoved(float(log_ratio), settings["precision"])
            rate = learning_rate(step, steps, job.lr, flags.warmup)
            norm = update(optimizer, rate, flags.grad_clip, totals.sound)
            train_reference.follow(policy, step)
            watch.waiting.append(Done(step, indices, totals, norm, rate))
            done = step
            if not (due(step, log_every) or due(step, flags.save_every) or due(step, flags.eval_every)):
                continue
            look()
            best = flags.export == "best" and due(step, flags.eval_every)  # to be exported, it must have been saved
            if due(step, flags.save_every) or best or clock.rings():
                save(step)
                clock.restart()
            if due(step, flags.eval_every):
                evaluate(step)
            watch.restart()
    except Stopped:  # between two forward passes: what the unfinished step added up is dropped
        look()
        bar.close()
        save(done)
        again = f"continue with the same command with --resume --out {folder.path}"
        raise Stopped(f"stopped by a signal after step {done}; {again}") from None
    bar.close()
    stop.stopped = True  # nothing is left to be stopped
    finish(job, settings, folder, policy, held_out_reference, plan)
    return 0


EXAMPLE = (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long))  # tokens and targets of any model
BAR = SHOWN | {"pairs/s": "pairs_per_second"}

if __name__ == "__main__":
    run(main, Flags)
