"""The base of every section of the tree: frozen, strict, and able to say which of its settings decide a result."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Privacy = Literal["local_only", "paid", "any"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

LOCATION = "location"
"""Marker of a key that says where something lies; what lies there enters a fingerprint by its digest."""


class ConfigSection(BaseModel):
    """A part of the tree: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result: everything except locations, whose content counts instead of
        their name."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if LOCATION not in field.metadata:
                value = getattr(self, name)
                values[field.alias or name] = value.identity() if isinstance(value, ConfigSection) else value
        return values
