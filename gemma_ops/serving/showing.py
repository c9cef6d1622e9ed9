"""Images and sounds in a request: taken out of its body, checked, and put where the prompt's soft tokens stand.

A body is read strictly without them, and a mark that nobody can guess stands in their place (`wire.beyond`). A model
without senses refuses them by name. What is shown is never fetched from elsewhere: it comes with the request.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemma_ops.data.encoded import Encoded
from gemma_ops.data.media_files import MediaShelf
from gemma_ops.data.parts import media_of
from gemma_ops.data.rowerror import RowError
from gemma_ops.family.media import Senses
from gemma_ops.serving.engine import ShownMedia
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.beyond import Beyond

_MOST_MB = 20.0
"""Largest image or sound, in MB; requests have a limit of their own."""
_TURNS = ("messages", "contents")


@dataclass(frozen=True)
class ShownTurns:
    """Turns in OpenAI's spelling whose images and sounds are stored parts, and where their bytes lie."""

    messages: list[dict[str, Any]]
    found: Mapping[str, Path | bytes]

    def at(self, encoded: Encoded) -> ShownMedia | None:
        """Return the media of the encoded turns; None where they are text alone."""
        parts = media_of(self.messages)
        if not parts:
            return None
        data = {
            path: bytes(where) if isinstance(where, bytes) else where.read_bytes() for path, where in self.found.items()
        }
        return ShownMedia(tuple(parts), data, tuple(encoded.types()))


def read_with_media(
    body: Any, read: Callable[[Any], Ask], take_out: Callable[[Any], Beyond], senses: Senses | None
) -> Ask:
    """Read a request as `read` takes it, with its images and sounds. Raises RefusalError for what the model doesn't see
    or hear, by its kind."""
    if senses is None or not senses.kinds:
        return read(body)
    beyond = take_out(body)
    if not beyond.shown:
        return read(body)
    if strange := sorted(set(beyond.modalities) - {"text", *senses.kinds}):
        raise _not_taken(strange, senses)
    turns = {name: beyond.body[name] for name in _TURNS if name in beyond.body}
    return replace(read(body | turns), shown=beyond.shown)


def shown_turns(
    messages: Sequence[Mapping[str, Any]], shown: Mapping[str, Mapping[str, Any]], senses: Senses | None
) -> ShownTurns:
    """Return turns in which the marks of `shown` stand, with what they stand for. Raises RefusalError for what the
    model doesn't take, or what is no image or sound."""
    if not shown:
        return ShownTurns([dict(message) for message in messages], {})
    if senses is None:
        raise RefusalError("this model is served for text", field="messages", code="unsupported_content")
    restored = Beyond({}, {mark: dict(part) for mark, part in shown.items()}).restored(messages)
    turns = [{**turn, "content": _content(turn.get("content"), senses)} for turn in restored]
    shelf = MediaShelf(None, senses, most_mb=_MOST_MB)
    try:
        return ShownTurns(shelf.store(turns), shelf.found)
    except RowError as error:
        raise RefusalError(error.reason, field="messages", code=error.code) from error


def _content(content: Any, senses: Senses) -> Any:
    return [_part(part, senses) for part in content] if isinstance(content, list) else content


def _part(part: dict[str, Any], senses: Senses) -> dict[str, Any]:
    if part["type"] != "media":
        return part
    kind = str(part["mime"]).partition("/")[0]
    if kind not in senses.kinds:
        raise _not_taken([kind], senses)
    try:
        return {"type": kind, "source": base64.b64decode(part["data"], validate=True)}
    except binascii.Error:
        raise RefusalError(f"the {kind}'s data is no base64", field="messages") from None


def _not_taken(kinds: Sequence[str], senses: Senses) -> RefusalError:
    takes = " and ".join(("text", *senses.kinds))
    return RefusalError(
        f"{' and '.join(kinds)} can't be shown to this model: it takes {takes}",
        field="messages",
        code="unsupported_content",
    )
