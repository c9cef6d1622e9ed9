"""Embeddings: unit vectors made of hashed words, so that texts that share words lie near each other."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

from gemma_ops.emulator import emulated_wire
from gemma_ops.emulator.emulated_models import Card
from gemma_ops.emulator.emulated_wire import EmulatedCall, Reaction
from gemma_ops.wire.gemini_wire import Refusal, texts_of


def embed_text(call: EmulatedCall, card: Card) -> tuple[Reaction, int]:
    """Answer `embedContent`: the reply and its tokens."""
    vector, tokens = _embed(call.body, card)
    return Reaction(200, {"embedding": {"values": vector}, "usageMetadata": {"promptTokenCount": tokens}}), tokens


def many(call: EmulatedCall, card: Card) -> tuple[Reaction, int]:
    """Answer `batchEmbedContents`: one vector per request."""
    requests = call.body.get("requests") or []
    if not requests:
        raise Refusal(400, "* BatchEmbedContentsRequest.requests: at least one request is required")
    found = [_embed(request, card) for request in requests]
    tokens = sum(count for _, count in found)
    body = {
        "embeddings": [{"values": vector} for vector, _ in found],
        "usageMetadata": {"promptTokenCount": tokens, "totalTokenCount": tokens},
    }
    return Reaction(200, body), tokens


def _embed(request: dict[str, Any], card: Card) -> tuple[list[float], int]:
    config = request.get("embedContentConfig") or {}
    size = int(request.get("outputDimensionality") or config.get("outputDimensionality") or card.embeds)
    if not 1 <= size <= card.embeds:
        raise Refusal(400, f"output_dimensionality must be in the range [1, {card.embeds}], got {size}.")
    text = "\n".join(texts_of(request.get("content")))
    if not text:
        raise Refusal(400, "* EmbedContentRequest.content: content is empty")
    vector = [0.0] * size
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        seed = hashlib.blake2b(word.encode(), digest_size=8).digest()
        vector[int.from_bytes(seed[:4]) % size] += 1.0 if seed[4] % 2 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    if not length:  # words that cancel each other out
        vector[0] = length = 1.0
    return [round(value / length, 6) for value in vector], emulated_wire.count_text(text)
