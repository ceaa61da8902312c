"""Questions to a large language model, asked with patience: what fails for a passing reason is asked again.

    llm = LLM("llama3.1")                       at http://localhost:11434/v1, which is Ollama's
    llm.reply(Question("Say hello."))           Reply(text="Hello!", finish="stop")

After 1, 2, 4 ... seconds, each shortened by chance so that threads that failed together do not come back together; or when
the server says (Retry-After), and then no other thread asks before. Where everything fails it stops, instead of asking a
million times.
"""

import math
import random
import threading
import time
from dataclasses import dataclass

from data.endpoint import OLLAMA, Endpoint, Failed, Passing, Question, Reply
from gpt.command import UserError, check_range, flag

LONGEST_BACKOFF = 60.0  # seconds
PATIENCE = 20  # requests at least that must fail in a row before none is made any more
GROUP = "the LLM asked"


@dataclass(frozen=True)
class LLMFlags:
    """Where a model is asked, and how patiently."""

    address: str = flag(OLLAMA, "of a server with OpenAI's chat protocol; its key: OPENAI_API_KEY", group=GROUP)
    at_once: int = flag(8, "questions under way at the same time", group=GROUP)
    timeout: float = flag(120.0, "seconds that a reply may take", group=GROUP)
    retries: int = flag(5, "times that a request is repeated that failed for a passing reason", group=GROUP)
    wait: float = flag(1.0, "seconds before the first of them, doubled each time", group=GROUP)

    def llm(self, model: str) -> "LLM":
        """The model of this name, as the server knows it.

        Raises UserError for flags that make no sense, and where the openai client is missing.
        """
        if not model.strip():
            raise UserError("the name of the model to ask is empty; give it as the server knows it, such as llama3.1")
        check_range(self, ("at_once",), 1, most=1000)
        check_range(self, ("retries",), 0)
        check_range(self, ("timeout",), 0.001, below=math.inf)
        check_range(self, ("wait",), 0, below=math.inf)
        return LLM(model, self.address, self.timeout, self.retries, self.wait, self.at_once)


class LLM:
    """A model at an address. As many threads may ask it as `at_once` says."""

    def __init__(
        self,
        model: str,
        address: str = OLLAMA,
        timeout: float = 120.0,
        retries: int = 5,
        wait: float = 1.0,
        at_once: int = 8,
    ):
        """timeout, wait: seconds. Raises UserError for an address that is none, and where the openai client is missing."""
        self.endpoint = Endpoint(model, address, timeout)
        self.model, self.retries, self.wait, self.at_once = model, retries, wait, at_once
        self._lock, self._not_before = threading.Lock(), 0.0  # of the clock time.monotonic
        self.has_answered = False  # some question, now or in an earlier process: so questions like these can be
        self.is_over = False  # nobody takes replies any more: threads that still wait to ask again do not
        self._in_a_row = 0  # requests that failed since one did not

    def reply(self, question: Question) -> Reply:
        """The model's reply. Raises Failed where this question gets none, UserError where no question would."""
        attempt = 0
        while True:
            while (pause := self._not_before - time.monotonic()) > 0:
                time.sleep(pause)
            if self.is_over:
                raise Failed("not asked any more")
            try:
                found = self.endpoint.reply(question)
            except Passing as error:
                self._count(error)
                if attempt == self.retries:
                    raise Failed(error.kind, error.detail) from None
                self._pause(error.wait, attempt)
                attempt += 1
            except Failed as error:
                if not self.has_answered:  # else it may well be the question: a thousand long rows may stand together
                    self._count(error)
                raise
            else:
                self._in_a_row, self.has_answered = 0, True
                return found

    def _pause(self, asked_for: float | None, attempt: int) -> None:
        """Before the next attempt. asked_for: seconds that the server wants, which then hold for all threads."""
        if asked_for:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + asked_for)
        else:
            time.sleep(min(self.wait * 2.0 ** min(attempt, 30), LONGEST_BACKOFF) * random.uniform(0.5, 1))

    def _count(self, error: Failed) -> None:
        """Raises UserError where as many requests failed in a row as all threads together make of as many questions."""
        with self._lock:
            self._in_a_row += 1
        if self._in_a_row >= max(PATIENCE, (self.retries + 1) * self.at_once):
            self.is_over = True
            raise UserError(
                f"{self.endpoint.address}, model {self.model}: the last {self._in_a_row} requests all failed, most recently "
                f"so: {error}; what was answered before is kept, and the same command goes on from there"
            ) from None
