"""A look at the first rows of `data.path`, before anything runs: whether the training method learns from their kind."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from gemma_ops.config import RunConfig, methods
from gemma_ops.errors import DataError


def check_first_rows(config: RunConfig, source: Path) -> None:
    """Raise ConfigError or DataError where `train.method` learns nothing from the first rows; unreadable ones are
    reported by `prepare`."""
    from gemma_ops.data.example import check_kinds
    from gemma_ops.data.import_rows import kinds, peek
    from gemma_ops.data.parts import media_of
    from gemma_ops.data.row_files import is_datasets_folder

    if source.exists() and not is_datasets_folder(source):
        rows: list[dict[str, Any]] = []
        with suppress(DataError):
            rows = peek(source, config.data)
        check_kinds(kinds(rows), config.train.method, str(source))
        shown = {part["type"] for row in rows for part in media_of(row["messages"])}
        methods.check_shown_rows(config.train.method, shown, f"rows of {source}")
