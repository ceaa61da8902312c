"""dpo/chat.py as a person uses it: lines piped in, a terminal, and the answers that gpt/generate.py gives."""

import os
import pty
import select
import subprocess
import time
from io import StringIO

import pytest

from dpo import chat
from dpo.start import TINY, open_model
from gpt.command import UserError, parse
from gpt.generate import generate
from tests.processes import ENVIRONMENT, ROOT, command

CHAT = ROOT / "dpo" / "chat.py"
GREEDY = ["--temperature", 0, "--max-new", 24]
TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}\n\n### Response:\n"
)
# what a person types: what stands between the template's first heading and its last
TYPED = {
    "What is the plural form? | wolf": "What is the plural form?\n\n### Input:\nwolf",
    "Say hello.": "Say hello.",
    "  Sort the letters.   |  dcba ": "Sort the letters.\n\n### Input:\ndcba",
    "Spell out both numbers. | 6 | 10": "Spell out both numbers.\n\n### Input:\n6 | 10",
    "What is 2|3?": "What is 2|3?",
}


def greedy(name, prompt: str, max_new: int = 24) -> str:
    model, tokenizer, _ = open_model(str(name))
    (ids,) = generate(model, [tokenizer.encode(prompt)], max_new, [tokenizer.end_of_text])
    return tokenizer.decode([i for i in ids if i != tokenizer.end_of_text])


def chatting(lines: bytes, *flags, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, with `lines` on its standard input."""
    words, environment = command(CHAT, *flags), ENVIRONMENT | environment
    return subprocess.run(words, env=environment, input=lines, capture_output=True, timeout=120)


@pytest.fixture
def said(capsys, monkeypatch):
    """A function that chats in this process: what it printed for the lines on standard input."""

    def run(lines: str, *flags) -> str:
        monkeypatch.setattr("sys.stdin", StringIO(lines))
        chat.main(parse(chat.Flags, [str(word) for word in flags]))
        out, errors = capsys.readouterr()
        assert errors == ""
        return out

    return run


def test_each_line_of_standard_input_gets_the_greedy_answer_to_its_prompt_and_blank_ones_none():
    done = chatting("\n".join(["", *TYPED, "   ", "\t"]).encode(), TINY, *GREEDY)
    answers = [greedy(TINY, TEMPLATE.format(inside)) for inside in TYPED.values()]
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == "".join(answer + "\n" for answer in answers)
    assert len(set(answers)) > 2 and all(answers)  # not one answer to everything


def test_two_models_answer_one_after_the_other_each_under_its_name(said):
    lines = list(TYPED)[:2]
    found = said("\n".join(lines), TINY, "--compare", "random:tiny", *GREEDY)
    expected = ""
    for line in lines:
        for name in (str(TINY), "random:tiny"):
            width = max(len(str(TINY)), len("random:tiny"))
            expected += f"{name:{width}}  {greedy(name, TEMPLATE.format(TYPED[line]))}\n"
    assert found == expected


def test_a_raw_line_is_the_whole_prompt_with_its_blanks(said):
    line = " once | upon a time "
    assert said(line + "\n", TINY, "--raw", *GREEDY) == greedy(TINY, line) + "\n"
    assert greedy(TINY, line) != greedy(TINY, line.strip())


def test_every_question_stands_alone(said):
    first, second = list(TYPED)[:2]
    alone = said(second, TINY, *GREEDY)
    assert said(f"{first}\n{second}\n{second}", TINY, *GREEDY).splitlines()[1:] == 2 * alone.splitlines()


def test_the_seed_decides_what_chance_gives_and_a_stop_string_ends_the_answer(said):
    line, hot = "Say hello.", ["--temperature", 1.5, "--max-new", 24]
    drawn = {seed: said(line, TINY, *hot, "--seed", seed) for seed in range(4)}
    assert len(set(drawn.values())) > 1 and said(line, TINY, *hot, "--seed", 3) == drawn[3]
    whole = greedy(TINY, TEMPLATE.format("Say hello."))
    stop = whole[len(whole) // 2 :][:3]
    assert said(line, TINY, *GREEDY, "--stop", stop) == whole[: whole.index(stop)] + "\n"


def test_no_lines_are_no_answers(said):
    assert said("", TINY) == "" == said("\n \n", TINY)


def test_at_a_terminal_it_asks_and_ctrl_d_ends_it():
    terminal, other_end = pty.openpty()
    words = command(CHAT, TINY, *GREEDY)
    process = subprocess.Popen(
        words, env=ENVIRONMENT | {"TERM": "dumb"}, stdin=other_end, stdout=other_end, stderr=subprocess.PIPE, text=True
    )
    os.close(other_end)

    def shown(until: str) -> str:
        """What the terminal shows up to and with `until`."""
        text, end = "", time.monotonic() + 60
        while not text.endswith(until):
            assert process.poll() is None and time.monotonic() < end, text
            if select.select([terminal], [], [], 0.1)[0]:
                text += os.read(terminal, 1).decode()
        return text

    try:
        assert shown("> ") == "> "
        line, inside = next(iter(TYPED.items()))
        os.write(terminal, f"{line}\n".encode())
        answer = greedy(TINY, TEMPLATE.format(inside))
        assert shown("> ").replace("\r", "") == f"{line}\n{answer}\n> "
        os.write(terminal, b"\n")
        assert shown("> ").replace("\r", "") == "\n> "
        os.write(terminal, b"\x04")
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and "Ctrl+D ends" in errors and errors.count("\n") == 1
    finally:
        process.kill()
        os.close(terminal)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["nowhere/at/all"], "nowhere/at/all does not exist"),
        ([TINY, "--compare", "nowhere/at/all"], "nowhere/at/all does not exist"),
        ([TINY, "--max-new", 300], "--max-new is 300, but the model's context is 256"),
        ([TINY, "--max-new", 256], "--max-new is 256"),
        ([TINY, "--max-new", 0], "--max-new is 0"),
        ([TINY, "--temperature", -1], "--temperature is -1"),
        ([], "model"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_asked(said, flags, expected):
    with pytest.raises(UserError) as caught:
        said("Say hello.\n", *flags)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", [["nowhere/at/all"], [TINY, "--max-new", 300]])
def test_the_command_prints_the_line_to_stderr_and_leaves_with_2(flags):
    done = chatting(b"Say hello.\n", *flags)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


def test_a_line_that_is_no_utf_8_is_no_traceback():
    done = chatting("Grüße\nSay hello.\n".encode("latin-1"), TINY, *GREEDY, PYTHONIOENCODING="utf-8:strict")
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") <= 1 and done.returncode in (0, 2)
