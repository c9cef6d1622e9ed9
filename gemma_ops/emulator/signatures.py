"""Thought signatures: a function call carries one, and the service wants it back in the turn that it belongs to.

Gemini 3 and later refuse a conversation whose current turn holds a call without its signature (400), in the words
below. The current turn begins with the last message of the user that is no result of a function; what lies before is
not looked at. Calls that another model made carry a documented mark instead. Source:
https://ai.google.dev/gemini-api/docs/thought-signatures
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_ops.wire.gemini_wire import Refusal

_FOREIGN = frozenset({"skip_thought_signature_validator", "context_engineering_is_the_way_to_go"})
_OURS = b"emulated thought of "


def signed(name: str, digest: str) -> str:
    """Return the signature of a call that the emulator makes."""
    return base64.b64encode(_OURS + f"{name}/{digest}".encode()).decode()


def wants_signatures(model: str) -> bool:
    """True if a model refuses calls without signatures, as Gemini does from 3 on."""
    return model.startswith(("gemini-3", "gemini-4"))


def check_signatures(turns: Sequence[Mapping[str, Any]], model: str) -> None:
    """Refuse a current turn whose steps do not begin with a signed call. Raises the service's 400."""
    if not wants_signatures(model):
        return
    asked = [number for number, turn in enumerate(turns) if turn.get("role", "user") == "user" and _says(turn)]
    start = asked[-1] if asked else 0
    for number, turn in enumerate(turns[start:], start):
        calls = [part for part in turn.get("parts") or [] if "functionCall" in part]
        if turn.get("role") != "model" or not calls:
            continue
        found = calls[0].get("thoughtSignature")  # of parallel calls only the first carries it
        name = (calls[0].get("functionCall") or {}).get("name")
        if not found:
            raise Refusal(
                400,
                "Function call is missing a thought_signature in functionCall parts. This is required for tools "
                "to work correctly, and missing thought_signature may lead to degraded model performance. Additional "
                f"data, function call `default_api:{name}` , position {number + 1}. Please refer to "
                "https://ai.google.dev/gemini-api/docs/thought-signatures for more details.",
            )
        if not _known(str(found)):
            raise Refusal(400, "Corrupted thought signature.")


def _says(turn: Mapping[str, Any]) -> bool:
    return any("functionResponse" not in part for part in turn.get("parts") or [])


def _known(signature: str) -> bool:
    """True if a signature is one of ours or the documented mark, which clients send as it is or in base64."""
    if signature in _FOREIGN:
        return True
    try:
        raw = base64.b64decode(
            signature + "=" * (-len(signature) % 4), altchars=b"-_" if "-" in signature or "_" in signature else None
        )
    except (binascii.Error, ValueError):
        return False
    return raw.startswith(_OURS) or raw.decode("utf-8", "replace") in _FOREIGN
