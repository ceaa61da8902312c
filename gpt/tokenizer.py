"""Text to token ids and back: byte-level BPE with GPT-2's split pattern, over tiktoken.

    Tokenizer.gpt2()                    GPT-2's own vocabulary, by name
    Tokenizer.load("model/")            any vocab.json + merges.txt, or tokenizer.json, as Hugging Face writes them
    train_bpe(texts, 1024).save("out/") one of our own, saved in the same two files

A text is first split into words (a word keeps the space before it), each word is turned into its UTF-8 bytes, and then
neighbouring pieces are joined, always the pair that was learned first, until no known pair is left:

    l o w e r     merges: (l, o)  (lo, w)  (e, r)
    lo w e r
    low e r
    low er

Sennrich et al. 2016 (arXiv 1508.07909); byte-level as in GPT-2 (Radford et al. 2019, section 2.2). Text is text: a
literal "<|endoftext|>" is encoded as thirteen characters, so that no user text can end an answer.
"""

import heapq
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiktoken

from gpt.command import Notice, UserError, argument, flag, run
from gpt.vocabulary import (
    END_OF_TEXT,
    merges_of,
    read_merges,
    read_tokenizer_json,
    read_vocabulary,
    write_merges,
    write_vocabulary,
)
from gpt.waiting import waiting

# GPT-2's split into words, as OpenAI published it with GPT-2: contractions, letters, digits, other signs, white space.
SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

VOCABULARIES = ("vocab.json", "tokenizer.json")

Pair = tuple[bytes, bytes]  # of neighbouring pieces


class Tokenizer:
    """A byte-level BPE vocabulary. `ids` maps each token's bytes to its id; `merges` are the pairs in learned order.

    Raises UserError where the two do not describe one vocabulary: a byte without an id, a merge whose result has none,
    or two merges with the same result (tiktoken ranks results, not pairs).
    """

    def __init__(self, ids: dict[bytes, int], merges: Sequence[Pair], end_of_text: int, where: str = "vocabulary"):
        self.ids, self.merges, self.end_of_text = ids, merges, end_of_text
        learned = [left + right for left, right in merges]
        tokens = [bytes([b]) for b in range(256)] + learned
        missing = [token for token in tokens if token not in ids]
        if missing:
            raise UserError(
                f"{where}: {len(missing)} tokens have no id, the first is {missing[0]!r}; vocabulary and merges "
                "must come from the same byte-level BPE"
            )
        if len(set(tokens)) < len(tokens):
            twice = Counter(tokens).most_common(1)[0][0]
            raise UserError(
                f"{where}: {twice!r} is the result of two merges; this is no byte-level BPE that can be read here"
            )
        # tiktoken wants one number to be both the rank of a merge and the id; a vocabulary may number them otherwise.
        self._id_of_rank = [ids[token] for token in tokens]
        self._encoding = tiktoken.Encoding(
            "bpe", pat_str=SPLIT, mergeable_ranks={t: i for i, t in enumerate(tokens)}, special_tokens={}
        )
        self._bytes_of_id = {i: token for token, i in ids.items()} | {end_of_text: END_OF_TEXT.encode()}

    @property
    def vocab_size(self) -> int:
        """The number of ids, end-of-text among them: one more than the largest id."""
        return max(self._bytes_of_id) + 1

    @classmethod
    @waiting("reading GPT-2's vocabulary")
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's vocabulary of 50,257. tiktoken fetches it once and keeps it.

        Raises UserError where it is neither kept nor to be fetched.
        """
        try:
            ranks = tiktoken.get_encoding("gpt2")._mergeable_ranks
        except Exception as error:  # requests' and urllib3's errors share no base narrower than this
            raise UserError(
                "GPT-2's vocabulary is not on this machine and could not be downloaded "
                f"({type(error).__name__}); connect once, or set TIKTOKEN_CACHE_DIR to a folder that holds "
                "tiktoken's files, or use a model folder with vocab.json and merges.txt"
            ) from None
        return cls(ranks, merges_of(ranks), len(ranks), "GPT-2's vocabulary")

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The vocabulary of a model folder, or of a run folder's model: `vocab.json` and `merges.txt`, or `tokenizer.json`.

        Raises UserError, naming file and line.
        """
        folder = Path(folder)
        if not any((folder / name).exists() for name in VOCABULARIES) and (folder / "model").is_dir():
            folder = folder / "model"
        file, whole = folder / "merges.txt", folder / "tokenizer.json"
        if (folder / "vocab.json").exists() or not whole.exists():
            ids, merges = read_vocabulary(folder / "vocab.json"), read_merges(file)
            if whole.exists():
                _check_alike(whole, ids, merges)
        else:
            file = whole
            ids, merges = read_tokenizer_json(file)
        end_of_text = ids.pop(END_OF_TEXT.encode())
        tokenizer = cls(ids, merges, end_of_text, str(file if file.suffix == ".json" else folder))
        ranks = {bytes([b]): b for b in range(256)} | {a + b: 256 + i for i, (a, b) in enumerate(merges)}
        for written, used in zip(merges, merges_of(ranks)):
            if written != used:  # tiktoken ranks results, not pairs: it would join what the file does not
                raise UserError(
                    f"{file}: {b''.join(written)!r} is made of {written}, but earlier merges make it of "
                    f"{used}; this is no byte-level BPE that can be read here"
                )
        if others := [token.decode("utf-8", "replace") for token in ids if token not in ranks]:
            shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            text = f"{file}: special tokens ({shown}) are read as plain text here, and saved as ordinary tokens"
            warnings.warn(text, Notice, stacklevel=2)
        return tokenizer

    def save(self, folder: str | Path) -> None:
        """Write `vocab.json` and `merges.txt`, which `load` and Hugging Face's GPT-2 tokenizers read."""
        write_vocabulary(Path(folder) / "vocab.json", self.ids | {END_OF_TEXT.encode(): self.end_of_text})
        write_merges(Path(folder) / "merges.txt", self.merges)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, special tokens taken as plain text. No end-of-text is added."""
        return list(map(self._id_of_rank.__getitem__, self._encoding.encode_ordinary(text)))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8, and ids of no token, become U+FFFD; end-of-text is written out."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, which may begin or end within a character."""
        return b"".join(self._bytes_of_id.get(i, "\ufffd".encode()) for i in ids)


