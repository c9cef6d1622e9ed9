"""The bill of an endpoint with prices: cost is held before a request leaves, and settled from its usage, in the ledger
that Gemini has.

One cap of the run counts for both: `machine.gemini.budget_usd`, and `project_budget_usd` for everything in one ledger.
A request holds the most it can cost: no prompt has more tokens than its body has bytes, and no reply more than were
asked for.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Any

from gemma_ops.answer import Answer
from gemma_ops.config import EndpointConfig, MachineConfig
from gemma_ops.errors import BudgetError
from gemma_ops.gemini.cache import ledger_path
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.prices import nanodollars
from gemma_ops.gemini.request import Use
from gemma_ops.runs import digest

TIER = "standard"
_PER_TOKEN = 1000
"""Nanodollars of a token at one dollar per million."""
_LOOK = 0.05
"""Seconds between looks whether requests on the wire have made room under the cap."""


@dataclass(frozen=True)
class EndpointBill:
    """The bill of one endpoint's model for one run."""

    ledger: SpendingLedger
    settings: EndpointConfig
    model: str
    use: Use

    def hold(self, body: dict[str, Any], limit: int) -> int:
        """Reserve the most a request can cost, and return the reservation's number. Waits while requests on the wire
        may make room. Raises BudgetError where there is none."""
        worst = self._nano(len(json.dumps(body, ensure_ascii=False).encode()), limit)
        while True:
            try:
                return self.ledger.reserve(
                    digest.of_json(body)[:32], model=self.model, use=self.use, tier=TIER, worst=worst
                )
            except BudgetError:
                if not self.ledger.may_fit(worst):
                    raise
            time.sleep(_LOOK)

    def give_back(self, number: int, why: str) -> None:
        """Release the reservation of a request that the server did not serve."""
        self.ledger.release(number, why)

    def pay(self, number: int, answer: Answer | None) -> None:
        """Settle by the usage of a reply; one that names none, or broke off, counts as the most it can have cost."""
        if answer is None or answer.dollars is None:
            self.ledger.settle(number, None, usage={"lost": "no usage"} if answer is None else {"missing": True})
            return
        usage = {"prompt": answer.prompt_tokens, "cached": answer.cached_tokens, "output": answer.new_tokens}
        self.ledger.settle(
            number, math.ceil(answer.dollars * 1e9 - 1e-6), usage=usage | {"thoughts": answer.thought_tokens},
            model_version=answer.model, response_id=answer.response_id,
        )  # fmt: skip

    def close(self) -> None:
        self.ledger.close()

    def _nano(self, prompt: int, written: int) -> int:
        asked, said = self.settings.dollars_in or 0.0, self.settings.dollars_out or 0.0
        return math.ceil((prompt * asked + written * said) * _PER_TOKEN)


def open_bill(
    settings: EndpointConfig, machine: MachineConfig, model: str, *, run: str, use: Use
) -> EndpointBill | None:
    """Return the bill of an endpoint that has prices; None for one whose costs nobody has stated. Raises BudgetError
    where it costs money and the run has no budget."""
    if settings.dollars_in is None or settings.dollars_out is None or not settings.dollars_in + settings.dollars_out:
        return None
    caps = (machine.gemini.budget_usd, machine.gemini.project_budget_usd)
    if caps[0] is None:
        raise BudgetError(
            f"requests to {settings.url} cost money, and this run has no budget",
            "set machine.gemini.budget_usd to the most that this run may spend, endpoints included",
        )
    run_cap, project_cap = (None if cap is None else nanodollars(cap) for cap in caps)
    ledger = SpendingLedger(ledger_path(machine), run=run, run_cap=run_cap, project_cap=project_cap)
    return EndpointBill(ledger, settings, model, use)
