"""Routes from path to operation, in all the spellings that google-genai uses: Developer API (v1, v1beta) and enterprise
(`projects/…/publishers/google/models/…`, or `publishers/google/models/…` with a key)."""

from __future__ import annotations

import re

from gemma_ops.wire.gemini_wire import Refusal

_CLOUD = r"(?P<cloud>(?:projects/[^/]+/locations/[^/]+/)?publishers/google/|projects/[^/]+/locations/[^/]+/)?"
_PREFIX = rf"/(?P<version>v1|v1alpha|v1beta|v1beta1)/{_CLOUD}"
_MODEL = r"(?:models|tunedModels)/(?P<name>[^/:]+)"

_ROUTES = [
    (method, re.compile((_PREFIX if not path.startswith("/") else "") + path + "$"), op)
    for method, path, op in [
        ("POST", _MODEL + ":generateContent", "generate"),
        ("POST", _MODEL + ":streamGenerateContent", "stream"),
        ("POST", _MODEL + ":countTokens", "count"),
        ("POST", _MODEL + ":batchGenerateContent", "batch_create"),
        ("POST", _MODEL + ":embedContent", "embed"),
        ("POST", _MODEL + ":batchEmbedContents", "embed_many"),
        ("POST", "interactions", "interaction"),
        ("GET", "models", "models"),
        ("GET", _MODEL, "model"),
        ("GET", "batches", "batch_list"),
        ("GET", "batches/(?P<name>[^/:]+)", "batch_get"),
        ("POST", "batches/(?P<name>[^/:]+):cancel", "batch_cancel"),
        ("DELETE", "batches/(?P<name>[^/:]+)", "batch_delete"),
        ("GET", "files", "file_list"),
        ("GET", "files/(?P<name>[^/:]+)", "file_get"),
        ("GET", "files/(?P<name>[^/:]+):download", "file_download"),
        ("GET", "/download/(?P<version>v1|v1beta)/files/(?P<name>[^/:]+):download", "file_download"),
        ("DELETE", "files/(?P<name>[^/:]+)", "file_delete"),
        ("POST", "/upload/(?P<version>v1|v1beta)/files", "upload_start"),
        ("POST", "/upload-session/(?P<name>[^/:]+)", "upload"),
        ("PUT", "/upload-session/(?P<name>[^/:]+)", "upload"),
        ("POST", "cachedContents", "cache_create"),
        ("GET", "cachedContents", "cache_list"),
        ("GET", "cachedContents/(?P<name>[^/:]+)", "cache_get"),
        ("PATCH", "cachedContents/(?P<name>[^/:]+)", "cache_patch"),
        ("DELETE", "cachedContents/(?P<name>[^/:]+)", "cache_delete"),
    ]
]

GROUPS = {
    "generate": ("generate", "stream"),
    "interaction": ("interaction",),
    "stream": ("stream",),
    "item": ("item",),
    "count": ("count",),
    "batch": ("batch_create",),
    "poll": ("batch_get",),
    "cancel": ("batch_cancel",),
    "upload": ("upload_start", "upload"),
    "download": ("file_download",),
    "cache": ("cache_create", "cache_get", "cache_list", "cache_patch", "cache_delete"),
    "embed": ("embed", "embed_many"),
    "models": ("models", "model"),
}
"""Names for operations that a fault may be limited to; `item` is one request inside a batch."""


def match_route(method: str, path: str) -> tuple[str, dict[str, str]]:
    """Return the operation and its named parts (`name`, `version`, `cloud`); raises the service's 404."""
    for wanted, pattern, op in _ROUTES:
        if wanted == method and (found := pattern.match(path)):
            return op, {key: value or "" for key, value in found.groupdict().items()}
    raise Refusal(404, f"Requested entity was not found: no {method} at {path}.")
