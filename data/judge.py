"""An LLM as annotator: it writes answers anew, compares two, rates one.

    with open_judge("llama3.1", criterion="polite") as judge:
        judge.compare("Say hello.", "Good morning!", "What?")       1.0, 0.5 for a tie, 0.0
        judge.score("Say hello.", ["Good morning!", "What?"])       [9.0, 2.0]

A judge has a bias for the answer that stands first, or second. So it is asked twice, with the answers the other way round, and
only a verdict that both orders agree on counts (Zheng et al. 2023, section 3.4). What cannot be read is asked again, with
another seed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data.endpoint import OLLAMA, Failed, Question
from data.in_order import in_order
from data.llm import LLM
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

T = TypeVar("T")
R = TypeVar("R")

TURNED = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
DISAGREE = "the verdict changes with the order"
ANOTHER = 0.7  # the least temperature of a second try: at 0 the seed changes nothing


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

    def rewritten(self, request: str, answer: str, direction: str, other_than: str | None = None) -> str:
        """The answer, but `direction` (criterion.better, criterion.worse), and not the text `other_than`. Raises Failed."""

        def read(reply: str) -> str | None:
            found = read_rewritten(reply)
            return None if found == other_than else found

        return self._read(rewrite_question(request, answer, direction), read, "no rewritten answer in the reply")

    def verdict(self, request: str, first: str, second: str) -> str:
        """FIRST, SECOND or TIE, where both orders say so; DISAGREE where they do not. Raises Failed."""
        asked = [compare_question(request, *answers, self.criterion) for answers in ((first, second), (second, first))]
        one, other = (self._read(text, read_verdict, "no verdict in the reply") for text in asked)
        return one if one == TURNED[other] else DISAGREE

    def compare(self, request: str, first: str, second: str) -> float:
        """1.0 where the first answer is better, 0.0 where the second is, else 0.5. Raises Failed."""
        if first == second:
            return 0.5
        return {FIRST: 1.0, SECOND: 0.0}.get(self.verdict(request, first, second), 0.5)

    def score(self, request: str, answers: Sequence[str]) -> list[float]:
        """Each answer's score from 1 to 10, whole numbers. Raises Failed where one gets none."""
        texts = [rate_question(request, answer, self.criterion) for answer in answers]
        return [float(self._read(text, read_score, "no score in the reply")) for text in texts]

    def compare_all(self, cases: Sequence[tuple[str, str, str]], title: str = "judging") -> list[float | None]:
        """`compare` of each (request, first, second), several at once; None where there is no verdict."""
        return self._all(lambda case: self.compare(*case), cases, title)

    def score_all(self, cases: Sequence[tuple[str, Sequence[str]]], title: str = "judging") -> list[list[float] | None]:
        """`score` of each (request, answers), several at once; None where one of the answers gets none."""
        return self._all(lambda case: self.score(*case), cases, title)

    def _all(self, work: Callable[[T], R], cases: Sequence[T], title: str) -> list[R | None]:
        def one(case: T) -> R | None:
            try:
                return work(case)
            except Failed:
                return None

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


@contextmanager
def open_judge(
    model: str, address: str = OLLAMA, criterion: str = "helpful", kept: Path | None = None, **how
) -> Iterator[Judge]:
    """A judge by a criterion's name or file. kept: the file of its replies. how: as LLM has it (timeout, at_once ...).

    Raises UserError for what is wrong with any of these.
    """
    by = read_criterion(criterion)
    with kept_replies(LLM(model, address, **how), kept) as replies:
        yield Judge(replies, by)
