"""Checks of what the service refuses before any work is done, in its words as far as they are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_ops.emulator.emulated_models import Card
from gemma_ops.emulator.emulated_wire import EmulatedCall
from gemma_ops.emulator.signatures import check_signatures
from gemma_ops.wire.gemini_wire import Refusal, contents_of

_TOP_NAMES = (
    "contents systemInstruction generationConfig tools toolConfig safetySettings cachedContent serviceTier store "
    "labels model modelArmorConfig continuationToken continuationTokens"
)
_CONFIG_NAMES = (
    "temperature topP topK candidateCount maxOutputTokens stopSequences presencePenalty frequencyPenalty seed "
    "responseMimeType responseSchema responseJsonSchema responseFormat responseModalities responseLogprobs logprobs "
    "thinkingConfig mediaResolution speechConfig audioTimestamp enableEnhancedCivicAnswers imageConfig "
    "routingConfig modelSelectionConfig enableAffectiveDialog"
)
_TOP = frozenset(_TOP_NAMES.split())
_CONFIG = frozenset(_CONFIG_NAMES.split())
_STOPS, _LOGPROBS = 5, 20
"""Most stop sequences, and most candidates for each token's probability."""
_TIERS = frozenset({"standard", "flex", "priority"})
_ROLES = frozenset({"user", "model", "function"})


def check_key(call: EmulatedCall, keys: frozenset[str] | None) -> None:
    """Refuse a request without a key (403, or 401 for enterprise) or with one that is not known (400)."""
    key = call.headers.get("x-goog-api-key") or call.query.get("key")
    if call.cloud and not key:
        if not call.headers.get("authorization", "").lower().startswith("bearer "):
            raise Refusal(401, "Request is missing required authentication credential.")
        return
    if not key:
        raise Refusal(
            403,
            "Method doesn't allow unregistered callers (callers without established identity). "
            "Please use API Key or other form of API consumer identity to call this API.",
        )
    if keys is not None and key not in keys:
        detail = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
        raise Refusal(400, "API key not valid. Please pass a valid API key.", [detail])


def check_request(body: Mapping[str, Any], card: Card) -> None:
    """Refuse what a GenerateContentRequest may not hold, or what this model does not take."""
    _known(body, _TOP, "")
    turns = contents_of(body.get("contents"))
    if not turns or not any(turn.get("parts") for turn in turns):
        raise Refusal(400, "* GenerateContentRequest.contents: contents is not specified")
    for number, turn in enumerate(turns):
        role = turn.get("role", "user")
        if role not in _ROLES:
            raise Refusal(400, "Please use a valid role: user, model.")
        parts = turn.get("parts")
        if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
            raise Refusal(400, f"* GenerateContentRequest.contents[{number}].parts: contents.parts must not be empty.")
    if turns[-1].get("role") == "model":
        raise Refusal(400, "The last turn must not come from the model: prefilled replies are not supported.")
    tier = body.get("serviceTier")
    if tier is not None and str(tier).lower().removeprefix("service_tier_") not in _TIERS | {"unspecified"}:
        raise Refusal(400, f"Invalid value at 'service_tier': {tier!r}")
    config = body.get("generationConfig") or {}
    if not isinstance(config, dict):
        raise Refusal(400, "Invalid value at 'generation_config': an object is expected.")
    _known(config, _CONFIG, " at 'generation_config'")
    _check_limits(config, card)
    _check_shape(config)
    _check_thinking(config.get("thinkingConfig") or {}, card)
    _check_enabled(config)
    check_signatures(turns, card.name)


def _known(body: Mapping[str, Any], names: frozenset[str], place: str) -> None:
    strangers = [name for name in body if name not in names]
    if strangers:
        raise Refusal(
            400,
            "\n".join(
                f'Invalid JSON payload received. Unknown name "{name}"{place}: Cannot find field.' for name in strangers
            ),
        )


def _check_limits(config: Mapping[str, Any], card: Card) -> None:
    most = config.get("maxOutputTokens")
    if most is not None and not (isinstance(most, int) and 1 <= most <= card.output_limit):
        raise Refusal(
            400,
            f"Unable to submit request because it has a maxOutputTokens value of {most} but the supported range is "
            f"from 1 (inclusive) to {card.output_limit + 1} (exclusive). Update the value and try again.",
        )
    count = config.get("candidateCount", 1)
    if count != 1 and not card.candidates:
        raise Refusal(400, f"Multiple candidates is not enabled for models/{card.name}")
    if not (isinstance(count, int) and 1 <= count <= 8):
        raise Refusal(400, f"candidate_count must be in the range [1, 8], got {count}.")
    for name, top in (("temperature", 2.0), ("topP", 1.0)):
        value = config.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= top):
            raise Refusal(400, f"* GenerateContentRequest.generation_config.{name}: must be in the range [0.0, {top}].")


def _check_enabled(config: Mapping[str, Any]) -> None:
    """Refuse what current models don't do: penalties (0 is accepted), and more stops or logprobs than are allowed."""
    if config.get("presencePenalty") or config.get("frequencyPenalty"):
        raise Refusal(400, "Penalty is not enabled for this model")
    stops = config.get("stopSequences") or []
    if not isinstance(stops, list) or len(stops) > _STOPS:
        raise Refusal(400, f"* GenerateContentRequest.generation_config.stop_sequences: at most {_STOPS} are allowed.")
    most = config.get("logprobs")
    if most is not None and not config.get("responseLogprobs"):
        raise Refusal(400, "logprobs is set, and response_logprobs is not: it must be true.")
    if most is not None and not (isinstance(most, int) and 0 <= most <= _LOGPROBS):
        raise Refusal(400, f"logprobs must be in the range [0, {_LOGPROBS}], got {most}.")


def _check_shape(config: Mapping[str, Any]) -> None:
    schemas = [name for name in ("responseSchema", "responseJsonSchema") if config.get(name) is not None]
    if len(schemas) == 2:
        raise Refusal(400, "Only one of response_schema and response_json_schema may be set.")
    kind = config.get("responseMimeType", "text/plain")
    if kind not in ("text/plain", "application/json", "text/x.enum"):
        raise Refusal(400, f"* GenerateContentRequest.generation_config.response_mime_type: {kind!r} is not allowed.")
    if schemas and kind == "text/plain":
        raise Refusal(
            400, "Function calling with a response mime type: 'text/plain' does not support a response schema."
        )


def _check_thinking(config: Mapping[str, Any], card: Card) -> None:
    level, budget = config.get("thinkingLevel"), config.get("thinkingBudget")
    if level is not None and budget is not None:
        raise Refusal(400, "You can only set only one of thinking budget and thinking level.")
    if level is not None and str(level).lower() not in (*card.levels, "thinking_level_unspecified"):
        raise Refusal(
            400,
            f"Thinking level {str(level).upper()} is not supported for this model. Please retry with other "
            f"thinking level.",
        )
    if budget is not None and not card.budgets:
        raise Refusal(400, "Thinking budget is not supported for this model. Please use thinking level.")
