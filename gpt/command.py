"""What every command here shares: flags from a dataclass, errors in one line, exit code 2.

A command is a frozen dataclass whose fields are its flags, and a function of it:

    @dataclass(frozen=True)
    class Flags:
        \"\"\"What the command does, in one line.\"\"\"
        batch: int = flag(64, "pairs per optimizer step", "training")

    if __name__ == "__main__":
        run(main, Flags)                            # --batch 32 becomes Flags(batch=32)
"""

import os
import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction, RawDescriptionHelpFormatter
from inspect import cleandoc
from collections.abc import Callable
from dataclasses import MISSING, field, fields
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do."""


def flag(default=MISSING, help: str = "", group: str = "flags", choices: tuple | None = None):
    """A dataclass field that `parse` turns into a flag. Without a default the flag must be given."""
    metadata = {"help": help, "group": group, "choices": choices}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


class _Parser(ArgumentParser):
    """argparse prints its usage and exits once per process; here a wrong flag is a UserError like any other."""

    def error(self, message: str):
        hint = ""
        if message.startswith("unrecognized arguments: --"):
            known = [option for action in self._actions for option in action.option_strings]
            close = get_close_matches(message.split()[2].split("=")[0], known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{message}{hint} (python {self.prog} --help lists the flags)")


def parse(cls, argv: list[str] | None = None):
    """An instance of the dataclass `cls`, from flags named after its fields: --grad-clip 1.0 sets grad_clip."""
    parser = _Parser(prog=_program(), description=cleandoc(cls.__doc__), usage="%(prog)s [flags]", allow_abbrev=False,
                     formatter_class=RawDescriptionHelpFormatter)
    groups = {}
    for f in fields(cls):
        name = f.metadata["group"]
        group = groups.get(name) or groups.setdefault(name, parser.add_argument_group(name))
        how = {"action": BooleanOptionalAction} if f.type is bool else {"type": f.type, "choices": f.metadata["choices"]}
        if f.type is not bool and not f.metadata["choices"]:
            how["metavar"] = f.type.__name__.upper()
        help = f.metadata["help"] + ("" if f.default in (MISSING, None, "", False) else f" (default: {f.default})")
        group.add_argument("--" + f.name.replace("_", "-"), required=f.default is MISSING, help=help.replace("%", "%%"),
                           default=None if f.default is MISSING else f.default, **how)
    return cls(**vars(parser.parse_args(argv)))


def _program() -> str:
    path = os.path.relpath(sys.argv[0]) if sys.argv[0] else "-c"
    return path if not path.startswith("..") else sys.argv[0]


def run(main: Callable, cls) -> None:
    """Parse the flags, call `main(flags)`, and leave with its code (None: 0). A UserError is one line and code 2."""
    try:
        code = main(parse(cls))
    except UserError as error:
        _say_once(f"error: {error}")
        code = 2
    except KeyboardInterrupt:
        _say_once("stopped by Ctrl+C")
        code = 130
    sys.stdout.flush()
    sys.exit(code or 0)


def _say_once(line: str) -> None:
    """Print `line` to stderr once per machine, though every process of torchrun comes here.

    Process 0 speaks. The others wait: when process 0 has met the same error, torchrun ends them meanwhile. Were
    they to leave at once, torchrun could end process 0 before it has spoken. One that is still alive after five
    seconds is alone with its error, and speaks.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        time.sleep(5)
    print(line.replace("\n", " "), file=sys.stderr, flush=True)
