"""What a request asks for beyond text and functions: images and sounds, hosted tools, a level of thinking.

A local model takes none of it, so it is taken out of the body before that is read strictly, and kept: nothing is
dropped on the way to a model that does. In its place in the text stands a mark that nobody can guess; `restored` puts
it back.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.wire.ask import RefusalError
from gemma_ops.wire.gemini_wire import contents_of

_DATA = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)(?:;[\w=.+-]+)*;base64,(?P<data>[A-Za-z0-9+/=\s_-]+)")
_HOSTED = {
    "googleSearch": "search", "googleSearchRetrieval": "search", "codeExecution": "code", "urlContext": "url",
    "googleMaps": "maps", "web_search": "search", "web_search_preview": "search", "code_interpreter": "code",
}  # fmt: skip
"""Our names for tools that a service runs; others keep their own."""
_SHOWN = ("image_url", "input_image", "input_audio", "file", "input_file")
_INLINE = {"inlineData", "inline_data", "fileData", "file_data"}


@dataclass(frozen=True)
class Beyond:
    """A request's body without the parts that only some models take, and those parts."""

    body: dict[str, Any]
    shown: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Images, sounds and files by mark: `{"type": "media", "mime": …, "data": base64}`."""
    hosted: tuple[str, ...] = ()
    level: str | None = None
    """Level of thinking that the request names, in small letters."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the kinds of what is read and shown: `text`, `image`, `audio`, `video`, `document`."""
        kinds = {part["mime"].partition("/")[0] for part in self.shown.values()}
        found = {kind if kind in ("image", "audio", "video") else "document" for kind in kinds}
        return ("text", *sorted(found))

    def restored(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages with the images, sounds and files themselves in place of their marks. Raises RefusalError
        for one that is gone."""
        left = set(self.shown)
        found = [{**message, "content": self._content(message.get("content"), left)} for message in messages]
        if left:
            raise RefusalError("only users show things: an image or file stands in another turn", field="messages")
        return found

    def _content(self, content: Any, left: set[str]) -> Any:
        if not isinstance(content, str) or not any(mark in content for mark in left):
            return content
        parts: list[dict[str, Any]] = []
        for piece in re.split("(" + "|".join(map(re.escape, sorted(left))) + ")", content):
            if piece in left:
                left.discard(piece)
                parts.append(dict(self.shown[piece]))
            elif piece.strip():
                parts.append({"type": "text", "text": piece})
        return parts


def openai_beyond(body: Any) -> Beyond:
    """Return a body of OpenAI's chat completions. Raises RefusalError for what can be carried nowhere, by its name."""
    if not isinstance(body, dict):
        return Beyond(body)
    marks = _Marks()
    plain = dict(body)
    if isinstance(body.get("messages"), list):
        plain["messages"] = [_openai_message(message, marks) for message in body["messages"]]
    hosted = []
    if plain.pop("web_search_options", None) is not None:
        hosted.append("search")
    tools = body.get("tools")
    if isinstance(tools, list):
        hosted += [_hosted_name(tool["type"]) for tool in tools if _is_hosted(tool)]
        plain["tools"] = [tool for tool in tools if not _is_hosted(tool)]
    level = body.get("reasoning_effort")
    return Beyond(plain, marks.shown, tuple(dict.fromkeys(hosted)), str(level).lower() if level else None)


def gemini_beyond(body: Any) -> Beyond:
    """Return a body of Gemini's generateContent, its field names in camel case. Raises RefusalError as `openai_beyond`
    does."""
    if not isinstance(body, dict):
        return Beyond(body)
    marks = _Marks()
    plain = dict(body)
    if body.get("contents") is not None:
        plain["contents"] = [_gemini_turn(turn, marks) for turn in contents_of(body["contents"])]
    hosted: list[str] = []
    if isinstance(body.get("tools"), list):
        kept = []
        for tool in body["tools"]:
            names = [name for name in tool if name != "functionDeclarations"] if isinstance(tool, dict) else []
            if set_up := [name for name in names if tool[name]]:
                raise RefusalError(f"{_hosted_name(set_up[0])} is carried without settings of its own", field="tools")
            hosted += [_hosted_name(name) for name in names]
            if not names or tool.get("functionDeclarations"):
                kept.append({name: value for name, value in tool.items() if name not in names} if names else tool)
        plain["tools"] = kept
    config = body.get("generationConfig")
    thinking = config.get("thinkingConfig") if isinstance(config, dict) else None
    level = thinking.get("thinkingLevel") if isinstance(thinking, dict) else None
    return Beyond(plain, marks.shown, tuple(dict.fromkeys(hosted)), str(level).lower() if level else None)


def shows(body: Any) -> bool:
    """True if anything in a body, of either protocol, is an image, a sound or a file."""
    if isinstance(body, list | tuple):
        return any(map(shows, body))
    if not isinstance(body, dict):
        return False
    if body.get("type") in _SHOWN or not _INLINE.isdisjoint(body):
        return True
    return any(map(shows, body.values()))


class _Marks:
    """Images, sounds and files of a request, each with a mark in its place."""

    def __init__(self) -> None:
        self._word = secrets.token_hex(16)
        self.shown: dict[str, dict[str, Any]] = {}

    def put(self, mime: str, data: str) -> str:
        mark = f"[media {self._word} {len(self.shown)}]"
        clean = re.sub(r"\s", "", data).replace("-", "+").replace("_", "/")
        self.shown[mark] = {"type": "media", "mime": mime, "data": clean + "=" * (-len(clean) % 4)}
        return mark


def _hosted_name(name: Any) -> str:
    """Our name, or the request's own where it looks like one: names are logged, and a client may write anything
    there."""
    own = str(name)
    return _HOSTED.get(own, own if re.fullmatch(r"[A-Za-z_]{1,40}", own) else "another tool")


def _is_hosted(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("type"), str) and tool["type"] != "function"


def _openai_message(message: Any, marks: _Marks) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [_openai_part(part, marks) for part in content]}


