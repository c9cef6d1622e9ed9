"""Files that appear whole or not at all: written next to their name, forced to disk, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file for writing that appears under its name only when all of it is on disk."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as file:
        file.write(text)


def write_json(path: Path, body: Any, *, indent: int = 1) -> None:
    """Write JSON whole or not at all; the same value gives the same bytes."""
    write_text(path, json.dumps(body, ensure_ascii=False, indent=indent) + "\n")
