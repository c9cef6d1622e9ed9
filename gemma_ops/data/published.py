"""The chat template that a checkpoint publishes: which it is, and how it differs from ours.

Engines serve with it, so prompts are rendered with it in training and in evaluation too. What the model says after a
prompt is written as our template writes it, which is Google's of 2026-07-09; a template that we don't know is compared
with ours over probes, and what differs is reported.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gemma_ops import family
from gemma_ops.data import chat
from gemma_ops.data.template import Message, Tool, inference_template, render_template
from gemma_ops.errors import DataError

_SMALL = "of E2B and E4B"
KNOWN = {
    "55572b8d3c834204": f"an early template {_SMALL} (TRL's gemma4_v2.jinja)",
    "781d10940fbc44be": f"an earlier template {_SMALL} (TRL's gemma4_v3.jinja)",
    "33204f1acb5bd000": f"an earlier template {_SMALL} (TRL's gemma4.jinja)",
    "2f1b4d75d067bae3": f"an earlier template {_SMALL} (TRL's gemma4_v4.jinja)",
    "603a42db292c2527": f"Google's template {_SMALL} of 2026-07-09",
    "1d35a24a2a63cc60": "Google's template of 12B, 26B-A4B and 31B (llama.cpp's google-gemma-4-31B-it.jinja)",
}
"""Published templates by the first 16 hex digits of the SHA-256 of their text, white space at its ends left off."""
OURS = "the template that gemma-ops brings"

_ASK: Message = {"role": "user", "content": "Which?"}
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": {"what": "it", "n": 2}}}],
}
_TOOLS: list[Tool] = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds it",
            "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
        },
    }
]
_SAY: Message = {"role": "assistant", "content": "This one."}
PROBES: dict[str, tuple[list[Message], list[Tool] | None]] = {
    "a question": ([_ASK], None),
    "a system turn": ([{"role": "system", "content": "Be brief."}, _ASK], None),
    "a later question": ([_ASK, _SAY, _ASK], None),
    "a later question after a thought": ([_ASK, {**_SAY, "reasoning": "Why not."}, _ASK], None),
    "tools": ([_ASK], _TOOLS),
    "the result of a tool": ([_ASK, _CALL, {"role": "tool", "tool_call_id": "1", "content": "42"}], _TOOLS),
    "an image": ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}], None),
}
"""Conversations over which a template is compared with ours, by what they probe."""


def checkpoint_template(folder: Path) -> str | None:
    """Return the chat template a checkpoint brings (`chat_template.jinja`, else `tokenizer_config.json`), or None."""
    home = chat.tokenizer_file(folder).parent
    if (home / "chat_template.jinja").is_file():
        return (home / "chat_template.jinja").read_text(encoding="utf-8")
    config = home / "tokenizer_config.json"
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # the older form: several templates by name
        found = next((item["template"] for item in found if item.get("name") == "default"), None)
    return found


def template_of(folder: Path) -> str:
    """Return the chat template that prompts of a checkpoint are rendered with: its own, or ours for its size where it
    brings none.

    Base checkpoints (those that are not `-it`) bring none; what is made of them ships this one.
    """
    own = checkpoint_template(folder)
    if own is not None:
        return own
    config = chat.tokenizer_file(folder).parent / "config.json"
    large = config.is_file() and family.empty_thought(json.loads(config.read_text(encoding="utf-8")))
    return inference_template(empty_thought=large)


def template_name(template: str) -> str | None:
    """Return the name of a template, or None for one that we don't know."""
    text = template.strip()
    if text in (inference_template().strip(), inference_template(empty_thought=True).strip()):
        return OURS
    return KNOWN.get(hashlib.sha256(text.encode()).hexdigest()[:16])


def template_differences(template: str) -> list[str]:
    """Return how prompts of a template differ from ours over the probes: a sentence each, both ways of thinking; none
    where equal.

    A template that closes its prompt with an empty thought is compared with ours of the larger sizes.
    """
    found = []
    for name, (messages, tools) in PROBES.items():
        for thinking in (False, True):
            theirs = _rendered(template, messages, tools, thinking)
            ours = [
                _rendered(inference_template(empty_thought=large), messages, tools, thinking) for large in (False, True)
            ]
            if theirs not in ours:
                nearest = max(ours, key=lambda text: _shared(text, theirs))
                at = _shared(nearest, theirs)
                found.append(
                    f"{name}, thinking {'on' if thinking else 'off'}: {theirs[at : at + 40]!r} where ours has "
                    f"{nearest[at : at + 40]!r}"
                )
    return found


def template_told(template: str) -> list[str]:
    """Return what a person is told of a template: nothing of a known one, of another how its prompts differ from
    ours."""
    if template_name(template):
        return []
    found = template_differences(template)
    asked = f"{len(found)} of {2 * len(PROBES)} probes are asked otherwise" if found else "all probes are asked alike"
    told = f"the checkpoint's chat template is none that gemma-ops knows; prompts are rendered with it, and {asked}"
    return [told, *(f"  {line}" for line in found)]


def _rendered(template: str, messages: list[Message], tools: list[Tool] | None, thinking: bool) -> str:
    try:
        return render_template(template, messages, tools, add_generation_prompt=True, enable_thinking=thinking).text
    except DataError as error:
        return error.what


def _shared(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
