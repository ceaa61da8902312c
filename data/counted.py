"""What came to nothing, and why: each reason with how often, and the first rows.

an answer that was cut off: 2 (rows 3, 7); HTTP 500: 1 (row 9): the model is loading
"""

from collections.abc import Mapping, Sequence

from data.endpoint import Failed

FIRST = 5  # rows that are named


def counted(why: Mapping[str, Sequence[int]], details: Mapping[str, str] | None = None) -> str:
    """{"no answer that ended": [3, 7]} -> 'no answer that ended: 2 (rows 3, 7)', and of each reason its detail, if any."""

    def one(reason: str, rows: Sequence[int]) -> str:
        shown = ", ".join(map(str, rows[:FIRST])) + (", ..." if len(rows) > FIRST else "")
        more = f": {details[reason]}" if details and details.get(reason) else ""
        return f"{reason}: {len(rows):,} (row{'s' * (len(rows) > 1)} {shown}){more}"

    return "; ".join(one(reason, rows) for reason, rows in why.items())


class Failures:
    """Of what an LLM was asked and gave no reply to, or none that could be read."""

    def __init__(self):
        self.rows: dict[str, list[int]] = {}  # by kind
        self.details: dict[str, str] = {}  # of each kind the first

    def add(self, failed: Failed, row: int) -> None:
        """One more, of this row."""
        self.rows.setdefault(failed.kind, []).append(row)
        if failed.detail:
            self.details.setdefault(failed.kind, failed.detail)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind, as a report in JSON has it."""
        return {kind: len(rows) for kind, rows in self.rows.items()}

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def __str__(self) -> str:
        return counted(self.rows, self.details)
