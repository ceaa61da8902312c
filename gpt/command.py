"""What every command here shares: flags from a dataclass, errors in one line, exit code 2.

A command is a frozen dataclass whose fields are its flags, and a function of it:

    @dataclass(frozen=True)
    class Flags:
        \"\"\"What the command does, in one line.\"\"\"
        file: str = argument("what to read")
        batch: int = flag(64, "pairs per optimizer step")

    run(main, Flags)                                    # FILE --batch 32 becomes Flags(file="FILE", batch=32)
    run({"build": (build, Build), "check": (check, Check)})     # two commands: the first word chooses
"""

import atexit
import math
import os
import shlex
import sys
import warnings
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, _ArgumentGroup
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from inspect import cleandoc
from io import TextIOWrapper
from typing import Any, TextIO

from gpt.ending import STOPPED, EndedBefore, close, close_unforeseen, end_again, end_with_launcher, is_everywhere
from gpt.help import FIRST, ORDER, OWN, WORDS, Formatter, description, shown_default, takes, title
from gpt.launched import under_torchrun


class Notice(UserWarning):
    """Something the user should know, each time that it happens. A warning is one line, as an error is."""


class UserError(ValueError):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do."""


def flag(
    default=MISSING, help: str = "", group: str = OWN, choices: tuple | None = None, metavar: str | None = None
) -> Any:
    """A dataclass field that `parse` turns into a flag. Without a default the flag must be given.

    metavar: what --help calls its value; unset: as gpt/help.py has it.
    """
    metadata = {"help": help, "group": group, "how": {"choices": choices, "metavar": metavar}}
    return field(default=default, metadata=metadata, kw_only=True)


def argument(help: str, nargs: str | None = None) -> Any:
    """A dataclass field that `parse` reads from the words without a flag; with nargs="+" from one or more of them."""
    return field(metadata={"help": help, "group": WORDS, "how": {"nargs": nargs}, "positional": True})


def check_range(flags, names: tuple[str, ...], low: float, below: float = math.inf, most: float = math.inf) -> None:
    """Raises UserError, naming the flag, where one of `names` is not at least `low`, below `below`, at most `most`.

    A flag that is None was not given.
    """
    for name in names:
        value = getattr(flags, name)
        if value is not None and not (low <= value <= most and value < below):
            above = f" and below {below}" if below < math.inf else f" and at most {most}" if most < math.inf else ""
            finite = "" if math.isfinite(value) else "a finite number of "
            raise UserError(f"--{name.replace('_', '-')} is {value}, it must be {finite}at least {low}{above}")


def pip_install(package: str) -> str:
    """The command that installs a package, or several words of pip's, for the Python that runs, whatever shell it is typed in.

    A plain pip may be another Python's. A Python below the current folder, as .venv's, is named from there.
    """
    here = os.path.join(os.getcwd(), "")
    python = sys.executable.removeprefix(here)
    return f"{shlex.quote(python if os.sep in python else sys.executable)} -m pip install {package}"


class _Parser(ArgumentParser):
    """argparse prints its usage and exits, once per process; here a wrong flag is a UserError like any other."""

    def error(self, message: str):
        hint = ""
        if message.startswith("unrecognized arguments: --"):
            typed = message.split()[2].split("=")[0]
            # of what --help does not show only --no-FLAG may be meant, and by who has begun to type that
            shown = [action for action in self._actions if action.help != SUPPRESS or typed.startswith("--no-")]
            known = [option for action in shown for option in action.option_strings]
            close = get_close_matches(typed, known, n=1, cutoff=0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{message}{hint} (see python {self.prog} --help)")


def parse(cls, argv: Sequence[str] | None = None, program: str | None = None):
    """An instance of the dataclass `cls`, from flags named after its fields: --grad-clip 1.0 sets grad_clip."""
    parser = _Parser(
        prog=program or _program(),
        description=description(cls),
        allow_abbrev=False,
        add_help=False,
        formatter_class=Formatter,
    )
    parser.usage = " ".join(
        ["%(prog)s", *(f.name.upper() for f in fields(cls) if "positional" in f.metadata), "[flags]"]
    )
    parser.add_argument("-h", "--help", action="help", help=SUPPRESS)
    groups: dict[str, _ArgumentGroup] = {}
    titles = {f.name: title(f, cls) for f in fields(cls)}
    for f in sorted(fields(cls), key=lambda f: ORDER.get(titles[f.name], len(ORDER))):
        heading = "more" if titles[f.name] == OWN and FIRST in titles.values() else titles[f.name]
        group = groups.get(heading) or groups.setdefault(heading, parser.add_argument_group(heading))
        how = {"help": (f.metadata["help"] + shown_default(f.default)).replace("%", "%%")} | f.metadata["how"]
        if "positional" in f.metadata:
            group.add_argument(f.name, **how)
            continue
        name = f.name.replace("_", "-")
        how |= {"required": f.default is MISSING, "default": None if f.default is MISSING else f.default}
        if f.type is bool and f.default is False:
            group.add_argument("--" + name, action="store_true", help=how["help"])
            group.add_argument("--no-" + name, action="store_false", dest=f.name, help=SUPPRESS)
            continue
        if f.type is bool:
            how |= {"action": BooleanOptionalAction}
            del how["choices"], how["metavar"]
        else:
            how["metavar"] = how["metavar"] or takes(f)
            how |= {"nargs": "+"} if f.type is list else {"type": f.type}
        group.add_argument("--" + name, **how)
    return cls(**vars(parser.parse_args(argv)))


def _leave(code: int) -> None:
    """End this process.

    Under torchrun without taking the interpreter apart first: a thread of gloo that still lets go of its last tensor asks for
    an interpreter that is no more, and aborts the process; torchrun then calls a job failed that had done all its work.
    """
    if under_torchrun():
        atexit._run_exitfuncs()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _program() -> str:
    path = os.path.relpath(sys.argv[0])
    return sys.argv[0] if path.startswith("..") else path


def run(commands: Callable | Mapping[str, tuple[Callable, type]], cls: type | None = None) -> None:
    """Parse the flags, call the command with them, and leave with its code (None: 0). A UserError is one line, code 2.

    Under torchrun whatever ends the command is noted and said as gpt/ending.py has it.
    """
    warnings.showwarning = _warn
    warnings.simplefilter("always", Notice)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that the terminal does not know is no reason to stop
    if under_torchrun():
        end_with_launcher()
        if (again := end_again()) is not None:
            _leave(again)
    try:
        code = commands(parse(cls)) if callable(commands) else _chosen(commands)
        sys.stdout.flush()
        if code:
            line = "stopped by a signal" if code == STOPPED else f"left with {code}"
            code = close(line, code, said=True, everywhere=True)  # the command has said why
    except EndedBefore:
        code = end_again(told=True)
    except UserError as error:
        code = close(str(error), 2, everywhere=is_everywhere(error))
    except KeyboardInterrupt:
        code = close("stopped by Ctrl+C", 130)
    except BrokenPipeError:  # the reader of our output, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not under_torchrun():
            raise
        code = close_unforeseen(error)
    _leave(code or 0)


def _chosen(commands: Mapping[str, tuple[Callable, type]]) -> int | None:
    word, rest = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if word in commands:
        main, cls = commands[word]
        return main(parse(cls, rest, f"{_program()} {word}"))
    lines = [f"usage: {_program()} COMMAND [flags]", ""]
    lines += [f"  {name:15}{cleandoc(cls.__doc__ or name).splitlines()[0]}" for name, (_, cls) in commands.items()]
    if word in ("-h", "--help"):
        print("\n".join(lines))
        return 0
    raise UserError(
        f"{f'there is no command {word!r}' if word else 'no command given'}; there are {', '.join(commands)} "
        f"(see python {_program()} --help)"
    )


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning is a line too, from one process of a machine."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"warning: {message}".replace("\n", " "), file=sys.stderr, flush=True)
