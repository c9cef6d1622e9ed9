"""Daily budgets of API keys at Gemini (UTC): what each may still spend, after what was billed and what is under way.

What was billed stands in the log of decisions, so that a server that is started again goes on where it was. Several
servers at once don't see what the others spend: each has the whole budget.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from gemma_ops.routing.decision_log import RouteRecord
from gemma_ops.serving.keys import Grant


class KeyBudgets:
    """Dollars by key, of this day."""

    def __init__(
        self, before: Iterable[RouteRecord] = (), now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Open the budgets; `before` is what was logged, and `now` gives the time in UTC."""
        self._now = now
        self._day = self._today()
        self._spent: defaultdict[str, float] = defaultdict(float)
        for record in before:
            if record.at.startswith(self._day):
                cost, most = record.outcome.dollars, record.signals.gemini.most
                self._spent[record.key] += (most or 0.0) if cost is None else cost

    def left(self, grant: Grant) -> float:
        """Return the dollars that a key may still spend; infinite for one without a budget."""
        self._turn()
        return math.inf if grant.budget is None else max(0.0, grant.budget - self._spent[grant.name])

    def reserve(self, grant: Grant, dollars: float) -> Callable[[float | None], None]:
        """Count the most that a request can cost. What is returned takes what it did cost instead; None, where that
        isn't known, leaves the reserve."""
        self._turn()
        day, name = self._day, grant.name
        self._spent[name] += dollars

        def settle(cost: float | None) -> None:
            if cost is not None and day == self._day:
                self._spent[name] += cost - dollars

        return settle

    def _turn(self) -> None:
        """Start anew on a new day."""
        if (today := self._today()) != self._day:
            self._day = today
            self._spent.clear()

    def _today(self) -> str:
        return self._now().date().isoformat()
