"""Every loss and its gradient as one picture.

    python dpo/loss_sheet.py --out docs/losses.svg

What is drawn stands in dpo/loss_panels.py, which is imported when it is asked for: matplotlib is an extra.
"""

import re
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt.command import UserError, flag, pip_install, run
from gpt.files import whole

KINDS = (".svg", ".pdf", ".png")


@dataclass(frozen=True)
class Flags:
    """Draw every loss and its gradient over the margin, on one sheet.

    python dpo/loss_sheet.py --out docs/losses.svg
    """

    out: str = flag("losses.svg", "the file to write; its ending says what kind: svg, pdf or png")


def main(flags: Flags) -> None:
    kind = Path(flags.out).suffix.lower()
    if kind not in KINDS:
        raise UserError(f"--out {flags.out} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    try:
        from matplotlib import rc_context

        from dpo.loss_panels import sheet
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise UserError(f"matplotlib, which draws, is not installed; {pip_install('matplotlib')}") from None
    # letters stay letters: a smaller file, in whose text one can search. The same losses give the same bytes
    fonts = ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"]
    style = {"svg.fonttype": "none", "svg.hashsalt": "losses", "font.sans-serif": fonts}
    drawn = BytesIO()
    with rc_context(style):
        sheet().savefig(drawn, format=kind[1:], dpi=160, metadata={".svg": {"Date": None}}.get(kind))
    content = drawn.getvalue()
    if kind == ".svg":
        content = re.sub(rb' transform="rotate\(-0 [^"]*"', b"", content)
        content = re.sub(rb'"[^"<>]*"', lambda found: re.sub(rb"(\.\d\d)\d+", rb"\1", found[0]), content)
    with whole(flags.out, binary=True) as file:
        file.write(content)
    print(f"written to {flags.out}")


if __name__ == "__main__":
    run(main, Flags)
