"""The error of one row that can't be used."""

from __future__ import annotations


class RowError(Exception):
    """A row that can't be used; `code` is short and stable, the text says why."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
