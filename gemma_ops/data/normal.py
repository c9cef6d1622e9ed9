"""Normalisation of every conversation to OpenAI-style messages, as the Example contract states them.

Data sets spell the same things in many ways. What can be repaired without guessing is repaired and noted (string tool
arguments, other names for roles and reasoning, a thought written inline); what would train something else than its
author meant is refused with a reason. Nothing is dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gemma_ops.data import parts
from gemma_ops.data.control import THINK, control_in_text, stripped, texts_in
from gemma_ops.data.example import parse_example
from gemma_ops.data.marks import REVERSED, TURN_MARKS, turn_is_learned
from gemma_ops.data.rowerror import RowError
from gemma_ops.data.template import BOS
from gemma_ops.data.turns import check_turns, match_responses

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "model": "assistant", "gpt": "assistant", "bot": "assistant", "chatbot": "assistant",
    "tool": "tool", "function": "tool", "ipython": "tool", "observation": "tool",
}  # fmt: skip
_REASONING = ("reasoning", "reasoning_content", "thinking")
_KNOWN = {"role", "content", "tool_calls", "function_call", "tool_responses", "tool_call_id", "name", *_REASONING}
_READ = frozenset((*_KNOWN, *TURN_MARKS, *REVERSED))
_THOUGHT = re.compile(r"\s*<\|channel>\s*thought\s*\n(.*?)<channel\|>", re.DOTALL)
_SWITCH = re.compile(rf"\s*{re.escape(THINK)}\s*")


def conversation(
    raw: Any,
    tools: Any = None,
    *,
    system: str | None = None,
    own: str | None = None,
    media: Sequence[parts.Part] = (),
    asked: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None, list[str]]:
    """Return normalised messages and tools, and the codes of what was repaired.

    `system` is put first when the row has no system turn; `own` is a system turn that stands next to the row's turns,
    and comes before that; `media` are images and sounds that stand next to the messages (`parts.media_columns`).
    `asked` says that it is a question, which nobody has answered yet. Raises RowError.
    """
    notes: list[str] = []
    if not isinstance(raw, list) or not raw:
        raise RowError("no_messages", "the row has no messages")
    messages = [_message(item, index, notes) for index, item in enumerate(raw)]
    messages = [message for message in messages if message["role"] != "system" or message["content"]]
    if not messages:
        raise RowError("no_messages", "the row has no messages")
    if own and messages[0]["role"] == "system" and messages[0]["content"].strip() != own.strip():
        raise RowError("two_systems", "the row has a system turn, and another one in a column beside its turns")
    if own and messages[0]["role"] != "system":
        beside = _message({"role": "system", "content": own}, -1, notes)
        messages = [*([beside] if beside["content"] else []), *messages]
        notes.append("system_column")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    check_turns(messages, asked=asked)
    parts.media_place(messages, list(media))
    match_responses(messages, notes)
    declared = declared_tools(tools, notes)
    _drop_filled(messages, declared, notes)
    return messages, declared, notes


def _drop_filled(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, notes: list[str]) -> None:
    """Remove null arguments that the called function doesn't declare: a table of all rows once gave every call the
    arguments of every other."""
    known = {
        tool["function"]["name"]: set((tool["function"].get("parameters") or {}).get("properties") or {})
        for tool in tools or []
    }
    declared = set().union(*known.values())
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call["function"]
            own = known.get(function["name"])
            kept = {
                key: value
                for key, value in function["arguments"].items()
                if value is not None or own is None or key in own or not (own or key in declared)
            }
            if kept != function["arguments"]:
                function["arguments"] = kept
                notes.append("arrow_nulls")


def _message(item: Any, index: int, notes: list[str]) -> dict[str, Any]:
    where = f"message {index + 1}" if index >= 0 else "the system column"
    if not isinstance(item, dict):
        raise RowError("not_a_message", f"{where} is {_kind(item)}, not an object with role and content")
    role = ROLES.get(str(item.get("role", "")).strip().lower())
    if role is None:
        raise RowError("unknown_role", f"{where} has the unknown role {item.get('role')!r}")
    learned = turn_is_learned(item, role, where)
    if not _READ.issuperset(item) and any(item[key] not in (None, "", [], {}) for key in item if key not in _READ):
        notes.append("field_dropped")
    message: dict[str, Any] = {"role": role, "content": _content(item.get("content"), role, where, notes)}
    if role == "assistant" and not learned:
        message["weight"] = 0
    if role == "assistant":
        _assistant(message, item, where, notes)
    elif any(item.get(key) for key in _REASONING) or item.get("tool_calls"):
        raise RowError("not_the_model", f"{where} is a {role} turn but carries reasoning or tool calls")
    if role == "tool":
        message |= {key: str(item[key]) for key in ("tool_call_id", "name") if item.get(key)}
    elif role != "assistant" and isinstance(message["content"], str) and not message["content"].strip():
        raise RowError("empty_turn", f"{where} ({role}) is empty")
    if role == "system" and _SWITCH.match(message["content"]):  # a setting of training, not an instruction
        message["content"] = _SWITCH.sub("", message["content"], count=1)
        notes.append("thinking_switch")
    # The template joins parts without the white space around them, and strips a channel inside an answer.
    shown = message["content"]
    said = [shown] if isinstance(shown, str) else [parts.text_of(shown), parts.text_of(shown, trimmed=True)]
    refuse_control_tokens(
        [stripped(text) if role == "assistant" else text for text in said] + [message.get("name")], where
    )
    return message


def _assistant(message: dict[str, Any], item: dict[str, Any], where: str, notes: list[str]) -> None:
    thought = next((item[key] for key in _REASONING if item.get(key)), None)
    if thought is not None and not isinstance(thought, str):
        raise RowError("not_text", f"{where}: the reasoning is {_kind(thought)}, not text")
    if thought is not None and not item.get("reasoning"):
        notes.append("reasoning_renamed")
    inline = _THOUGHT.match(message["content"])
    if inline and thought is None:  # the template would strip it: the same thought in its own field is trained on
        thought, message["content"] = inline[1].strip("\n"), message["content"][inline.end() :]
        notes.append("channel_moved")
    calls = item.get("tool_calls") or ([{"function": item["function_call"]}] if item.get("function_call") else [])
    if not isinstance(calls, list):
        raise RowError("bad_tool_call", f"{where}: tool_calls is {_kind(calls)}, not a list")
    if calls:
        message["tool_calls"] = [_call(call, number, where, notes) for number, call in enumerate(calls, 1)]
    if item.get("tool_responses"):
        message["tool_responses"] = [_response(entry, where) for entry in item["tool_responses"]]
    if thought:
        refuse_control_tokens(thought, where)
        message["reasoning"] = thought
    if not message["content"].strip() and not calls and not item.get("tool_responses"):
        raise RowError("empty_answer", f"{where} (assistant) is empty")


def _call(call: Any, number: int, where: str, notes: list[str]) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise RowError("bad_tool_call", f"{where}: tool call {number} has no function name")
    arguments = function.get("arguments", function.get("args"))
    if isinstance(arguments, str):
        try:
            arguments = parse_example(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise RowError(
                "bad_tool_call", f"{where}: the arguments of {function['name']} are not JSON: {error}"
            ) from None
        notes.append("arguments_parsed")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(
            "bad_tool_call", f"{where}: the arguments of {function['name']} are {_kind(arguments)}, not an object"
        )
    refuse_control_tokens([function["name"], arguments], where)
    # An id that every response can be matched with is set in match_responses.
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _response(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or "response" not in entry:
        raise RowError("bad_tool_response", f"{where}: a tool response needs name and response")
    named = {"name": str(entry.get("name") or "unknown"), "response": entry["response"]}
    refuse_control_tokens(named, where)
    return named


def _content(content: Any, role: str, where: str, notes: list[str]) -> str | list[parts.Part]:
    """Return a text, or parts where a user or a tool shows something: the model itself only writes, and so do
    instructions."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError("not_text", f"{where}: the content is {_kind(content)}, not text")
    found = parts.of_content(content, where, notes)
    if not isinstance(found, str) and role not in ("user", "tool"):
        kind = next(part["type"] for part in found if part["type"] != "text")
        raise RowError(
            "media_misplaced", f"{where} ({role}) has a part of type {kind}; only users and tools show things"
        )
    return found


