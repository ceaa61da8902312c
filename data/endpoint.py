"""One request to an address that speaks OpenAI's chat protocol: Ollama, vLLM, llama.cpp, OpenAI and others.

    endpoint = Endpoint("llama3.1", OLLAMA, timeout=120)
    endpoint.reply(Question("Say hello."))      Reply(text="Hello!", finish="stop")

What goes wrong is of three kinds:

    429, 5xx, silence, a connection that breaks, a reply that is none    Passing: one may ask again (data/llm.py does)
    400 and other refusals of what was asked                             Failed: this question gets no reply
    401, 403, 404, nobody at the address                                 UserError: no question would get one

The key is that of the variable OPENAI_API_KEY, and stands in no message and no file.
"""

import json
import math
import os
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gpt.command import UserError, pip_install
from gpt.untrusted import printing

OLLAMA = "http://localhost:11434/v1"
BODY = 2**24  # the most bytes of a reply
LONGEST_WAIT = 600.0  # seconds that a server may have us wait
SECRET = 16  # letters of a key from which on it is one, and no word that may stand in a text
LETTERS = 200  # of what a server says, in a message
AGAIN = (408, 409, 425, 429)  # of the statuses below 500 those that pass
HERE = ("localhost", "127.0.0.1", "::1")


class Question(NamedTuple):
    """One message, and how the reply to it is sampled. Two equal questions to one model are asked once (data/replies.py)."""

    text: str
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 1024  # of the reply; 0: as the server has it


class Reply(NamedTuple):
    text: str | None  # None: the model refused, or said nothing
    finish: str  # why it ended: "stop", "length" (cut off after max_tokens), or whatever else the server says


class Failed(Exception):
    """A question that got no reply, or none that could be read. kind: what it is counted as, such as "HTTP 400"."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail


class Passing(Failed):
    """What may go away if one asks again, not before `wait` seconds where the server says so."""

    def __init__(self, kind: str, detail: str = "", wait: float | None = None):
        super().__init__(kind, detail)
        self.wait = wait


class Endpoint:
    """A model at an address. Many threads may ask it."""

    def __init__(self, model: str, address: str, timeout: float):
        """timeout: seconds that a reply may take, to its last byte.

        Raises UserError for an address that is none, and where the openai client is missing.
        """
        try:
            import openai
        except ImportError:
            raise UserError(f"an LLM is asked through the openai client: {pip_install('openai')}") from None
        self.model, self.address, self.timeout = model, check_address(address), timeout
        self.has_replied = False
        self._openai, self._key = openai, os.environ.get("OPENAI_API_KEY", "").strip()
        if not (self._key.isascii() and self._key.isprintable()):  # the HTTP library would refuse it, and show it
            raise UserError("OPENAI_API_KEY holds a character that no key has; set it anew")
        alone = urlsplit(address).hostname in HERE  # a proxy would look for the server on its own machine
        self._client = openai.OpenAI(
            base_url=address,
            api_key=self._key or "none",  # the client wants one, most local servers do not
            timeout=timeout,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False) if alone else None,
        )

    def reply(self, question: Question) -> Reply:
        """The model's reply. Raises Passing, Failed or UserError, see above."""
        openai = self._openai
        try:
            body = self._body(question)
            # a short one is a word that a local server wants for a key; a reply may well have it
            found = _reply(self._clean(body) if len(self._key) >= SECRET else body)
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APITimeoutError:
            raise self._late() from None
        except openai.APIConnectionError as error:
            if type(error.__cause__).__name__ == "ConnectError" and not self.has_replied:
                raise UserError(
                    f"nothing answers at {self.address}: start the server (Ollama's: ollama serve), or name the address "
                    "of another"
                ) from None
            raise Passing("the connection failed") from None
        self.has_replied = True
        return found

    def _body(self, question: Question) -> bytes:
        """What the server sends, whole, within the time and with at most BODY bytes."""
        deadline, found = time.monotonic() + self.timeout, bytearray()
        limit: dict[str, Any] = {"max_tokens": question.max_tokens} if question.max_tokens else {}
        asked = self._client.chat.completions.with_streaming_response.create(
            model=self.model,
            messages=[{"role": "user", "content": question.text}],
            temperature=question.temperature,
            seed=question.seed,
            **limit,
        )
        with asked as response:
            pieces = response.iter_bytes()
            while True:
                try:
                    piece = next(pieces, b"")
                except Exception as error:  # of the HTTP library, which is not the same in every version of the client
                    kind = type(error).__name__
                    raise (self._late() if "Timeout" in kind else Passing("the reply broke off", kind)) from None
                if not piece:
                    return bytes(found)
                found += piece
                if len(found) > BODY:
                    raise Passing("the reply is too large", f"more than {BODY >> 20} MiB")
                if time.monotonic() > deadline:
                    raise self._late()

    def _late(self) -> Passing:
        return Passing(f"no reply within {self.timeout:g} s")

    def _refused(self, error) -> Exception:
        """What a status other than 200 means."""
        status, body = error.status_code, error.body
        said = body.get("message") or body.get("error") or body.get("detail") if isinstance(body, dict) else body
        said = printing(self._clean(str(said or "no reason given").encode(errors="replace")).decode().strip(), LETTERS)
        where = f"{self.address}, model {self.model}"
        if status in (401, 403):
            what = "does not accept the key in" if self._key else "wants a key, to be set in"
            return UserError(f"{where}: the server {what} OPENAI_API_KEY (HTTP {status}: {said})")
        if status == 404:
            return UserError(
                f"{where}: not found there (HTTP 404: {said}); see the name (Ollama's: ollama list, ollama pull), and the "
                "address, which most often ends in /v1"
            )
        if status not in AGAIN and status < 500:
            return Failed(f"HTTP {status}", said)
        wait = retry_after(error.response.headers.get("retry-after"))
        if wait is not None and wait > LONGEST_WAIT:
            return UserError(
                f"{where}: the server asks to wait {wait:,.0f} s (HTTP {status}: {said}); give the same command again then, "
                "and it goes on from here"
            )
        return Passing(f"HTTP {status}", said, wait)

    def _clean(self, text: bytes) -> bytes:
        """Without the key, which a server may repeat."""
        return text.replace(self._key.encode(), b"***") if self._key else text


def check_address(address: str) -> str:
    """The address. Raises UserError, not repeating it, where it is none or has a user, a password or a query in it."""
    with suppress(ValueError):
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1):
            if parts.username is None and parts.password is None and not parts.query:
                return printing(address.rstrip("/"), LETTERS)
    raise UserError(
        f"an address has the form {OLLAMA}, without a user, a password or a query; a key comes from OPENAI_API_KEY alone"
    )


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3), a number or a date; None where it says neither."""
    with suppress(TypeError, ValueError):
        seconds = float(value or "")
        return max(0.0, seconds) if not math.isnan(seconds) else None
    with suppress(TypeError, ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value or "").timestamp() - time.time())
    return None


def _reply(body: bytes) -> Reply:
    """Of a chat completion. Raises Passing for anything else."""
    with suppress(ValueError, RecursionError, LookupError, TypeError, AttributeError):
        choice = json.loads(body)["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        if text is None or isinstance(text, str) and text.encode() is not None:  # half a surrogate pair is no text
            return Reply(text, finish if isinstance(finish, str) else "")
    raise Passing("no chat completion came", printing(body[:LETTERS].decode(errors="replace"), 60))
