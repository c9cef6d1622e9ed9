"""Rows out of Arrow tables: Parquet files, `datasets` folders, the Hub.

Arrow gives every object of a column the same keys and fills those that a row doesn't have with null; a class label is
stored as a number. Both are undone, and noted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_ops.errors import DataError, ServiceError

Row = dict[str, Any]
Numbered = tuple[int, Any, tuple[str, ...]]
"""A row's number from 1, its value, and codes of the repairs made to it."""
_BATCH = 512  # rows held at a time


def parquet_rows(path: Path) -> Iterator[Numbered]:
    """Yield the rows of a Parquet file. Raises DataError for a file that is not whole."""
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            features = _features_in(file.schema_arrow.metadata or {})
            for batch in file.iter_batches(batch_size=_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield number, *undone(value, features)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is not a whole Parquet file (row {number + 1}): {error}", "write or copy it again"
        ) from error


def folder_rows(source: Path, split: str) -> Iterator[Numbered]:
    """Yield the rows of a folder that `datasets.save_to_disk` wrote. Raises DataError for one that can't be read, or
    has no such split."""
    import datasets

    try:
        found = datasets.load_from_disk(str(source))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source} can't be read as a datasets folder: {error}", "save it again with save_to_disk"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"{source} has no split {split}; it has {', '.join(found)}", "set data.split")
        found = found[split]
    for number, value in enumerate(_undecoded(found), 1):
        yield number, *undone(value, dict(found.features or {}))


def hub_rows(name: str, split: str) -> Iterator[Numbered]:
    """Stream the rows of a data set of the Hub. Raises DataError for one that isn't there, ServiceError without a
    network."""
    import datasets

    offline = f"the Hub data set {name} can't be reached"
    fix = "check the network and HF_HUB_OFFLINE, or download it elsewhere (save_to_disk) and set data.path"
    try:
        found = _undecoded(datasets.load_dataset(name, split=split, streaming=True))
        for number, value in enumerate(found, 1):
            yield number, *undone(value, dict(found.features or {}))
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"there is no Hub data set {name}, or it needs a login", "correct data.hub, or `hf auth login`"
        ) from error
    except OSError as error:
        raise ServiceError(f"{offline}: {error}", fix) from error
    except ValueError as error:
        raise DataError(f"the Hub data set {name} can't be read: {error}", "correct data.hub or data.split") from error


def undone(row: Row, features: Row) -> tuple[Row, tuple[str, ...]]:
    """Return a row without the nulls that Arrow filled into its objects and with its class labels by name, and the
    codes `arrow_nulls` and `labels_named` where there were any. A column's own null stays: it is an empty cell."""
    notes: dict[str, None] = {}
    made = {}
    for name, value in row.items():
        named = _named(value, features.get(name))
        notes |= {"labels_named": None} if named != value else {}
        made[name] = without_nulls(named)
        notes |= {"arrow_nulls": None} if made[name] != named else {}
    return made, tuple(notes)


def without_nulls(value: Any) -> Any:
    """Return a value without the null entries of its objects, however deep."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _named(value: Any, feature: Any) -> Any:
    """Return a value with the numbers of class labels replaced by their names, as its feature says; -1 is no label."""
    names = getattr(feature, "names", None)
    if isinstance(names, list) and isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else None
    inner = getattr(feature, "feature", None)
    if inner is None and isinstance(feature, list) and len(feature) == 1:
        inner = feature[0]
    if inner is not None and isinstance(value, list):
        return [_named(item, inner) for item in value]
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _named(item, feature.get(key)) for key, item in value.items()}
    return value


def _features_in(metadata: dict[bytes, bytes]) -> Row:
    """Return what `datasets` wrote of its columns into a Parquet file's metadata; empty where it didn't write the
    file."""
    import datasets

    try:
        described = json.loads(metadata[b"huggingface"])["info"]["features"]
        return dict(datasets.Features.from_dict(described))
    except (KeyError, ValueError, TypeError):
        return {}


def _undecoded(found: Any) -> Any:
    """Return the data set with images and sounds as the bytes or paths they were given as, not as decoded objects."""
    import datasets

    for name, feature in (found.features or {}).items():
        inner = feature.feature if isinstance(feature, datasets.List) else feature
        if isinstance(inner, datasets.Image | datasets.Audio):
            raw = type(inner)(decode=False)
            found = found.cast_column(name, datasets.List(raw) if inner is not feature else raw)
    return found