def _openai_part(part: Any, marks: _Marks) -> Any:
    """Return a part of a content; an image or sound becomes a text with its mark."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in _SHOWN:
        return part
    value = part.get(kind.removeprefix("input_")) if kind in ("input_image", "input_file") else part.get(kind)
    value = part.get("image_url", value) if kind == "input_image" else value
    if kind == "input_audio":
        if not isinstance(value, dict) or not isinstance(value.get("data"), str):
            raise RefusalError("input_audio needs its data in base64 and a format", field="messages")
        return {"type": "text", "text": marks.put(f"audio/{value.get('format') or 'wav'}", value["data"])}
    detail = value.get("detail") if isinstance(value, dict) else part.get("detail")
    if detail not in (None, "auto"):
        raise RefusalError("detail is not carried: leave it out, or say auto", field="messages")
    place = (value.get("url") or value.get("file_data")) if isinstance(value, dict) else value
    found = _DATA.fullmatch(place) if isinstance(place, str) else None
    if found is None:
        raise RefusalError(
            f"{kind} is taken with its bytes, as a data: URL: addresses and files elsewhere are not fetched",
            field="messages", code="unsupported_content",
        )  # fmt: skip
    return {"type": "text", "text": marks.put(found["mime"], found["data"])}


def _gemini_turn(turn: dict[str, Any], marks: _Marks) -> dict[str, Any]:
    parts = turn.get("parts")
    if not isinstance(parts, list):
        return turn
    return {**turn, "parts": [_gemini_part(part, marks) for part in parts]}


def _gemini_part(part: Any, marks: _Marks) -> Any:
    if not isinstance(part, dict):
        return part
    if "fileData" in part:
        raise RefusalError("fileData is not carried: give the bytes as inlineData", field="contents")
    if "inlineData" not in part:
        return part
    if strangers := sorted(set(part) - {"inlineData"}):
        raise RefusalError(f"{', '.join(map(str, strangers))} beside inlineData is not carried", field="contents")
    shown = part["inlineData"]
    if not isinstance(shown, dict) or not isinstance(shown.get("data"), str) or not shown.get("mimeType"):
        raise RefusalError("inlineData needs mimeType and data in base64", field="contents")
    return {"text": marks.put(str(shown["mimeType"]), shown["data"])}
