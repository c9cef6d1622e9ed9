"""The check of what may leave the machine, made for all requests of a call before the first is sent, in the process
that asks and again in the one that sends.

    local_only   never
    paid         only under paid terms: tier `paid` or enterprise, and never to a model that has no paid tier
    any          under any terms

A model whose only offer is unpaid keeps its unpaid terms whatever the project pays for. In the EEA, the UK and
Switzerland only paid services may be used, and the enterprise API only in a European location. Whatever the service
would look up by itself (search, maps, pages) may not be trained on. Its price has no bound, but for code and pages that
a server's client asks for: what they feed to the model is input, and that has one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from gemma_ops.config import GeminiConfig
from gemma_ops.errors import BoundaryError, BudgetError
from gemma_ops.gemini import notice
from gemma_ops.gemini.models import model_facts
from gemma_ops.gemini.request import HOSTED, Request
from gemma_ops.gemini.service_access import check_offline
from gemma_ops.runs import journal

_NOTHING = "nothing was sent"


def check_boundary(requests: Sequence[Request], config: GeminiConfig) -> Counter[str]:
    """Raise BoundaryError (or BudgetError, for what has no price) if any request may not leave.

    Returns how often each kind of personal data was found, where it is only reported.
    """
    check_offline(config)
    check_privacy(requests, config)
    check_region(config)
    notice.check_accepted(config)
    _check_grounding(requests)
    return _check_personal(requests, config)


def check_privacy(requests: Sequence[Request], config: GeminiConfig) -> None:
    """Check the privacy classes alone; they also protect a row's answer in the store."""
    _refuse(
        requests,
        lambda request: request.privacy == "local_only",
        "of class local_only, which never leave this machine",
        "take a local model, or change the class of rows that may leave: data.privacy, or `privacy` of the row",
    )
    paid_terms = config.enterprise or config.tier == "paid"
    _refuse(
        requests,
        lambda request: request.privacy == "paid" and not paid_terms,
        "of class paid, and the unpaid tier lets people read what is sent",
        "set machine.gemini.tier=paid if billing is linked to the key's project",
    )
    _refuse(
        requests,
        lambda request: request.privacy == "paid" and not model_facts(request.model).paid_tier,
        "of class paid for a model that is offered under unpaid terms only",
        "take a model with a paid tier, or run this one locally",
    )


def check_region(config: GeminiConfig) -> None:
    if config.region != "eea_uk_ch":
        return
    if config.enterprise:
        location = config.location or "global"
        if not location.startswith("eu"):
            raise BoundaryError(
                f"machine.gemini.region=eea_uk_ch, and the location {location!r} is not in Europe; {_NOTHING}",
                "set machine.gemini.location=eu, or a region such as europe-west4",
            )
    elif config.tier != "paid":
        raise BoundaryError(
            f"in the EEA, the UK and Switzerland only paid services of the Gemini API may be used; {_NOTHING}",
            "link billing to the key's project and set machine.gemini.tier=paid, or set machine.gemini.enterprise=true",
        )


def _check_grounding(requests: Sequence[Request]) -> None:
    tools = sorted({name for request in requests for name in request.grounding()})
    _refuse(
        requests,
        lambda request: request.use == "synth" and bool(request.grounding()),
        f"that would train on what {', '.join(tools)} finds, which the terms forbid",
        "put the documents into the prompt instead",
    )
    unpriced = {name for each in requests for name in each.grounding() if each.use != "serve" or name not in HOSTED}
    if unpriced:
        raise BudgetError(
            f"{', '.join(sorted(unpriced))}: the price of what the service looks up is not known, so it can't be "
            f"capped; {_NOTHING}",
            "leave the tool out: put what the model should know into the prompt",
        )


def _check_personal(requests: Sequence[Request], config: GeminiConfig) -> Counter[str]:
    """Scan every text once; rows with findings are refused or counted, their text is never repeated."""
    if config.pii == "off":
        return Counter()
    from gemma_ops.privacy import personal_data

    known: dict[str, tuple[str, ...]] = {}

    def kinds(request: Request) -> list[str]:
        found: list[str] = []
        for text in request.texts():
            if text not in known:
                known[text] = tuple(finding.kind for finding in personal_data.find_personal(text))
            found += known[text]
        return found

    per_row = [kinds(request) for request in requests]
    counts = Counter(kind for found in per_row for kind in found)
    rows = sum(map(bool, per_row))
    told = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    if counts and config.pii == "refuse":
        where = iter(per_row)
        _refuse(
            requests,
            lambda _: bool(next(where)),
            f"that hold personal data or secrets ({told})",
            "mask them (data.pii: mask), or set machine.gemini.pii=report once you have looked",
        )
    if counts:
        unpaid = config.tier == "unpaid" and not config.enterprise
        journal.record(event="gemini.pii", rows=rows, of=len(requests), found=dict(counts), forbidden_by_terms=unpaid)
    return counts


def _refuse(requests: Sequence[Request], wrong: Callable[[Request], bool], what: str, fix: str) -> None:
    """Refuse all requests if any is wrong, naming the first and the count."""
    bad = [request for request in requests if wrong(request)]
    if bad:
        first = bad[0].id or f"request {bad[0].key()}"
        raise BoundaryError(f"{len(bad)} of {len(requests)} rows are {what}; the first is {first}; {_NOTHING}", fix)
