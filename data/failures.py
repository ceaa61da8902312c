"""What an LLM was asked for nothing, and why: each reason with how often, and the first rows.

no verdict in the reply: 2 (rows 3, 7); HTTP 500: 1 (row 9): the model is loading
"""

from data.endpoint import Failed
from data.tally import summary


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
        return summary(self.rows, "", self.details)
