"""What dpo/compare.py found, as a table in Markdown."""

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
            f"{one['kl']:.2f}" + ("" if (error := one["kl standard error"]) is None else f" ± {error:.2f}"),
            f"{round(one['chosen'], 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}"),
        ])  # fmt: skip
    return [f"| {' | '.join(row)} |" for row in cells]
