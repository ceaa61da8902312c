"""An LLM as annotator: it writes answers anew, compares two, rates one.

    with open_judge("llama3.1", JudgeFlags(criterion="polite")) as judge:
        judge.compare("Say hello.", "Good morning!", "What?")       1.0, 0.5 for a tie, 0.0
        judge.score("Say hello.", ["Good morning!", "What?"])       [9.0, 2.0]

A judge has a bias for the answer that stands first, or second. So it is asked twice, with the answers the other way round, and
only a verdict that both orders agree on counts (Zheng et al. 2023, section 3.4). What cannot be read is asked again, with
another seed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data.endpoint import Failed, Question
from data.in_order import in_order
from data.llm import GROUP, LLM, LLMFlags
from data.questions import (
    FIRST,
    SECOND,
    TIE,
    Criterion,
    compare_question,
    rate_question,
    read_criterion,
    read_rewritten,
    read_score,
    read_verdict,
    rewrite_question,
)
from data.replies import Replies, kept_replies
from gpt.command import UserError, check_range, flag

T = TypeVar("T")
R = TypeVar("R")

TURNED = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
DISAGREE = "the verdict changes with the order"
ANOTHER = 0.7  # the least temperature of a second try: at 0 the seed changes nothing


@dataclass(frozen=True)
class JudgeFlags(LLMFlags):
    """Where an LLM is asked, how patiently, and by what it judges."""

    criterion: str = flag("helpful", "what makes an answer better: a name of data/criteria, or a text file", GROUP)
    max_tokens: int = flag(1024, "of a reply; 0: as many as the server allows", GROUP)
    tries: int = flag(3, "times that a question is asked until the reply can be read", GROUP)

    def llm(self, model: str) -> LLM:
        """The model of this name. Raises UserError for whatever is wrong with these flags."""
        check_range(self, ("tries",), 1, most=100)
        check_range(self, ("max_tokens",), 0)
        read_criterion(self.criterion)
        return super().llm(model)

    def check_unused(self, why: str) -> None:
        """Raises UserError where one of these flags is given, though no LLM is asked. why: what names none."""
        given = [f.name for f in fields(JudgeFlags) if getattr(self, f.name) != f.default]
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(f"{names}: of an LLM that is asked, and {why}; name its model, or leave this out")


class Judge:
    """Asks a model by a criterion. Many threads may use it."""

    def __init__(
        self,
        replies: Replies,
        criterion: Criterion,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = 1024,
        tries: int = 3,
    ):
        """tries: how often a question is asked, each time with the next seed, until its reply can be read."""
        self.replies, self.criterion, self.tries = replies, criterion, tries
        self.first_try = Question("", temperature, seed, max_tokens)

    def rewritten(self, prompt: str, answer: str, direction: str, other_than: str | None = None) -> str:
        """The answer, but `direction` (criterion.better, criterion.worse), and not the text `other_than`. Raises Failed."""

        def read(reply: str) -> str | None:
            found = read_rewritten(reply)
            return None if found == other_than else found

        return self._read(rewrite_question(prompt, answer, direction), read, "no rewritten answer in the reply")

    def verdict(self, prompt: str, first: str, second: str) -> str:
        """FIRST, SECOND or TIE, where both orders say so; DISAGREE where they do not. Raises Failed."""
        asked = [compare_question(prompt, *answers, self.criterion) for answers in ((first, second), (second, first))]
        one, other = (self._read(text, read_verdict, "no verdict in the reply") for text in asked)
        return one if one == TURNED[other] else DISAGREE

    def compare(self, prompt: str, first: str, second: str) -> float:
        """1.0 where the first answer is better, 0.0 where the second is, else 0.5. Raises Failed."""
        if first == second:
            return 0.5
        return {FIRST: 1.0, SECOND: 0.0}.get(self.verdict(prompt, first, second), 0.5)

    def score(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """Each answer's score from 1 to 10, whole numbers. Raises Failed where one gets none."""
        texts = [rate_question(prompt, answer, self.criterion) for answer in answers]
        return [float(self._read(text, read_score, "no score in the reply")) for text in texts]

    def compare_all(self, cases: Sequence[tuple[str, str, str]], title: str = "judging") -> list[float | Failed]:
        """`compare` of each (prompt, first, second), several at once; why there is no verdict where there is none."""
        return self._all(lambda case: self.compare(*case), cases, title)

    def score_all(
        self, cases: Sequence[tuple[str, Sequence[str]]], title: str = "judging"
    ) -> list[list[float] | Failed]:
        """`score` of each (prompt, answers), several at once; why one of the answers gets none where one does."""
        return self._all(lambda case: self.score(*case), cases, title)

    def _all(self, work: Callable[[T], R], cases: Sequence[T], title: str) -> list[R | Failed]:
        def one(case: T) -> R | Failed:
            try:
                return work(case)
            except Failed as failed:
                return failed

        found = in_order(one, cases, self.replies.llm.at_once)
        return list(tqdm(found, title, total=len(cases), unit="prompt", leave=False, delay=1))

    def _read(self, text: str, read: Callable[[str], R | None], nothing: str) -> R:
        """What `read` finds in the reply. Raises Failed, of the kind `nothing`, after as many tries as there may be."""
        _, temperature, seed, most = self.first_try
        for number in range(self.tries):
            warmth = max(temperature, ANOTHER) if number else temperature
            reply = self.replies.ask(Question(text, warmth, seed + number, most))
            if reply.text and reply.finish != "length" and (found := read(reply.text)) is not None:
                return found
        if not reply.text:
            raise Failed("the model refused, or said nothing")
        if reply.finish == "length":
            raise Failed("the reply was cut off", "allow more with --max-tokens")
        raise Failed(nothing)


def check_judge(model: str, flags: JudgeFlags, kept: Path | None = None) -> None:
    """Raises UserError for what is wrong with these flags, and where the model does not reply to a small question.

    So it is said before hours of other work. Where replies are `kept` already, nothing is asked: it was found to reply, and
    what was done then may be shown again without it.
    """
    llm = flags.llm(model)
    if kept and kept.exists() and kept.stat().st_size:
        return
    try:
        llm.reply(Question("Say hello.", max_tokens=flags.max_tokens))
    except Failed as failed:
        raise UserError(
            f"{llm.endpoint.address}, model {model}: it does not reply even to 'Say hello.' ({failed})"
        ) from None


@contextmanager
def open_judge(
    model: str,
    flags: JudgeFlags = JudgeFlags(),
    kept: Path | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Judge]:
    """A judge, whose replies are kept in the file `kept`. Raises UserError for what is wrong with any of these."""
    with kept_replies(flags.llm(model), kept) as replies:
        yield Judge(replies, read_criterion(flags.criterion), temperature, seed, flags.max_tokens, flags.tries)
