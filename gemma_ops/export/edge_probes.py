"""What LiteRT-LM is asked about a file before it is taken: texts whose tokens must be the checkpoint's, and
conversations whose prompts must be those of training."""

from __future__ import annotations

from typing import Any, TypeAlias

EDGE_PROBES = (
    "Hello, world!",
    "  two  spaces,\ttab\nand\n\n\nlines \n ",
    "Äußerst naïve façade — “quotes” … £€¥",
    "日本語のテキスト、한국어, العربية, हिन्दी, தமிழ், አማርኛ, ᏣᎳᎩ",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 😀 ł ꙮ 𓀀 e\u0301 \u200b",
    "3.14159 1,000,000 0x1F v2.0-rc1",
    '{"key": ["value", 1, null]}\n```python\ndef f(x):\n    return x\n```',
    "<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>ok<turn|>\n",
    '<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|><|tool_response>response:f{}<tool_response|><eos>',
)
"""Texts of many scripts, emoji that only bytes can spell, and every control token."""
_TOOL = {
    "type": "function",
    "function": {
        "name": "set_alarm",
        "description": "Sets an alarm",
        "parameters": {
            "type": "object",
            "properties": {"hour": {"type": "integer", "description": "Hour"}},
            "required": ["hour"],
        },
    },
}
_ASKED = {"role": "user", "content": "Wake me at seven."}
_SYSTEM = {"role": "system", "content": "Be brief."}


Asked: TypeAlias = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Messages of a conversation, and its tools."""


def edge_conversations(template: str) -> list[Asked]:
    """Return conversations with their tools: a question, one with a system turn, two turns, and, where the template
    knows tools, one with a tool."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, _ASKED]
    plain: list[Asked] = [([_ASKED], []), ([_SYSTEM, _ASKED], []), (turns, [])]
    return [*plain, ([_ASKED], [_TOOL])] if "tools" in template else plain
