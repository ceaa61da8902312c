"""Online DPO in rounds: the policy answers, its answers are scored, the best are preferred to the worst, it is trained.

    python dpo/online.py --init runs/sft --score rules:correct --rounds 3

    OUT/start.json              what the start does on held-out prompts
        round-01/answers.jsonl  several answers of the start to each prompt              data/onpolicy.py
                 pairs.jsonl    the best of them against the worst
                 sampled.json   figures of both
                 run/           a run of dpo/train.py on these pairs, from the start
                 round.json     what it does on held-out prompts now; the last file of a round
        round-02/...            the same with the model of round 1
        model/                  that of the last round

DPO learns from pairs that were made beforehand, by some other model mostly. After some steps the policy answers otherwise
than they do, and they say little of what it does now. So each round makes its own: iterative DPO (Xu et al. 2023, arXiv
2312.16682), online where a round is short (Guo et al. 2024, arXiv 2402.04792). Each round's reference is the policy as the
round began. The loss has the likelihood of the chosen answer in it, which Pang et al. 2024 (arXiv 2404.19733) found crucial
where right answers are told from wrong ones.
"""

import os
import shlex
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.best_worst import figures, no_pair, preferences
from data.failures import Failures
from data.llm import LLMFlags
from data.onpolicy import SamplingFlags, held_out_of, prompts_of, sampled
from data.pairs import Pair, write_rows
from data.scores import How, Score, parse_score, runs_code
from dpo.losses import parse_loss
from dpo.round_job import TrainingFailed, train
from dpo.round_table import gain, head, held_out_figures, row
from dpo.run_folder import RunFolder
from dpo.start import open_model
from dpo.train import Flags as TrainFlags
from gpt.command import UserError, check_range, flag, parse, run
from gpt.files import whole_folder
from gpt.generate import longest_answer
from gpt.joining import join
from gpt.launched import under_torchrun
from gpt.stopping import Stopped, StopSignal
from gpt.untrusted import shown
from gpt.weights import fingerprint, model_folder

# May be others on --resume: where and how patiently an LLM is asked is no part of what it says
FREE = ("out", "resume", "rounds", "dry_run", "device", "max_tokens", "tries", *(f.name for f in fields(LLMFlags)))


@dataclass(frozen=True)
class Flags(SamplingFlags):
    """Rounds of online DPO: draw answers from the policy, score them, train on the best against the worst.

    python dpo/online.py --init runs/sft --score rules:correct --rounds 3
    """

    init: str = flag(
        "", "where to start: model folder, run folder or Hub name; empty: the embedded data/tiny", "rounds"
    )
    out: str = flag("", "folder; empty: a new one under runs/", "rounds", metavar="DIR")
    rounds: int = flag(
        None,
        "how often to sample, score and train; unset: 3, on --resume as before, where more go on further",
        "rounds",
    )
    resume: bool = flag(False, "go on with --out where it was left, by the flags that it was begun with", "rounds")
    dry_run: bool = flag(False, "check flags, prompts and score, and stop", "rounds")
    loss: str = flag("dpo + 1.0*sft", "a loss of dpo/train.py", "training")
    beta: float = flag(None, "for every loss that takes one; unset: each loss's own", "training")
    lr: float = flag(None, "peak rate of each round; unset: dpo/train.py's for preferences", "training")
    batch: int = flag(32, "pairs per step", "training")
    epochs: int = flag(1, "passes over the pairs of a round", "training")
    train: str = flag("", 'more flags of dpo/train.py, as one word: --train="--lora 8 --grad-clip 0.5"', "training")


class Ground(NamedTuple):
    """What all rounds share."""

    flags: Flags
    out: RunFolder
    score: Score
    held_out: list[Pair]
    stop: StopSignal


def main(flags: Flags) -> int:
    if under_torchrun():
        raise UserError("dpo/online.py runs alone; N=4 ./launch.sh online trains in 4 processes")
    out = RunFolder(flags.out or f"runs/online-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    if flags.resume and not flags.out:
        raise UserError("--resume needs --out, the folder to continue")
    out.check_free(flags.resume)
    before = out.read_json("run.json") if (out.path / "run.json").exists() else {}
    if flags.resume and "rounds" not in before.get("flags", {}):  # a run of dpo/train.py has a run.json too
        raise UserError(f"--resume: {out.path} holds no rounds yet (no run.json); begin without --resume")
    flags = as_begun(flags, before["flags"], out) if before else flags
    flags.check()
    check_range(flags, ("rounds",), 1)
    flags = replace(flags, rounds=flags.rounds or 3)
    check_range(flags, ("seed",), 0, below=2**30)
    parse_loss(flags.loss, flags.beta)
    parse(TrainFlags, training_words(flags, 1, "", out.path))
    score = parse_score(flags.score, How(flags, out.path / "replies.jsonl", flags.device))
    held_out, asked = held_out_of(flags.pairs, flags.held_out), [prompt.pair for prompt in prompts_of(flags)[0]]
    if not held_out:
        raise UserError(
            f"no prompt is held out at --held-out {flags.held_out:g}, and so there is nothing to see a gain on"
        )
    for pairs in (held_out, asked):
        score(pairs, [[]] * len(pairs))  # what it cannot score is said now
    if flags.dry_run:
        return 0
    with join(flags.device) as world, out.held():
        stop = StopSignal(world)
        try:
            failed = play(Ground(begun(flags, before, out), out, score, held_out, stop))
        except Stopped:
            print(f"stopped by a signal; continue with the same command with --resume --out {out.path}", flush=True)
            return 143
        except TrainingFailed as training:
            return training.args[0]
    return 1 if failed else 0


def as_begun(flags: Flags, before: dict, out: RunFolder) -> Flags:
    """The flags that the folder was begun with. Raises UserError where others are given now."""
    usual = {f.name: f.default for f in fields(Flags)}
    given = {name: value for name, value in asdict(flags).items() if value != usual[name]}
    given |= {name: _place(given[name]) for name in ("init", "pairs") if name in given}
    if "score" not in given and runs_code(str(before.get("score"))):
        raise UserError(
            f"--resume: {out.path} was begun with the score {shown(before['score'])}; a folder runs no code, so say it again: "
            "--score ..."
        )
    differ = [f"--{name.replace('_', '-')}" for name in given if name not in FREE and given[name] != before.get(name)]
    if differ:
        raise UserError(f"--resume: {out.path} was begun with another {', '.join(differ)}; leave that out")
    return replace(flags, **{name: value for name, value in before.items() if name in usual and name not in given})


def begun(flags: Flags, before: dict, out: RunFolder) -> Flags:
    """The flags with paths that hold from any folder, noted in run.json as dpo/train.py notes its own, so that what takes a
    run folder takes this one too."""
    if before:
        out.write_json("run.json", before | {"flags": asdict(flags)})
        return flags
    model, _, origin = open_model(flags.init)
    longest_answer(flags.max_new, 1, model.config.n_positions)
    flags = replace(flags, init=origin if flags.init else "", pairs=flags.pairs and _place(flags.pairs))
    settings = {"init_sha256": fingerprint(model), "reference_sha256": None}
    out.write_json("run.json", {"flags": asdict(flags), "settings": settings})
    return flags


def _place(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def play(ground: Ground) -> Counter:
    """All rounds that are not whole yet, and a line of the table after each. Returns how many prompts have no score, by why.

    Raises Stopped after a signal, TrainingFailed where training did.
    """
    out, flags = ground.out, ground.flags
    if not (out.path / "start.json").exists():
        look_at_start(ground)
    first = last = out.read_json("start.json")
    failed: Counter[str] = Counter(first.get("failed"))
    print(head(first, flags.score), row("start", first), sep="\n", flush=True)
    policy = flags.init
    for number in range(1, flags.rounds + 1):
        folder = RunFolder(out.path / f"round-{number:02}")
        if not (folder.path / "round.json").exists():
            one_round(number, folder, policy, ground)
        found, policy = folder.read_json("round.json"), str(folder.path / "run")
        print(row(str(number), found, last, found["sampled"]["pairs"], found["seconds"]), flush=True)
        failed += Counter(found.get("failed")) + Counter(found["sampled"].get("failed"))
        last = found
    print(f"{'in all':7}{gain(first, last):>34}", flush=True)
    with whole_folder(out.model) as part:
        shutil.copytree(model_folder(policy), part, dirs_exist_ok=True)
    if failed:
        said = ", ".join(f"{kind}: {count:,}" for kind, count in failed.items())
        print(f"\nfailed   scores that are not known, and in no figure: {said}")
    print(f"\ndone     {out.model}; python dpo/evaluate.py --policy {out.path} compares it with the start", flush=True)
    return failed


def look_at_start(ground: Ground) -> None:
    """Write start.json. Raises UserError where the start is another than the folder was begun with."""
    model, tokenizer, _ = open_model(ground.flags.init)
    if fingerprint(model) != ground.out.read_json("run.json")["settings"]["init_sha256"]:
        raise UserError(f"the model that {ground.out.path} was begun with has changed; begin anew with another --out")
    found, failures = held_out_figures(model, tokenizer, ground.held_out, ground.score, ground.flags, ground.stop.check)
    ground.out.write_json("start.json", found)
    tell("start", failures)


def tell(what: str, failures: Failures) -> None:
    """Say which scores are not known, and why, where there are any."""
    if failures:
        print(f"failed   {what}: {failures}", flush=True)


def one_round(number: int, folder: RunFolder, policy: str, ground: Ground) -> None:
    """Sample, score, train, look; each of these is not done again where it was done."""
    began, flags, check = time.monotonic(), ground.flags, ground.stop.check
    pairs = folder.path / "pairs.jsonl"
    if not (folder.path / "sampled.json").exists():
        model, tokenizer, _ = open_model(policy)
        here = replace(flags, seed=flags.seed + 1_000_003 * number)  # other prompts are drawn, and other answers
        prompts, left = prompts_of(here)
        answers = sampled(model, tokenizer, prompts, here, folder.path / "answers.jsonl", check)
        check()
        found = preferences(prompts, answers, ground.score, flags.min_gap)
        if not found.rows:
            raise UserError(f"round {number}: {no_pair(found)}. The rounds before stand in {ground.out.path}")
        tell(f"round {number}, answers drawn", found.failures)
        write_rows(pairs, found.rows)
        folder.write_json("sampled.json", figures(answers, found) | {"left aside": left})
        del model, answers, found
    check()
    train(training_words(flags, number, policy, folder.path), folder, ground.stop)
    model, tokenizer, _ = open_model(str(folder.path / "run"))
    found, failures = held_out_figures(model, tokenizer, ground.held_out, ground.score, flags, check)
    tell(f"round {number}, held-out prompts", failures)
    found |= {"sampled": folder.read_json("sampled.json"), "seconds": time.monotonic() - began}
    folder.write_json("round.json", found)
    shutil.rmtree(folder.path / "run" / "checkpoints", ignore_errors=True)  # a whole round is not resumed


def training_words(flags: Flags, number: int, policy: str, folder: Path) -> list[str]:
    """The flags of dpo/train.py for a round. What the rounds decide stands last, and so counts."""
    given = {name: getattr(flags, name) for name in ("loss", "beta", "lr", "batch", "epochs", "device")}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    try:
        asked = shlex.split(flags.train)
    except ValueError as error:  # a quote that is not closed
        raise UserError(f"--train {flags.train!r} cannot be read: {error}") from None
    own = {"pairs": folder / "pairs.jsonl", "init": policy, "out": folder / "run", "seed": flags.seed + number}
    own |= {"reference": "", "held-out": 0, "eval-every": 0}
    return [*words, *asked, *(f"--{name}={value}" for name, value in own.items()), "--resume"]


if __name__ == "__main__":
    run(main, Flags)
