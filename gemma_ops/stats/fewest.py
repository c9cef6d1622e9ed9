"""The fewest values that can show a mean at best: plain arithmetic, which a plan needs before numpy is loaded."""

from __future__ import annotations

import math


def fewest(margin: float, best: float, low: float, level: float) -> int | None:
    """Fewest independent values that can show a mean above `margin`, all of them `best`: (1 + gain)^n must reach 1 /
    level.

    With values in [-1, 1] that all are 0 and a margin of -.05 it is 59 at level .05; exact tests of yes/no rows need as
    many. None when no number can.
    """
    if best <= margin:
        return None
    if margin <= low:
        return 1
    return max(1, math.ceil(math.log(1 / level) / math.log1p((best - margin) / (margin - low)) - 1e-9))
