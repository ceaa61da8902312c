"""Text as its tokens come, and where to stop.

A token may end in the middle of a character, or be the beginning of a string that ends the answer:

    ids         " caf" | C3 | A9 | " ##" | "#" | " Next"       stop "###"
    text        " caf" |    | "é"  |  " "  | (stop)            "##" waits until it is clear that no third # follows
"""

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence

from gpt.tokenizer import Tokenizer


def text_pieces(ids: Iterable[int], tokenizer: Tokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """The text of `ids`, piece by piece, up to the first of the strings `stop`; later ids are not asked for."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting = ""
    for i in ids:
        waiting += decoder.decode(tokenizer.decode_bytes([i]))
        # of several the one that ends first, so that nothing depends on where tokens end
        found = [(at + len(string), at) for string in stop if (at := waiting.find(string)) >= 0]
        if found:
            yield waiting[: min(found)[1]]
            return
        clear = len(waiting) - _begun(waiting, stop)
        if clear:
            yield waiting[:clear]
            waiting = waiting[clear:]
    yield waiting + decoder.decode(b"", final=True)


def _begun(text: str, stop: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop string."""
    return max((n for string in stop for n in range(1, len(string)) if text.endswith(string[:n])), default=0)


def stops_at(tokenizer: Tokenizer, stop: Sequence[str]) -> Callable[[list[int]], bool]:
    """For `generate`: whether the text of these ids holds one of the strings, asked after every id."""
    longest = max((len(string.encode()) for string in stop), default=0)  # bytes; no token has less than one

    def stops(ids: list[int]) -> bool:
        return any(string in tokenizer.decode(ids[-longest:]) for string in stop)

    return stops
