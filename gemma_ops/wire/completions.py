"""OpenAI's completions, server side: a text, or token ids, that is continued as it stands, without a template.

What it is for is measuring: harnesses ask it for continuations and log-probabilities. A tuned model is asked as it was
trained through chat completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.openai_fields import check_fields, real_number, stop_texts, whole_number

_IGNORED = frozenset({"model", "user", "stream"})
_KNOWN = frozenset(
    {"prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n", "logprobs", "stream_options"}
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (None, False), "suffix": (None, ""), "frequency_penalty": (None, 0), "presence_penalty": (None, 0),
    "logit_bias": (None, {}), "best_of": (None, 1),
}  # fmt: skip
_USUAL, _MOST_REPLIES, _MOST_LOGPROBS = 16, 16, 20


def read_completion(body: Any) -> Ask:
    """Read the request of `POST /v1/completions`, with one prompt. Raises RefusalError naming the field that is
    wrong."""
    body = check_fields(body, _KNOWN, _IGNORED, _NEUTRAL)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    whole = isinstance(prompt, list) and prompt and all(isinstance(one, int) and one >= 0 for one in prompt)
    if not (whole or (isinstance(prompt, str) and prompt)):
        raise RefusalError("prompt must be one text, or one list of token ids", field="prompt")
    return Ask(
        messages=(),
        raw=prompt if isinstance(prompt, str) else tuple(prompt),
        max_tokens=whole_number(body, "max_tokens", 1) or _USUAL,
        temperature=real_number(body, "temperature", 0, 2),
        top_p=real_number(body, "top_p", 0, 1),
        top_k=whole_number(body, "top_k", 0),
        seed=whole_number(body, "seed"),
        stop=stop_texts(body),
        logprobs=whole_number(body, "logprobs", 0, _MOST_LOGPROBS),
        count=whole_number(body, "n", 1, _MOST_REPLIES) or 1,
        stream=bool(body.get("stream")),
        extra={"usage": bool((body.get("stream_options") or {}).get("include_usage"))},
    )


def choice(index: int, text: str, finish: str | None, logprobs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return one continuation in OpenAI's shape."""
    return {"index": index, "text": text, "finish_reason": finish, "logprobs": logprobs}
