"""Made-up logprobs of a reply's tokens: the chosen one is the most likely, the rest share what is left."""

from __future__ import annotations

import math
from typing import Any

from gemma_ops.emulator import emulated_wire
from gemma_ops.emulator.responder import Body


def logprobs_of(text: str, most: int, body: Body) -> dict[str, Any]:
    """Return `avgLogprobs` and `logprobsResult` of a candidate; `most` is how many candidates are listed for each
    token."""
    chance = body.chance("logprobs")
    chosen, top = [], []
    for token in emulated_wire.tokens_of(text):
        likely = chance.uniform(0.6, 0.999)
        names = [token, *(f"{token}{number}" for number in range(1, most))]
        shares = [likely, *((1 - likely) / 2**number for number in range(1, most))]
        listed = [_candidate(name, share) for name, share in zip(names, shares, strict=True)]
        chosen.append(listed[0])
        top.append({"candidates": listed[:most]})
    mean = sum(entry["logProbability"] for entry in chosen) / len(chosen) if chosen else 0.0
    return {
        "avgLogprobs": mean,
        "logprobsResult": {"chosenCandidates": chosen} | ({"topCandidates": top} if most else {}),
    }


def _candidate(token: str, share: float) -> dict[str, Any]:
    return {"token": token, "tokenId": sum(token.encode()) % 262_144, "logProbability": math.log(share)}
