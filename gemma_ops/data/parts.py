"""Content in parts: every author's spelling of "an image stands here" normalised, without opening a file.

OpenAI writes `{"type": "image_url", "image_url": {"url": …}}` and `{"type": "input_audio", "input_audio": {"data":
…}}`, transformers `{"type": "image", "path" | "url" | "image": …}`, TRL a bare `{"type": "image"}` with the files in a
column `images`, LLaVA and LLaMA-Factory `<image>` in the text with the same column. All become `{"type": "image" |
"audio", "source": …}`; `media_files.MediaShelf` then opens the sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from gemma_ops.data.rowerror import RowError
from gemma_ops.family.media import Kind

Part = dict[str, Any]
_KINDS: dict[str, Kind] = {
    "image": "image", "image_url": "image", "input_image": "image",
    "audio": "audio", "audio_url": "audio", "input_audio": "audio",
}  # fmt: skip
_PLACES = ("url", "path", "image", "audio", "data", "base64", "bytes")
_TAGS = re.compile(r"\s*<(image|audio)>\s*")
_COLUMNS: dict[str, Kind] = {"images": "image", "image": "image", "audios": "audio", "audio": "audio"}


def is_text(part: Any) -> bool:
    """True if a part of a content is text: a plain string, or an object that says so or says nothing else."""
    return isinstance(part, str) or (
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and part.get("type", "text") in ("text", "input_text", "output_text")
    )


def of_content(content: Sequence[Any], where: str, notes: list[str]) -> str | list[Part]:
    """Return a normalised list of parts: text where there is nothing else, neighbouring texts joined.

    Raises RowError for a part of another kind.
    """
    found: list[Part] = []
    joined = False
    for part in content:
        if is_text(part):
            text = part if isinstance(part, str) else part["text"]
            if found and found[-1]["type"] == "text":
                found[-1]["text"] += text
                joined = True
            else:
                found.append({"type": "text", "text": text})
        else:
            found.append(of_part(part, where))
    if joined:
        notes.append("parts_joined")
    if all(part["type"] == "text" for part in found):
        return "".join(part["text"] for part in found)
    return [part for part in found if part["type"] != "text" or part["text"].strip()]


def is_media(part: Any) -> bool:
    """True if an object says that it is an image or a sound."""
    return isinstance(part, dict) and str(part.get("type")) in _KINDS


def of_part(part: Any, where: str) -> Part:
    """Return a normalised image or sound; `source` is None where the part itself names no file. Raises RowError."""
    name = part.get("type") if isinstance(part, dict) else None
    kind = _KINDS.get(str(name))
    if kind is None:
        if name in ("video", "video_url", "input_video"):
            raise RowError("video", f"{where} has a video; images and audio are trained on, videos are not")
        shown = repr(name) if isinstance(part, dict) else f"{type(part).__name__}"
        raise RowError("not_text", f"{where} has a part of type {shown}; text, images and audio are trained on")
    value: Any = next((part[key] for key in (str(name), *_PLACES) if part.get(key) is not None), None)
    for _ in range(3):  # OpenAI and Arrow each put an object around it
        if isinstance(value, dict):
            value = next((value[key] for key in ("bytes", *_PLACES) if value.get(key) is not None), None)
    if value is not None and not isinstance(value, str | bytes):
        raise RowError("bad_media", f"{where}: the {kind} is given as {type(value).__name__}, not as a path or bytes")
    if isinstance(value, str) and _is_base64(part, str(name), value):
        value = f"data:;base64,{value}"
    return {"type": kind, "source": value}


def _is_base64(part: Part, name: str, value: str) -> bool:
    """True if the value is bare base64, as in OpenAI's `input_audio`, and no path: paths hold a point or a colon."""
    inner = part.get(name)
    inner = inner if isinstance(inner, dict) else part
    return (inner.get("data") == value or inner.get("base64") == value) and not {".", ":"} & set(value[:4096])


def media_columns(row: Part) -> list[Part]:
    """Return the images and sounds that stand in columns of their own, in the order of the columns."""
    found: list[Part] = []
    if _COLUMNS.keys().isdisjoint(row):
        return found
    for column, kind in _COLUMNS.items():
        value = row.get(column)
        items = value if isinstance(value, list | tuple) else [value]
        there = [item for item in items if item not in (None, "", b"")]
        found += [of_part({"type": kind, kind: item}, f"column {column}") for item in there]
    return found


def media_place(messages: list[dict[str, Any]], given: list[Part], *, anywhere: bool = True) -> None:
    """Put the files of a row's columns where the conversation refers to them, in place.

    Parts without a source are filled in order; else `<image>` and `<audio>` in user turns are replaced in order; else,
    with `anywhere`, they go before the text of the first user turn, where Gemma expects images. Raises RowError when
    there are more files than places, or more places than files.
    """
    if not given and all(isinstance(message.get("content"), str) for message in messages):
        return
    open_parts = [part for part in media_of(messages) if part.get("source") is None and "path" not in part]
    if not open_parts and given and not media_of(messages):
        open_parts = _from_tags(messages)
        if not open_parts and anywhere:
            first = next((message for message in messages if message["role"] == "user"), messages[0])
            said = (
                first["content"] if isinstance(first["content"], list) else [{"type": "text", "text": first["content"]}]
            )
            open_parts = [{"type": part["type"]} for part in given]
            first["content"] = [*open_parts, *said]
        elif not open_parts:
            return
    for kind in ("image", "audio"):
        wanted = [part for part in open_parts if part["type"] == kind]
        there = [part["source"] for part in given if part["type"] == kind]
        if len(wanted) != len(there):
            raise RowError(
                "media_count",
                f"the conversation has places for {len(wanted)} {kind} files, and the row names {len(there)}",
            )
        for part, source in zip(wanted, there, strict=True):
            part["source"] = source


def _from_tags(messages: list[dict[str, Any]]) -> list[Part]:
    """Cut user turns at `<image>` and `<audio>`, and return the parts that stand for them."""
    found: list[Part] = []
    for message in messages:
        if message["role"] != "user" or not isinstance(message["content"], str) or not _TAGS.search(message["content"]):
            continue
        pieces = _TAGS.split(message["content"])  # text, kind, text, kind, …, text
        parts: list[Part] = [
            {"type": "text", "text": piece} if index % 2 == 0 else {"type": piece} for index, piece in enumerate(pieces)
        ]
        said = [part for part in parts if part["type"] != "text" or part["text"]]
        message["content"] = said
        found += media_in(said)
    return found


def media_of(messages: Sequence[dict[str, Any]]) -> list[Part]:
    """Return the image and audio parts of a conversation, in order."""
    return [part for message in messages for part in media_in(message.get("content"))]


def media_in(content: Any) -> Iterator[Part]:
    """Yield the image and audio parts of one content."""
    if isinstance(content, list):
        yield from (part for part in content if part.get("type") != "text")


def text_of(content: Any, *, trimmed: bool = False) -> str:
    """Return what a content says in words; images and sounds are left out. `trimmed`: without the white space around
    each part, as templates join them."""
    if isinstance(content, list):
        texts = [str(part.get("text") or "") for part in content if isinstance(part, dict)]
        return "".join(text.strip() if trimmed else text for text in texts)
    return str(content or "")


def shown_parts(content: Any) -> str:
    """Return a content for a reader: each image and sound by its name, between the words around it."""
    if not isinstance(content, list):
        return str(content or "")
    return " ".join(
        str(part["text"]).strip() if part.get("type") == "text" else f"[{part.get('type')}]" for part in content
    )
