"""The traps in words: all of them in a line each, or one in full with its evidence."""

from __future__ import annotations

import difflib
import textwrap

from gemma_ops.errors import ConfigError
from gemma_ops.family.sizes import SIZES
from gemma_ops.family.traps import TRAPS

_WIDTH = 100


def overview() -> list[str]:
    """Return each trap's name and what gemma-ops does about it."""
    longest = max(len(trap.code) for trap in TRAPS)
    lines: list[str] = []
    for trap in TRAPS:
        head, rest = f"  {trap.code:<{longest}}  ", " " * (longest + 4)
        lines += textwrap.wrap(trap.here, _WIDTH, initial_indent=head, subsequent_indent=rest, break_on_hyphens=False)
    return lines


def explain_trap(code: str) -> list[str]:
    """Return one trap in full, as lines of text. Raises ConfigError that lists the names for an unknown one."""
    known = {trap.code: trap for trap in TRAPS}
    if code not in known:
        close = difflib.get_close_matches(code, known, n=1)
        raise ConfigError(
            f"no known combination is called {code!r}" + (f"; did you mean {close[0]}?" if close else ""),
            f"one of: {', '.join(known)}",
        )
    trap = known[code]
    sizes = "every size" if len(trap.applies) == len(SIZES) else ", ".join(trap.applies)
    lines = [f"{trap.code}: {sizes}; {'silent' if trap.silent else 'seen at once'}"]
    for label, value in (
        ("what", trap.what),
        ("evidence", trap.evidence),
        ("by hand", trap.fix),
        ("gemma-ops", trap.here),
    ):
        lines += textwrap.wrap(
            value, _WIDTH, initial_indent=f"{label:<11}", subsequent_indent=" " * 11, break_on_hyphens=False
        )
    return lines
