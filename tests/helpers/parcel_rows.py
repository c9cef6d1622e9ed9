"""Prepared rows about parcels, for tests of files that are fitted or measured on rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def parcel_row(number: int) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "privacy": "paid",
        "messages": [
            {"role": "user", "content": f"Order {number * 37 % 911}: where is my parcel? I wait since day {number}."},
            {"role": "assistant", "content": f'{{"category": "shipping", "order": {number * 37 % 911}}}'},
        ],
    }


def write_parcels(folder: Path, train: Iterable[int], valid: Iterable[int]) -> Path:
    """Write the rows of these numbers to `folder` as the step `prepare` leaves them, and return it."""
    for name, numbers in (("train", train), ("valid", valid)):
        lines = "".join(json.dumps(parcel_row(number)) + "\n" for number in numbers)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder
