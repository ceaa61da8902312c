"""Pairs from a model's own answers: several are drawn to each prompt and scored, the best is chosen over the worst.

    python data/build.py onpolicy --model runs/sft --score rules:correct --samples 8 --out pairs.jsonl

    2 + 3     "5" 1.0     "6" 0.0     "5" 1.0     "" left out       chosen "5", rejected "6", margin 1.0
    7 - 1     "6" 1.0     "6" 1.0     "6" 1.0     "6" 1.0           all score the same: nothing to prefer

What a model can almost do teaches it most, and after training it answers otherwise: so pairs of its own answers are worth
more than those of another (Guo et al. 2024, arXiv 2402.04792). Best against worst of N, prompts without a gap left out, is
how Yuan et al. 2024 (arXiv 2401.10020) make pairs. Held-out prompts are never answered here, so a gain on them is one.

Every answer goes to a file beside the pairs as it comes: what was interrupted goes on, and another score costs no sampling.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data.beside import beside, check_out
from data.best_worst import HEAD, Prompt, no_pair, preferences, report
from data.candidates import asked_in
from data.carry import check_apart, check_files
from data.judge import JudgeFlags
from data.pairs import Pair, pair_of, write_rows
from data.reading import Row, stream_rows
from data.rules import PAIRS, preference_rows
from data.scores import KNOWN, How, parse_score
from data.sides import side, text_hash
from gpt.answers import Answer, prompt_ids, together
from gpt.command import UserError, check_range, flag
from gpt.files import Unwritable, locked, make_folder
from gpt.generate import AnswerFlags, generate, longest_answer, ready
from gpt.model import GPT
from gpt.streaming import stops_at
from gpt.tokenizer import Tokenizer
from gpt.weights import fingerprint, open_folder

BEGINNING = b'{"model"'  # of a file of answers
LONGEST = 64  # tokens of an answer, where --max-new does not say


@dataclass(frozen=True)
class SamplingFlags(AnswerFlags, JudgeFlags):
    """Which prompts are answered, how often, and how answers are scored."""

    pairs: str = flag(
        "", "file whose prompts are answered, with answers or without; empty: the embedded tasks", "prompts"
    )
    held_out: float = flag(
        0.1, "fraction of the prompts, the same that dpo/train.py holds out, never answered", "prompts"
    )
    prompts: int = flag(0, "how many of the others, drawn by --seed; 0: all", "prompts")
    samples: int = flag(8, "answers to each prompt", "pairs")
    score: str = flag("rules:correct", f"{KNOWN}, or weighted sums: 'rules:correct + 0.5*rules:courteous'", "pairs")
    min_gap: float = flag(
        0.0, "least difference of the best and the worst score; without any there is no pair", "pairs"
    )
    max_new: int = flag(
        None, f"tokens of the longest answer; unset: {LONGEST}, or half the context if that is less", "answers"
    )
    temperature: float = flag(1.0, "above 0 answers are drawn by chance; the higher the more they differ", "answers")
    top_p: float = flag(1.0, "draw from the likeliest tokens that together have this probability", "answers")

    def check(self) -> None:
        """Raises UserError for a flag that makes no sense."""
        check_range(self, ("samples",), 2)
        check_range(self, ("prompts", "min_gap"), 0)
        check_range(self, ("held_out",), 0, below=1)
        if self.sampling.temperature == 0:
            raise UserError("--temperature is 0, which draws the same answer each time; it must be above 0")


@dataclass(frozen=True)
class OnPolicy(SamplingFlags):
    """Draw several answers to each prompt from a model, score them, and keep the best against the worst.

    python data/build.py onpolicy --model runs/sft --score rules:correct --samples 8 --out pairs.jsonl
    """

    model: str = flag(help="model folder, run folder, or the name of a model on the Hugging Face Hub")
    out: str = flag(
        help="JSONL file of pairs to write; the answers are kept beside it, in NAME.answers.jsonl, and so - is none"
    )


def onpolicy(flags: OnPolicy) -> int:
    flags.check()
    out = check_out(flags.out)
    if flags.pairs:
        check_files(out, flags.pairs)
        check_apart(beside(out, "answers"), flags.pairs)
    prompts, left = prompts_of(flags)
    score = parse_score(flags.score, How(flags, beside(out, "replies"), flags.device))
    score([prompt.pair for prompt in prompts], [[]] * len(prompts))  # what it cannot score is said now
    model, tokenizer, _ = open_folder(flags.model)
    answers = sampled(model, tokenizer, prompts, flags, beside(out, "answers"))
    found = preferences(prompts, answers, score, flags.min_gap)
    if not found.rows:
        raise no_pair(found)
    write_rows(out, found.rows)
    print(report(answers, found, left))
    return 1 if found.failures else 0


def prompts_of(flags: SamplingFlags) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts to answer, each once, and how many were left aside: as held out, repeated, not drawn.

    Raises UserError, naming the row, for one that is no prompt, and where nothing is left.
    """
    left = {"held out": 0, "repeated": 0, "not drawn": 0}
    found: dict[str, Prompt] = {}
    for prompt in every_prompt(flags.pairs):
        if side(prompt.pair) < flags.held_out:
            left["held out"] += 1
        elif found.setdefault(prompt.pair.prompt, prompt) is not prompt:
            left["repeated"] += 1
    if not found:
        why = f"all {left['held out']:,} are held out; lower --held-out" if left["held out"] else "the file has no rows"
        raise UserError(f"{flags.pairs or 'the embedded tasks'}: no prompt is left to answer ({why})")
    drawn = list(found)
    if flags.prompts and flags.prompts < len(drawn):
        wanted = set(sorted(drawn, key=lambda text: text_hash(f"{flags.seed} {text}"))[: flags.prompts])
        drawn = [text for text in drawn if text in wanted]
        left["not drawn"] = len(found) - len(drawn)
    return [found[text] for text in drawn], left


