"""What a person must know before the first request leaves, and what every result made with Gemini must carry.

Facts about others' terms: data with a date, not advice. When Google changes them, `TERMS` changes here, and every
configuration that accepted the old ones is asked again.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.config import GeminiConfig
from gemma_ops.errors import BoundaryError
from gemma_ops.gemini.service_access import rehearsal

TERMS = "2026-03-23"
"""Date of the page's last change when this was written."""
AS_OF = "2026-04-28"
"""Day of the page's last change when this was written."""
SOURCE = "https://ai.google.dev/gemini-api/terms"
LOGS = "https://ai.google.dev/gemini-api/docs/logs-datasets"
NOT_FOR = "not for training models that compete with the Gemini API"

NOTICE = f"""\
Gemini API Additional Terms in force since {TERMS}, as of {AS_OF}: {SOURCE}. Read them; this is no legal advice.
- Competing models: output may not be used to develop models that compete with the Gemini API or Google AI Studio. Google
  decides what competes; a general distilled assistant, or publishing the rows, is a real risk. Gemma 4's license does
  not lift this.
- Unpaid tier: what is sent and answered is used to improve Google's products, and people may read it. Nothing sensitive,
  confidential or personal may be sent. With billing linked to the key's project it is not used that way.
- EEA, Switzerland, United Kingdom: only paid services may be used for users there.
- Logs: paid projects created since 2026-10-26 keep requests for 55 days unless told otherwise ({LOGS});
  every request of gemma-ops says store=false.
- Grounding: results of Google Search and Maps may not be stored, trained on or learned from.
- Enterprise (Google Cloud): its own terms hold instead, which gemma-ops has not checked."""  # noqa: E501


def check_accepted(config: GeminiConfig) -> None:
    """Raise BoundaryError, with the whole notice, unless the configuration accepts the terms of this day."""
    if config.accept_terms == TERMS:
        return
    told = (
        "not accepted yet" if config.accept_terms is None else f"accepted as of {config.accept_terms}, and have changed"
    )
    raise BoundaryError(
        f"the terms of the Gemini API are {told}; nothing was sent\n{NOTICE}",
        f"if you accept them: --set machine.gemini.accept_terms={TERMS}",
    )


def record_notice(config: GeminiConfig) -> dict[str, Any]:
    """Return what manifests and data cards of anything made with Gemini carry."""
    return {
        "terms": config.accept_terms,
        "terms_source": SOURCE,
        "tier": "enterprise" if config.enterprise else config.tier,
        "region": config.region,
        "location": config.location if config.enterprise else None,
        # The enterprise API has no such field, and keeps no such log.
        "store": None if config.enterprise else False,
        "service_tier": config.service_tier,
        "batch": config.batch,
        "rehearsal": rehearsal(config),
        "not_for": NOT_FOR,
    }
