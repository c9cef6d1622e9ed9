"""Generation of one reply: the prompt is counted, the responder asked, thinking drawn, the reply cut where its tokens
end, and everything put in the service's shape."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemma_ops.emulator import emulated_wire
from gemma_ops.emulator.emulated_logprobs import logprobs_of
from gemma_ops.emulator.emulated_models import Card
from gemma_ops.emulator.responder import Body, EmulatedReply, Responder
from gemma_ops.emulator.signatures import signed, wants_signatures
from gemma_ops.wire.gemini_wire import Refusal

_THINKING = {"minimal": (0, 0), "low": (16, 128), "medium": (64, 512), "high": (128, 1024), "xhigh": (256, 2048)}
"""Thinking tokens per level, drawn evenly; kept below what the reply needs unless `thoughts` is set."""
_EMPTY = {"blocked_reply": "SAFETY", "recitation": "RECITATION"}


@dataclass(frozen=True)
class Produced:
    """A reply and its token counts."""

    response: dict[str, Any]
    usage: dict[str, int]
    """Usage as counted; `response` may lack it."""
    response_id: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Generator:
    """Generator of replies; `thoughts` is the range of thinking tokens, None for the level's own."""

    responder: Responder
    thoughts: tuple[int, int] | None = None

    def produce(
        self, body: Body, card: Card, *, cached: Mapping[str, Any] | None, fault: str = "", cloud: bool = False
    ) -> Produced:
        """Answer a checked request. `cached` is the content cache it names; `fault` one of the faults of replies."""
        cached_tokens = int(cached["usageMetadata"]["totalTokenCount"]) if cached else 0
        prompt = prompt_tokens(body) + cached_tokens
        if prompt > card.input_limit:
            raise Refusal(
                400,
                f"The input token count ({prompt}) exceeds the maximum number of tokens allowed ({card.input_limit}).",
            )
        reply = self._ask(body)
        if fault == "blocked_prompt":
            reply = replace(reply, blocked="SAFETY")
        prompt = reply.prompt_tokens if reply.prompt_tokens is not None else prompt
        cached_tokens = reply.cached_tokens if reply.cached_tokens is not None else cached_tokens
        usage = {"promptTokenCount": prompt} | ({"cachedContentTokenCount": cached_tokens} if cached_tokens else {})
        number = f"{body.chance('id', body.nth).getrandbits(128):032x}"
        response_id = base64.urlsafe_b64encode(bytes.fromhex(number)).decode().rstrip("=")[:22]
        if reply.blocked or fault == "no_candidates":
            usage["totalTokenCount"] = prompt
            feedback = {"blockReason": reply.blocked, "safetyRatings": _ratings("HIGH")}
            response: dict[str, Any] = {"promptFeedback": feedback} if reply.blocked else {}
        else:
            response, output, thoughts = self._candidates(body, card, reply, fault)
            usage |= {"candidatesTokenCount": output, "totalTokenCount": prompt + output + thoughts}
            usage |= {"thoughtsTokenCount": thoughts} if thoughts else {}
        if fault != "no_usage":
            kinds = emulated_wire.count_by_modality(body.raw.get("contents"))
            kinds = {"TEXT": max(prompt - sum(kinds.values()), 0)} | kinds
            details = [{"modality": kind, "tokenCount": count} for kind, count in kinds.items()]
            shown: dict[str, Any] = {**usage, "promptTokensDetails": details}
            if cached_tokens:
                shown["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": cached_tokens}]
            if cloud:
                tier = tier_of(body.raw)
                shown["trafficType"] = "ON_DEMAND" + ("" if tier == "standard" else f"_{tier.upper()}")
            response["usageMetadata"] = shown
        response |= {"modelVersion": card.name, "responseId": response_id}
        return Produced(response, usage, response_id, reply.headers)

    def _ask(self, body: Body) -> EmulatedReply:
        try:
            found = self.responder(body)
        except Refusal:
            raise
        except Exception as error:
            raise Refusal(500, f"The responder failed: {type(error).__name__}: {error}") from error
        return found if isinstance(found, EmulatedReply) else EmulatedReply(found)

    def _candidates(self, body: Body, card: Card, reply: EmulatedReply, fault: str) -> tuple[dict[str, Any], int, int]:
        """Return the response without usage, the tokens of all candidates, and the tokens of thinking."""
        reply = _spoil(_stopped(reply, body.config.get("stopSequences") or ()), fault)
        most = body.max_output_tokens or card.output_limit
        count = int(body.config.get("candidateCount") or 1)
        needed = emulated_wire.count_text(reply.text) + emulated_wire.count_json(list(reply.calls))
        thoughts = self._thinking(body, card, reply, max(0, most - needed))
        if fault == "max_tokens":
            thoughts, reply = most, EmulatedReply(finish="MAX_TOKENS")
        thoughts = min(thoughts, most)
        left = most - thoughts
        if not reply.calls and emulated_wire.count_text(reply.text) > left:
            reply = replace(reply, text=emulated_wire.first_tokens(reply.text, left), finish="MAX_TOKENS")
        output = emulated_wire.count_text(reply.text) + emulated_wire.count_json(list(reply.calls))
        output = reply.output_tokens if reply.output_tokens is not None else output
        parts = _parts(body, reply, thoughts)
        candidates = []
        for index in range(count):
            candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}} if parts else {}
            candidate |= {"finishReason": reply.finish, "index": index}
            if not parts and reply.finish == "MAX_TOKENS":
                candidate["content"] = {"role": "model"}
            if reply.finish == "SAFETY":
                candidate["safetyRatings"] = _ratings("HIGH")
            elif body.raw.get("safetySettings"):
                candidate["safetyRatings"] = _ratings("NEGLIGIBLE")
            if body.config.get("responseLogprobs") and reply.text:
                candidate |= logprobs_of(reply.text, int(body.config.get("logprobs") or 0), body)
            if reply.finish == "CONTINUATION":
                candidate["continuationToken"] = base64.b64encode(body.digest.encode()).decode()
            candidates.append(candidate)
        return {"candidates": candidates}, output * count, thoughts

    def _thinking(self, body: Body, card: Card, reply: EmulatedReply, room: int) -> int:
        if reply.thought_tokens is not None:
            return reply.thought_tokens
        if card.default_level is None:
            return 0
        chance = body.chance("thoughts", body.nth)
        if self.thoughts is not None:
            return chance.randint(*self.thoughts)
        low, high = _THINKING[body.level if body.level in _THINKING else card.default_level]
        return min(chance.randint(low, high), room)


