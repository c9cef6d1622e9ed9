"""Content digests: of a file, a folder, and of settings in canonical JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gemma_ops.config import ConfigSection

_CHUNK = 1 << 20


def of_file(path: Path) -> str:
    """Return SHA-256 (hex) of the bytes of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def files_in(folder: Path, *, links: bool = True) -> list[Path]:
    """Regular files below `folder`, sorted by relative path; with `links`, also files that a symbolic link leads to
    (a Hub snapshot holds nothing else). Linked folders are not entered.
    """
    found = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        paths = [Path(root) / name for name in names]
        found += [path for path in paths if path.is_file() and (links or not path.is_symlink())]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def of_listing(listing: dict[str, str]) -> str:
    """Digest of a {relative path: sha256} listing; independent of order and of where the folder lies."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(listing.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def of_path(path: Path) -> str:
    """Digest of a file's bytes, or of a folder's listing."""
    if path.is_dir():
        return of_listing({file.relative_to(path).as_posix(): of_file(file) for file in files_in(path)})
    return of_file(path)


def canonical(value: Any) -> Any:
    """Reduce settings to JSON that has one spelling.

    Raises TypeError on anything without a stable form: a permissive `str(x)` would fork fingerprints silently.
    """
    if isinstance(value, ConfigSection):
        return canonical(value.identity())
    if isinstance(value, BaseModel):
        return canonical(value.model_dump(mode="json", by_alias=True))
    if isinstance(value, dict):
        return {str(key): canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no canonical form for {type(value).__name__}: {value!r}")


def of_json(value: Any) -> str:
    """Return SHA-256 (hex) of the canonical JSON of a value."""
    text = json.dumps(canonical(value), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Cache of file digests by size, modification time and inode, so that a base of 60 GB is read once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._known: dict[str, list[Any]] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}  # only a shortcut: without it everything is read again

    def of_path(self, path: Path) -> str:
        """Return the digest of a file or folder, skipping files already read and unchanged since."""
        if path.is_dir():
            listing = {file.relative_to(path).as_posix(): self._of_file(file) for file in files_in(path)}
            result = of_listing(listing)
        else:
            result = self._of_file(path)
        self._write()
        return result

    def of_files(self, files: Iterable[Path], root: Path) -> str:
        """Return the digest of a listing of many files, each named by its path relative to `root` (or in full, where it
        lies elsewhere)."""
        listing = {os.path.relpath(file, root): self._of_file(file) for file in files}
        self._write()
        return of_listing(listing)

    def _write(self) -> None:
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self._known), encoding="utf-8")
        temporary.replace(self._file)

    def _of_file(self, path: Path) -> str:
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        key = str(path.resolve())
        known = self._known.get(key)
        if known and known[:3] == mark:
            return str(known[3])
        self._known[key] = [*mark, of_file(path)]
        return str(self._known[key][3])