def _check_alike(file: Path, ids: dict[bytes, int], merges: list[Pair]) -> None:
    """Raises UserError where tokenizer.json, which `transformers` reads first, is not what stands beside it."""
    theirs, their_merges = read_tokenizer_json(file)
    if their_merges != merges or any(theirs.get(token) != i for token, i in ids.items()):
        raise UserError(f"{file} and vocab.json with merges.txt beside it are two vocabularies; remove the wrong one")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` ids: 256 bytes, then merges, end-of-text last.

    Each merge joins the pair that is most frequent at that moment; a tie goes to the pair whose bytes come first, so
    that the result depends on the texts alone. Text with too few pairs gives a smaller vocabulary.
    Raises UserError for a vocab_size below 257.
    """
    import regex  # tiktoken's own dependency: the standard library's re knows no \p{L}

    if vocab_size < 257:
        raise UserError(f"a vocabulary of {vocab_size} is too small: 256 bytes and end-of-text make 257")
    counts = Counter(word for text in texts for word in regex.findall(SPLIT, _without_halves(text)))
    words = [[bytes([b]) for b in word.encode()] for word in counts]
    weights = list(counts.values())
    frequency: Counter[Pair] = Counter()  # how often each pair is there
    home: defaultdict[Pair, set[int]] = defaultdict(set)  # in which words
    for w, pieces in enumerate(words):
        for pair in zip(pieces, pieces[1:]):
            frequency[pair] += weights[w]
            home[pair].add(w)
    heap = [(-n, pair) for pair, n in frequency.items()]
    heapq.heapify(heap)
    known = {bytes([b]) for b in range(256)}
    merges: list[Pair] = []
    while heap and len(merges) < vocab_size - 257:
        n, pair = heapq.heappop(heap)
        if -n != frequency[pair]:  # an old entry: the pair has lost or won occurrences since
            continue
        if -n < 1 or pair[0] + pair[1] in known:  # "a bc" after "ab c": one token has one merge
            continue
        merges.append(pair)
        known.add(pair[0] + pair[1])
        changed: set[Pair] = set()
        for w in home.pop(pair):
            gone, come = _join(words[w], *pair)
            for old in gone:
                frequency[old] -= weights[w]
            for new in come:
                frequency[new] += weights[w]
                home[new].add(w)
            changed.update(gone, come)
        for other in changed - {pair}:
            if frequency[other] > 0:
                heapq.heappush(heap, (-frequency[other], other))
    tokens = [bytes([b]) for b in range(256)] + [left + right for left, right in merges]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, len(tokens))


def _without_halves(text: str) -> str:
    """Half a surrogate pair is no character; tiktoken reads it as U+FFFD, and so does the training."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _join(pieces: list[bytes], left: bytes, right: bytes) -> tuple[list[Pair], list[Pair]]:
    """[l, o, w, l, o] becomes [lo, w, lo], in place; the pairs that are gone by it, and those that have come."""
    gone, come = list[Pair](), list[Pair]()
    out, i = list[bytes](), 0
    while i < len(pieces):
        if pieces[i] != left or pieces[i + 1 : i + 2] != [right]:
            out.append(pieces[i])
            i += 1
            continue
        gone.append((left, right))
        if out:
            gone.append((out[-1], left))
            come.append((out[-1], left + right))
        if i + 2 < len(pieces):
            gone.append((right, pieces[i + 2]))
            come.append((left + right, pieces[i + 2]))
        out.append(left + right)
        i += 2
    pieces[:] = out
    return gone, come


@dataclass(frozen=True)
class Train:
    """Learn a vocabulary from text files and save it as vocab.json and merges.txt.

    python gpt/tokenizer.py train text.txt --vocab-size 1024 --out vocabulary
    """

    files: list = argument("UTF-8 text files", nargs="+")
    vocab_size: int = flag(1024, "ids, 256 bytes and end-of-text among them")
    out: str = flag(help="folder to write to", metavar="DIR")


def _train(flags: Train) -> None:
    texts = []
    for file in map(Path, flags.files):
        try:
            texts.append(file.read_bytes().decode())  # line ends as they are
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read as UTF-8 text: {error}") from None
    tokenizer = train_bpe(texts, flags.vocab_size)
    tokenizer.save(flags.out)
    characters, tokens = sum(map(len, texts)), sum(len(tokenizer.encode(text)) for text in texts)
    print(f"{tokenizer.vocab_size} ids in {flags.out}; {characters:,} characters are {tokens:,} tokens")


if __name__ == "__main__":
    run({"train": (_train, Train)})
