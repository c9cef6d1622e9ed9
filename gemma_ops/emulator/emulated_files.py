"""Files: the resumable upload (start, then bytes in pieces, then finalize), listing, download, deletion."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.emulator.emulated_wire import EmulatedCall, Reaction
from gemma_ops.wire.gemini_wire import Refusal

_KEPT = 48 * 3600
"""Seconds until a file expires."""


def stamp(seconds: float) -> str:
    """Return a time as the service writes it: RFC 3339, UTC."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


@dataclass
class Upload:
    """An upload under way."""

    name: str
    about: dict[str, Any]
    mime: str
    data: bytearray = field(default_factory=bytearray)


@dataclass
class StoredFile:
    """A file."""

    about: dict[str, Any]
    data: bytes


class Files:
    """All files of the service, uploaded by clients or written by batches."""

    def __init__(self, address: Callable[[], str], new_id: Callable[[], str]) -> None:
        self._address = address
        self._new_id = new_id
        self._files: dict[str, StoredFile] = {}
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def start(self, call: EmulatedCall) -> Reaction:
        """Open an upload; the reply's header says where the bytes go."""
        if call.headers.get("x-goog-upload-protocol") != "resumable":
            raise Refusal(400, "Only the resumable upload protocol is supported.")
        about = call.body.get("file") or {}
        name = str(about.get("name") or f"files/{self._new_id()}")
        mime = call.headers.get("x-goog-upload-header-content-type") or about.get("mimeType")
        if not mime:
            raise Refusal(400, "Unsupported MIME type: an upload needs one.")
        with self._lock:
            if name in self._files:
                raise Refusal(409, f"File {name} already exists.")
            session = self._new_id()
            self._uploads[session] = Upload(name, about, str(mime))
        where = f"{self._address()}/upload-session/{session}"
        return Reaction(200, {}, {"X-Goog-Upload-URL": where, "X-Goog-Upload-Status": "active"})

    def receive(self, call: EmulatedCall) -> Reaction:
        """Take bytes at an offset, or report how many arrived (`query`); `finalize` makes them a file."""
        with self._lock:
            upload = self._uploads.get(call.name)
            if upload is None:
                raise Refusal(404, "The upload session was not found.")
            command = call.headers.get("x-goog-upload-command", "")
            received = {"X-Goog-Upload-Size-Received": str(len(upload.data))}
            if command == "query":
                return Reaction(200, {}, {"X-Goog-Upload-Status": "active"} | received)
            if int(call.headers.get("x-goog-upload-offset", 0)) != len(upload.data):
                raise Refusal(400, f"The offset does not match: {len(upload.data)} bytes were received.")
            upload.data += call.raw
            if "finalize" not in command:
                return Reaction(200, {}, {"X-Goog-Upload-Status": "active"})
            del self._uploads[call.name]
            about = self._keep(upload.name, bytes(upload.data), upload.mime, upload.about, "UPLOADED")
        return Reaction(200, {"file": about}, {"X-Goog-Upload-Status": "final"})

    def abort(self, call: EmulatedCall) -> Reaction:
        """End an upload in an error, as the protocol does it: the session is final, the status says why."""
        with self._lock:
            self._uploads.pop(call.name, None)
        return Reaction(
            503, Refusal(503, "The upload failed. Please try again.").body(), {"X-Goog-Upload-Status": "final"}
        )

    def write(self, data: bytes, mime: str) -> str:
        """Store a file of the service's own, and return its name."""
        with self._lock:
            name = f"files/batch-{self._new_id()}"
            self._keep(name, data, mime, {}, "GENERATED")
        return name

    def read(self, name: str) -> bytes:
        return self._find(name).data

    def describe(self, call: EmulatedCall) -> Reaction:
        return Reaction(200, self._find(f"files/{call.name}").about)

    def download(self, call: EmulatedCall) -> Reaction:
        return Reaction(200, self.read(f"files/{call.name}"), {"Content-Type": "application/octet-stream"})

    def delete(self, call: EmulatedCall) -> Reaction:
        self._find(f"files/{call.name}")
        with self._lock:
            self._files.pop(f"files/{call.name}", None)
        return Reaction(200, {})

    def list(self, call: EmulatedCall) -> Reaction:
        with self._lock:
            found = [stored.about for stored in self._files.values()]
        return Reaction(200, files_page(call, "files", found, 10))

    def _find(self, name: str) -> StoredFile:
        with self._lock:
            stored = self._files.get(name)
        if stored is None:
            raise Refusal(
                403, f"You do not have permission to access the File {name.removeprefix('files/')} or it may not exist."
            )
        return stored

    def _keep(self, name: str, data: bytes, mime: str, about: dict[str, Any], source: str) -> dict[str, Any]:
        now = time.time()
        kept = {
            "name": name,
            "mimeType": mime,
            "sizeBytes": str(len(data)),
            "createTime": stamp(now),
            "updateTime": stamp(now),
            "expirationTime": stamp(now + _KEPT),
            "sha256Hash": base64.b64encode(hashlib.sha256(data).hexdigest().encode()).decode(),
            "uri": f"{self._address()}/v1beta/{name}",
            "state": "ACTIVE",
            "source": source,
        }
        if about.get("displayName"):
            kept["displayName"] = about["displayName"]
        if source == "GENERATED":
            kept["downloadUri"] = f"{self._address()}/download/v1beta/{name}:download?alt=media"
        self._files[name] = StoredFile(kept, data)
        return kept


def files_page(call: EmulatedCall, name: str, items: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Return one page of a list: `pageSize` and `pageToken` as the caller asks, `nextPageToken` while there is more."""
    size = int(call.query.get("pageSize") or call.query.get("page_size") or size)
    start = int(call.query.get("pageToken") or call.query.get("page_token") or 0)
    result: dict[str, Any] = {name: items[start : start + size]} if items else {}
    if start + size < len(items):
        result["nextPageToken"] = str(start + size)
    return result