def declared_tools(tools: Any, notes: list[str]) -> list[dict[str, Any]] | None:
    """Return the normalised functions of a row, None where there are none. Raises RowError."""
    if isinstance(tools, str):
        try:
            tools = parse_example(tools) if tools.strip() else None
        except ValueError as error:
            raise RowError("bad_tools", f"tools is a string that is not JSON: {error}") from None
        notes.append("tools_parsed")
    if not tools:
        return None
    if not isinstance(tools, list):
        raise RowError("bad_tools", f"tools is {_kind(tools)}, not a list")
    found = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RowError("bad_tools", "a tool has no function name")
        whole = _without_null_schemas(function)
        if whole != function:
            notes.append("arrow_nulls")
            function = whole
        refuse_control_tokens(function, f"tool {function['name']}")
        found.append({"type": "function", "function": {**function, "description": function.get("description") or ""}})
    return found


def _without_null_schemas(value: Any) -> Any:
    """Return a declaration without its null entries, which say nothing in a schema; defaults and constants may be
    null."""
    if isinstance(value, dict):
        return {
            key: item if key in ("default", "const", "enum", "examples") else _without_null_schemas(item)
            for key, item in value.items()
            if item is not None or key in ("default", "const")
        }
    return [_without_null_schemas(item) for item in value] if isinstance(value, list) else value


def refuse_control_tokens(content: Any, where: str) -> None:
    """Raise RowError where a text in the content, a key included, spells a control token, or is no Unicode."""
    for text in texts_in(content):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError("bad_unicode", f"{where} holds half a surrogate pair, which is no character") from None
        if token := control_in_text(text):
            raise RowError(
                "doubled_bos" if token == BOS else "control_token",
                f"{where} holds the control token {token}: give the messages themselves, not rendered text",
            )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
