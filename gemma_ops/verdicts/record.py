"""The common form of every part of a verdict: a frozen record that is read leniently and written strictly.

A file of a newer version may hold keys that this one doesn't know; they are left out. What is made here may not: a key
that no field takes is an error. A key that was not given is not written, so that a file keeps the bytes that it had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from gemma_ops.errors import DataError

Number = float | int
"""A figure that is written as it was given: `0` stays `0`, and `0.0` stays `0.0`."""
_STRICT = "strict"
R = TypeVar("R", bound="VerdictRecord")


class VerdictRecord(BaseModel):
    """A part of a verdict. Unknown is None, or a key that isn't there; it is never zero."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        ser_json_inf_nan="constants",
        defer_build=True,  # when the first file is read: a verb that reads none doesn't wait for it
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, body: Any, info: ValidationInfo) -> Any:
        if info.context == _STRICT and isinstance(body, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            if unknown := [key for key in body if key not in known]:
                raise ValueError(f"no field takes {', '.join(map(repr, unknown))}")
        return body

    @classmethod
    def made(cls, body: dict[str, Any]) -> Self:
        """Make the record from what was just measured. Raises pydantic's ValidationError, which is a ValueError, for a
        key that no field takes, at any depth."""
        return cls.model_validate(body, context=_STRICT)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that is written: keys in the order of the fields, without those that were never
        given."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def text(self) -> str:
        """Return the file's content: JSON with one space per level, non-ASCII characters as they are, a newline at the
        end."""
        return json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n"


def read_record(path: Path, kind: type[R], schema: str, fix: str) -> R:
    """Read a record from a file. Raises DataError, with `fix` as the way out, for a file that is none of this schema;
    the message names the first field that is wrong."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}", fix) from error
    return parse_record(body, kind, schema, fix, str(path))


def parse_record(body: Any, kind: type[R], schema: str, fix: str, where: str) -> R:
    """Parse a record from the content of a file that lies at `where`."""
    told = body.get("schema") if isinstance(body, dict) else None
    if told != schema:
        raise DataError(f"{where} can't be read: its schema is {told!r}, not {schema!r}", fix)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise DataError(f"{where} can't be read: {field}: {first['msg']}", fix) from error