def prompt_tokens(body: Body) -> int:
    """Count the tokens of all that is sent: turns, system instruction, declared functions and the schema of the
    reply."""
    total = emulated_wire.count_contents(body.raw.get("contents")) + emulated_wire.count_contents(
        body.raw.get("systemInstruction")
    )
    return total + emulated_wire.count_json(body.functions) + emulated_wire.count_json(body.schema or {})


def tier_of(body: Mapping[str, Any]) -> str:
    """Return the service tier of a request: `standard`, `flex` or `priority`."""
    found = str(body.get("serviceTier") or "standard").lower().removeprefix("service_tier_")
    return found if found in ("flex", "priority") else "standard"


def generated_events(response: dict[str, Any], pieces: int = 4) -> tuple[dict[str, Any], ...]:
    """Return a reply as the events of a stream: text in pieces, usage grows, the last event carries how it ended."""
    candidates = response.get("candidates") or []
    parts = candidates[0].get("content", {}).get("parts", []) if candidates else []
    if not parts:
        return (response,)
    shown: list[dict[str, Any]] = []
    for part in parts:
        text = part.get("text", "")
        size = max(1, -(-len(text) // pieces))
        shown += [part | {"text": text[at : at + size]} for at in range(0, len(text), size)] if text else [part]
    common = {key: response[key] for key in ("modelVersion", "responseId") if key in response}
    result = []
    for part in shown[:-1]:
        event: dict[str, Any] = {"candidates": [{"content": {"parts": [part], "role": "model"}, "index": 0}]}
        if "usageMetadata" in response:
            prompt = response["usageMetadata"]["promptTokenCount"]
            event["usageMetadata"] = {"promptTokenCount": prompt, "totalTokenCount": prompt}
        result.append(event | common)
    last = candidates[0] | {"content": {"parts": [shown[-1]], "role": "model"}}
    return (*result, response | {"candidates": [last]})


def _parts(body: Body, reply: EmulatedReply, thoughts: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if not reply.text and not reply.calls:
        return parts
    if thoughts and (body.config.get("thinkingConfig") or {}).get("includeThoughts"):
        parts.append({"text": "Thinking about what is asked.", "thought": True})
    if reply.text:
        parts.append({"text": reply.text})
    calls: list[dict[str, Any]] = [{"functionCall": call} for call in reply.calls]
    if calls and wants_signatures(body.model):
        calls[0]["thoughtSignature"] = signed(str(reply.calls[0].get("name")), body.digest)
    return parts + calls


def _stopped(reply: EmulatedReply, stops: Sequence[str]) -> EmulatedReply:
    """Return the reply up to the first of its stop sequences, which is not part of it."""
    ends = [at for stop in stops if stop and (at := reply.text.find(stop)) >= 0]
    return replace(reply, text=reply.text[: min(ends)]) if ends else reply


def _ratings(probability: str) -> list[dict[str, Any]]:
    """Return a rating per category; the dangerous one blocks where it is high."""
    names = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
    found: list[dict[str, Any]] = []
    for name in names:
        high = probability == "HIGH" and name == "DANGEROUS_CONTENT"
        found.append({"category": f"HARM_CATEGORY_{name}", "probability": "HIGH" if high else "NEGLIGIBLE"})
        found[-1] |= {"blocked": True} if high else {}
    return found


def _spoil(reply: EmulatedReply, fault: str) -> EmulatedReply:
    """Return the reply as a fault leaves it."""
    if fault in _EMPTY:
        return replace(reply, text="", calls=(), finish=_EMPTY[fault])
    if fault in ("truncated", "continuation"):
        half = reply.text[: max(1, len(reply.text) // 2)]
        return replace(reply, text=half, finish="MAX_TOKENS" if fault == "truncated" else "CONTINUATION")
    if fault == "violates_schema":
        return replace(reply, text=_misshapen(reply.text))
    return reply


def _misshapen(text: str) -> str:
    """Return JSON close to what was asked for: an object without its last key, anything else as the wrong type."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and value:
        value.popitem()
        return json.dumps(value)
    return json.dumps({"unexpected": True} if value == [] or isinstance(value, list) else ["unexpected"])
