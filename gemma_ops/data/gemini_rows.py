"""Gemini's tuning rows: `contents` of parts by `user` and `model`, as OpenAI's messages and tools."""

from __future__ import annotations

from typing import Any

from gemma_ops.data.rowerror import RowError

Row = dict[str, Any]


def gemini(row: Row) -> tuple[Any, Any]:
    """Read Gemini's tuning rows: `contents` of `parts` by `user` and `model`, `systemInstruction`, `tools`."""
    found: list[Row] = []
    instruction = row.get("systemInstruction", row.get("system_instruction"))
    if instruction:
        text = instruction if isinstance(instruction, str) else "".join(_parts(instruction, "text"))
        found.append({"role": "system", "content": text})
    if not isinstance(row.get("contents"), list):
        raise RowError("no_messages", "the row has no contents")
    for turn in row["contents"]:
        if not isinstance(turn, dict):
            raise RowError("not_a_message", "an item of contents is not an object with role and parts")
        responses = _parts(turn, "functionResponse")
        if responses:
            _answer_calls(found, responses)
        rest = [part for part in turn["parts"] if not _is_response(part)]
        if responses and not rest:
            continue
        shown = any(_inline(part) for part in rest)
        content = [_inline(part) or part for part in rest] if shown else "".join(_parts(turn, "text"))
        message: Row = {"role": turn.get("role", "user"), "content": content}
        if thought := "".join(_parts(turn, "thought")):
            message["reasoning"] = thought
        if calls := _parts(turn, "functionCall"):
            message["tool_calls"] = [
                {"function": {"name": part.get("name"), "arguments": part.get("args")}} for part in calls
            ]
        found.append(message)
    return found, _gemini_tools(row.get("tools"))


def _is_response(part: Any) -> bool:
    return any(key.lower().replace("_", "") == "functionresponse" for key in part)


def _answer_calls(found: list[Row], responses: list[Row]) -> None:
    """Attach responses to the message with the calls that they answer: one turn may hold all of them, or each its
    own."""
    calling = next((message for message in reversed(found) if message.get("tool_calls")), None)
    later = found[found.index(calling) + 1 :] if calling else []
    if calling is None or any(message["role"] in ("model", "assistant") for message in later):
        raise RowError("tool_without_call", "a functionResponse has no functionCall before it")
    known = calling.setdefault("tool_responses", [])
    known += [{"name": part.get("name"), "response": part.get("response")} for part in responses]
    if len(known) > len(calling["tool_calls"]):
        raise RowError("tool_without_call", f"{len(known)} responses stand after {len(calling['tool_calls'])} calls")


def _inline(part: Any) -> Row | None:
    """Return an image or a sound of Gemini's `inlineData` (base64) or `fileData` (a path here), in transformers'
    spelling."""
    if not isinstance(part, dict):
        return None
    data = part.get("inlineData", part.get("inline_data")) or part.get("fileData", part.get("file_data"))
    if not isinstance(data, dict):
        return None
    mime = str(data.get("mimeType", data.get("mime_type", "")))
    place = data.get("fileUri", data.get("file_uri")) or f"data:{mime};base64,{data.get('data')}"
    return {"type": mime.partition("/")[0], "url": place}


def _parts(turn: Any, kind: str) -> list[Any]:
    """Return the parts of one kind. Raises RowError on a part that is none of text, a function call, an image or a
    sound."""
    parts = turn.get("parts") if isinstance(turn, dict) else None
    if not isinstance(parts, list):
        raise RowError("not_a_message", "an item of contents has no parts")
    found = []
    for part in parts:
        if not isinstance(part, dict):
            raise RowError("not_a_message", "a part is not an object")
        function = next(
            (key for key in part if key.lower().replace("_", "") in ("functioncall", "functionresponse")), None
        )
        if function:
            named = "functionCall" if "call" in function.lower() else "functionResponse"
            value: Any = part[function]
            if not isinstance(value, dict):
                raise RowError("bad_tool_call", f"{function} is not an object")
        elif inline := _inline(part):
            named, value = "media", inline
        elif isinstance(part.get("text"), str):
            named, value = ("thought" if part.get("thought") is True else "text"), part["text"]
        else:
            raise RowError(
                "not_text",
                f"a part holds {', '.join(sorted(map(str, part))) or 'nothing'}; text, images and audio are trained on",
            )
        if named == kind:
            found.append(value)
    return found


def _gemini_tools(tools: Any) -> Any:
    if not isinstance(tools, list):
        return tools
    found: list[Any] = []
    for tool in tools:
        declared = (
            tool.get("functionDeclarations", tool.get("function_declarations")) if isinstance(tool, dict) else None
        )
        found += declared if isinstance(declared, list) else [tool]
    return found
