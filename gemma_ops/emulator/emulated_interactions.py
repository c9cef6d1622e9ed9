"""The Interactions API, as far as our own requests need it: one turn of a model, answered at once and not stored.

A body is read as the GenerateContentRequest that means the same, and its reply is told in steps. Streams, agents,
background work and stored interactions are refused, not imitated. Fields: google-genai 3.4, `CreateModelInteraction`,
`Interaction`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemma_ops.wire.gemini_wire import Refusal

_LATER = (
    "stream",
    "background",
    "previous_interaction_id",
    "agent",
    "continuation_token",
    "cached_content",
    "webhook_config",
)
_ENDS = {"STOP": "completed", "MAX_TOKENS": "incomplete"}


def read_interaction(sent: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the model and the GenerateContentRequest that an interaction's body stands for. Raises the service's
    400."""
    for name in _LATER:
        if sent.get(name):
            raise Refusal(400, f"The emulator answers one turn at once, without {name}.")
    if sent.get("store") is not False:
        raise Refusal(400, "The emulator stores no interaction: say store=false.")
    given = sent.get("generation_config") or {}
    names = {"max_output_tokens": "maxOutputTokens", "seed": "seed", "stop_sequences": "stopSequences"}
    config = {names[name]: given[name] for name in names if given.get(name) is not None}
    if given.get("thinking_level"):
        config["thinkingConfig"] = {"thinkingLevel": given["thinking_level"]}
    shape = sent.get("response_format")
    if isinstance(shape, dict) and shape.get("schema") is not None:
        config |= {"responseMimeType": "application/json", "responseJsonSchema": shape["schema"]}
    body: dict[str, Any] = {"contents": _turns(sent.get("input")), "store": False}
    if config:
        body["generationConfig"] = config
    if sent.get("system_instruction"):
        body["systemInstruction"] = {"role": "user", "parts": [{"text": sent["system_instruction"]}]}
    declared = [_declaration(tool) for tool in sent.get("tools") or []]
    if declared:
        body["tools"] = [{"functionDeclarations": declared}]
    return str(sent.get("model") or "").removeprefix("models/"), body


def show_interaction(response: Mapping[str, Any]) -> dict[str, Any]:
    """Return a GenerateContentResponse as a finished interaction."""
    candidate = (response.get("candidates") or [{}])[0]
    steps: list[dict[str, Any]] = []
    for number, part in enumerate((candidate.get("content") or {}).get("parts") or []):
        call = part.get("functionCall")
        if call:
            steps.append(
                {"type": "function_call", "id": f"call_{number}", "name": call["name"], "arguments": call["args"]}
            )
        elif not part.get("thought"):
            steps.append({"type": "model_output", "content": [{"type": "text", "text": part.get("text", "")}]})
    status = _ENDS.get(str(candidate.get("finishReason")), "failed")
    calls = any(step["type"] == "function_call" for step in steps)
    usage = response.get("usageMetadata") or {}
    return {
        "id": f"interactions/{response['responseId']}",
        "model": response["modelVersion"],
        "status": "requires_action" if calls else status,
        "steps": steps,
        "usage": {
            "total_input_tokens": usage.get("promptTokenCount", 0),
            "total_cached_tokens": usage.get("cachedContentTokenCount", 0),
            "total_output_tokens": usage.get("candidatesTokenCount", 0),
            "total_thought_tokens": usage.get("thoughtsTokenCount", 0),
            "total_tokens": usage.get("totalTokenCount", 0),
        },
    }


def _turns(given: Any) -> list[dict[str, Any]]:
    """Return the input, a text or a list of steps, as turns."""
    if isinstance(given, str):
        return [{"role": "user", "parts": [{"text": given}]}]
    turns: list[dict[str, Any]] = []
    for step in given if isinstance(given, list) else []:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind in ("user_input", "model_output"):
            texts = [part for part in step.get("content") or [] if part.get("type") == "text"]
            role = "user" if kind == "user_input" else "model"
            turns.append({"role": role, "parts": [{"text": part.get("text", "")} for part in texts]})
        elif kind == "function_call":
            call = {"name": step.get("name"), "args": step.get("arguments") or {}}
            turns.append({"role": "model", "parts": [{"functionCall": call, "thoughtSignature": _CARRIED}]})
        elif kind == "function_result":
            result = step.get("result")
            shown = result if isinstance(result, dict) else {"result": json.loads(json.dumps(result))}
            turns.append(
                {"role": "user", "parts": [{"functionResponse": {"name": step.get("name"), "response": shown}}]}
            )
        else:
            raise Refusal(400, f"The emulator reads no step of type {kind!r}.")
    return turns


_CARRIED = "skip_thought_signature_validator"
"""Signature of function calls that come as steps: their own signatures stand in thought steps, which are not checked
here."""


def _declaration(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Refusal(400, f"The emulator has no tool of type {tool.get('type')!r}.")
    found = {"name": tool.get("name"), "description": tool.get("description")}
    return {key: value for key, value in found.items() if value} | {
        "parametersJsonSchema": tool.get("parameters") or {}
    }
