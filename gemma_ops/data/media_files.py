"""The files behind image and audio parts: found, checked, and kept under the digest of their bytes.

A stored part says all that tokens depend on, so that no later step opens a file to count: `{"type": "image", "path":
"media/<sha256>.png", "width": …, "height": …}` or `{"type": "audio", "path": "media/<sha256>.wav", "samples": …}` (at
16 kHz). The path is relative to the folder of the rows' file. An id of a row covers it, and with it the bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gemma_ops.data import parts, pictures
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError
from gemma_ops.family.media import LONGEST, RATE, Kind, Senses

FOLDER = "media"
_DATA = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)


class MediaShelf:
    """Store of images and sounds: it turns sources into stored parts, each file once.

    `root` is the folder that relative paths start from, `senses` what the model takes; `out` the folder below which
    files are kept (hard links where the disk allows, copies otherwise), None to look only. `whole` decodes images,
    which finds files that were cut off. `found` tells where the bytes of each stored path lie.
    """

    def __init__(
        self,
        root: Path | None,
        senses: Senses | None,
        *,
        out: Path | None = None,
        most_mb: float = 20.0,
        whole: bool = True,
    ) -> None:
        self.root = root
        self.senses = senses
        self.out = out
        self.most = int(most_mb * 1e6)
        self.whole = whole
        self.found: dict[str, Path | bytes] = {}
        self._parts: dict[tuple[str, Path], parts.Part] = {}

    def store(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the conversation with every source opened, checked and stored. Raises RowError."""
        return [
            {**message, "content": [self._stored(part) for part in message["content"]]}
            if isinstance(message.get("content"), list)
            else message
            for message in messages
        ]

    def _stored(self, part: parts.Part) -> parts.Part:
        if part["type"] == "text":
            return part
        kind, source = part["type"], part.get("source")
        if source is None:
            raise RowError("no_media", f"a part of type {kind} names no file, and the row has no column with one")
        if self.senses is not None and kind not in self.senses.kinds:
            takes = " and ".join(self.senses.kinds) or "text only"
            raise RowError("wrong_modality", f"the row has {_a(kind)}, and this model takes {takes}")
        if isinstance(source, bytes):
            return self._describe(kind, source, None, "its bytes")
        if match := _DATA.match(source):
            return self._describe(kind, self._decoded(source, match.end()), None, "its data: URI")
        path = self._path(source)
        known = self._parts.get((kind, path))
        if known is None:
            known = self._describe(kind, self._read(path, source), path, source)
            self._parts[kind, path] = known
        return known

    def _path(self, source: str) -> Path:
        url = urlsplit(source)
        if url.scheme == "file":
            source = unquote(url.path)
        elif "://" in source:
            raise RowError(
                "remote_media",
                f"{source[:120]} is not on this machine: download it and name the file, nothing is fetched",
            )
        path = Path(source).expanduser()
        if self.root is None and not path.is_absolute():
            raise RowError("no_media", f"{source} is relative, and rows from the Hub have no folder")
        return path if path.is_absolute() else (self.root or Path()) / path

    def _read(self, path: Path, name: str) -> bytes:
        try:
            size = path.stat().st_size
            if size > self.most:
                raise RowError(
                    "media_too_large", f"{name} has {size / 1e6:.1f} MB, above data.max_media_mb ({self.most / 1e6:g})"
                )
            return path.read_bytes()
        except OSError as error:
            code = "no_media" if isinstance(error, FileNotFoundError) else "unreadable_media"
            raise RowError(code, f"{name} can't be read: {error.strerror or error}") from None

    def _decoded(self, source: str, start: int) -> bytes:
        if len(source) - start > self.most * 4 // 3 + 4:
            raise RowError("media_too_large", f"a data: URI is above data.max_media_mb ({self.most / 1e6:g})")
        if ";base64" not in source[:start]:
            raise RowError("unreadable_media", "a data: URI is not base64")
        try:
            return base64.b64decode("".join(source[start:].split()), validate=True)
        except binascii.Error as error:
            raise RowError("unreadable_media", f"a data: URI is not base64: {error}") from None

    def _describe(self, kind: Kind, data: bytes, path: Path | None, name: str) -> parts.Part:
        if len(data) > self.most:
            raise RowError("media_too_large", f"{name} has {len(data) / 1e6:.1f} MB, above data.max_media_mb")
        try:
            ending, facts = _facts(kind, data, whole=self.whole)
        except pictures.UnreadableError as error:
            raise RowError("unreadable_media", f"{name}: {error}") from None
        if facts.get("samples", 0) > LONGEST:
            raise RowError(
                "media_too_long",
                f"{name} takes {facts['samples'] / RATE:.1f} s, longer than the {LONGEST // RATE} s that Gemma 4 "
                "hears: cut it into pieces",
            )
        name_here = f"{FOLDER}/{hashlib.sha256(data).hexdigest()}.{ending}"
        part = {"type": kind, "path": name_here, **facts}
        if self.senses is not None and not self.senses.tokens(part):
            raise RowError("media_too_short", f"{name} is too short: it gives not one token")
        self.found[name_here] = path or data
        if self.out is not None:
            _keep(self.out / name_here, data, path)
        return part


def _facts(kind: Kind, data: bytes, *, whole: bool) -> tuple[str, dict[str, int]]:
    if kind == "image":
        ending, width, height = pictures.picture_facts(data, whole=whole)
        if not width or not height:
            raise pictures.UnreadableError("the image has no pixels")
        return ending, {"width": width, "height": height}
    from gemma_ops.data import sounds

    ending, samples = sounds.sound_facts(data)
    return ending, {"samples": samples}


def _keep(target: Path, data: bytes, path: Path | None) -> None:
    """Link the file into the store, or write its bytes; what is there already has the same digest."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path is not None:
        with suppress(OSError):  # another disk, or one without links
            os.link(path.resolve(), target)
            return
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")  # another process may keep the same file
    temporary.write_bytes(data)
    shutil.move(temporary, target)


def _a(kind: str) -> str:
    return "an image" if kind == "image" else "audio"


def senses(model: Path) -> Senses:
    """Return what the checkpoint in a folder (or artifact) takes besides text."""
    from gemma_ops.data.chat import tokenizer_file

    return Senses.read(tokenizer_file(model).parent)


def bytes_of(part: Mapping[str, Any], places: Path | Mapping[str, Path | bytes]) -> bytes:
    """Return the bytes of a stored part, compared with the digest in its name.

    `places` is the folder of the rows' file, or where each path lies. Raises DataError when the file is gone or was
    changed since: a link into somebody's folder is only as constant as that folder.
    """
    name = str(part["path"])
    place = places / name if isinstance(places, Path) else places[name]
    if isinstance(place, bytes):
        return place
    try:
        data = place.read_bytes()
    except OSError as error:
        raise DataError(
            f"{place} can't be read: {error.strerror or error}", "prepare the data again: --redo prepare"
        ) from None
    if hashlib.sha256(data).hexdigest() != Path(name).stem:
        raise DataError(f"{place} was changed after the rows were prepared", "prepare the data again: --redo prepare")
    return data


def of_question(messages: Sequence[dict[str, Any]], row: Mapping[str, Any], shelf: MediaShelf) -> list[dict[str, Any]]:
    """Return the turns of an evaluation question with stored parts, whatever spelling they came in; `row` may have
    columns of files. Raises RowError."""
    notes: list[str] = []
    turns = [
        {**message, "content": parts.of_content(message["content"], "a message", notes)}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message in messages
    ]
    parts.media_place(turns, parts.media_columns(dict(row)))
    return shelf.store(turns)
