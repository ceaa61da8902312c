"""What dpo/compare.py found, as a table in Markdown, and the place in a file that it goes to."""

from pathlib import Path

from gpt.command import UserError

BEGIN, END = "<!-- compare -->\n", "<!-- /compare -->\n"
ANSWERED = ("courteous", "rude", "correct", "stopped", "length")


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """The table in Markdown, a row for each model."""
    names = [name for name in ANSWERED if name in found["the start"]]
    head = ["", *names, "accuracy", "KL, nats", "chosen, nats"]
    cells = [head, ["---", *["---:"] * (len(head) - 1)]]
    for model, one in found.items():
        cells.append([
            f"`{model}`" if model != "the start" else model,
            *(f"{one[name]:.2f}" if name == "length" else f"{one[name]:.3f}" for name in names),
            f"{one['accuracy']:.3f}",
            f"{one['kl']:.2f} ± {one['kl standard error']:.2f}",
            f"{round(one['chosen'], 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}"),
        ])  # fmt: skip
    return [f"| {' | '.join(row)} |" for row in cells]


def replaced(page: Path, text: str, begin: str = BEGIN, end: str = END) -> str:
    """What the file says with `text` between the lines `begin` and `end`.

    Raises UserError where it cannot be read, or has no such lines.
    """
    try:
        content = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--page {page} cannot be read: {error}") from None
    before, _, rest = content.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(f"--page {page} has no lines {begin.strip()} and {end.strip()}, between which the table goes")
    return before + begin + text + end + after
