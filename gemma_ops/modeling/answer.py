"""What a model said, and how it ended: a reply that stopped, one that was cut, and one that failed are three things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

End = Literal["stop", "length", "blocked", "error"]


@dataclass(frozen=True)
class Answer:
    """One reply. `seconds` is the wall time of its batch divided by the rows in it, so that a sum is a total."""

    text: str
    end: End
    prompt_tokens: int
    new_tokens: int
    seconds: float