def every_prompt(path: str) -> Iterator[Prompt]:
    """The prompts of a file of pairs, or of prompts alone, in order; of the embedded tasks for an empty path."""
    rows = stream_rows(Path(path)) if path else (Row(n, row, 0, 0) for n, row in enumerate(preference_rows(PAIRS), 1))
    for number, row, *_ in rows:
        pair = asked_in(row, number, f"{path}, row {number}")
        yield Prompt(pair, head_of(row, pair))


def head_of(row: dict, pair: Pair) -> dict:
    """The fields that make rows with other answers have this pair's prompt: its own, or in other formats the prompt as text."""
    head = {name: row[name] for name in HEAD if row.get(name) is not None}
    with suppress(UserError):
        if pair_of({**head, "chosen": ""}, 0, "").prompt == pair.prompt:
            return head
    return {"prompt": pair.prompt} | {
        name: row[name] for name in ("output", "family", "group") if row.get(name) is not None
    }


def held_out_of(path: str, held_out: float) -> list[Pair]:
    """A pair of each prompt of a file that is held out, to see on what was never answered what came of it."""
    return list({p.pair.prompt: p.pair for p in every_prompt(path) if side(p.pair) < held_out}.values())


def sampled(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    flags: SamplingFlags,
    file: Path,
    check: Callable[[], None] = lambda: None,
) -> list[list[Answer]]:
    """--samples answers to each prompt, in order: those that `file` has, the others drawn now and added to it.

    An answer depends on model, prompt, --seed and its number, not on what is answered beside it. check: called before every
    batch; raises where the run is to end. Raises UserError where the file has answers of another model or by other flags.
    """
    key = {"model": fingerprint(model), "samples": flags.samples, "seed": flags.seed, "precision": flags.precision}
    key |= flags.sampling._asdict() | {"stop": list(flags.stop)}
    model = ready(model, flags)
    key["max_new"] = max_new = longest_answer(flags.max_new, LONGEST, model.config.n_positions)
    stop = stops_at(tokenizer, flags.stop) if flags.stop else None
    ids = prompt_ids(tokenizer, [prompt.pair.prompt for prompt in prompts], model.config.n_positions - max_new)
    texts = [prompt.pair.prompt for prompt in prompts]
    make_folder(file.parent)
    try:
        with locked(file, wait=0) as appended:
            known = kept_answers(file, appended, key)
            bar = tqdm(total=len(prompts), desc="answers", unit="prompt", leave=False, delay=1)
            for some in together(ids, max_new, model.config, flags.samples):
                # a batch of which a part is missing is drawn anew as a whole: other batches would round otherwise
                if missing := [i for i in some if texts[i] not in known]:
                    check()
                    repeated = [ids[i] for i in some for _ in range(flags.samples)]
                    seeds = [seed_of(flags.seed, number, texts[i]) for i in some for number in range(flags.samples)]
                    news = generate(model, repeated, max_new, [tokenizer.end_of_text], flags.sampling, seeds, stop)
                    drawn = [Answer.of(new, tokenizer, flags.stop) for new in news]
                    of = {i: drawn[at * flags.samples : (at + 1) * flags.samples] for at, i in enumerate(some)}
                    known |= {texts[i]: of[i] for i in missing}
                    appended.write("".join(line_of(texts[i], of[i]) for i in missing).encode())
                bar.update(len(some))
            bar.close()
    except BlockingIOError:
        raise UserError(f"{file}: another process is writing there; wait for it or name another --out") from None
    except OSError as error:
        raise error if isinstance(error, Unwritable) else Unwritable.because(file, error) from None
    return [known[text] for text in texts]


def seed_of(seed: int, number: int, prompt: str) -> int:
    """Of answer `number` to a prompt: 63 bits that depend on nothing else."""
    return text_hash(f"{seed} {number} {prompt}") >> 1


def line_of(prompt: str, answers: list[Answer]) -> str:
    """A line of the file of answers."""
    return json.dumps({"prompt": prompt, "answers": [a._asdict() for a in answers]}, ensure_ascii=False) + "\n"


def kept_answers(path: Path, file: IO[bytes], key: dict) -> dict[str, list[Answer]]:
    """The answers of the file at `path`, by prompt; of an empty one none, and `key` becomes its first line.

    file: the same, opened to append. Half a line, which a process that was killed may have left, is cut off.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    strange = UserError(f"{path} is no file of answers; remove it, or name another --out")
    if lines and lines[0][: len(BEGINNING)] != BEGINNING[: len(lines[0])]:
        raise strange
    if lines and not lines[-1].endswith(b"\n"):
        file.truncate(sum(map(len, lines[:-1])))
        lines.pop()
    if not lines:
        file.write((json.dumps(key) + "\n").encode())
        return {}
    known: dict[str, list[Answer]] = {}
    try:
        before = json.loads(lines[0])
        for line in lines[1:]:
            row = json.loads(line)
            known[row["prompt"]] = [
                Answer(str(a["text"]), bool(a["stopped"]), int(a["length"])) for a in row["answers"]
            ]
        differ = [name for name in key if before.get(name) != key[name]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise strange from None
    if differ:
        raise UserError(
            f"{path} has answers by another {', '.join(differ)}; remove it, give the same as then, or name another --out"
        )
    return known
