"""The lines a person is shown when a server starts, and the one question that it may be asked to show that it
answers."""

from __future__ import annotations

import http.client
import json

from gemma_ops.errors import DataError
from gemma_ops.serving.serving_state import ModelService


def told(service: ModelService, url: str) -> list[str]:
    """Return what a person is shown when it listens: where, what, why it may, and how to ask."""
    facts = service.facts
    version = f" version {facts.version}" if facts.version else ""
    chat = f'{{"model": "{facts.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    body = '{"contents": [{"parts": [{"text": "Hello"}]}]}'
    header = "-H 'Content-Type: application/json'"
    return [
        f"serving {facts.model}{version} ({facts.format or 'GGUF'}) at {url} on {facts.engine}",
        f"verdict: {facts.verdict or 'none'}; canary: {facts.canary}",
        *([f"drafter {facts.drafter}"] if facts.drafter else []),
        f"curl {url}/v1/chat/completions {header} -d '{chat}'",
        f"curl {url}/v1beta/models/{facts.model}:generateContent {header} -d '{body}'",
    ]


def asked_over_http(host: str, port: int, model: str, question: str) -> str:
    """Return the answer to one question, asked as any client asks."""
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if "error" in reply:
        raise DataError(f"the question was refused: {reply['error']['message']}", "ask another")
    return str(reply["choices"][0]["message"]["content"])
