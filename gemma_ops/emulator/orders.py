"""Faults ordered in a YAML or JSON file: a list of mappings, each with the arguments of `Emulator.fail`.

- {fault: 429, times: 3, seconds: 2}
- {fault: slow, on: generate, share: 0.1, times: null}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from gemma_ops.config.section import ConfigSection
from gemma_ops.errors import ConfigError


class Order(ConfigSection):
    """One entry of the file."""

    fault: str
    times: Annotated[int, Field(ge=1)] | None = 1
    match: str | None = None
    on: str | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    seconds: Annotated[float, Field(ge=0)] = 1.0

    @field_validator("times", mode="before")
    @classmethod
    def _null(cls, value: Any) -> Any:
        return None if value in ("null", "~", "") else value


def read_orders(path: Path) -> list[Order]:
    """Read the orders of a file; raises ConfigError that names the entry and what is wrong with it."""
    form = "write a list such as [{fault: 429, times: 3, seconds: 2}, {fault: slow, on: generate, share: 0.1}]"
    try:
        # Every scalar is text here: YAML would read the key `on` as true.
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506  (builds only text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read: {error}", form) from error
    if not isinstance(found, list):
        raise ConfigError(f"{path} holds no list of faults", form)
    orders = []
    for number, entry in enumerate(found, 1):
        try:
            orders.append(Order.model_validate(entry))
        except ValidationError as error:
            why = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigError(f"{path}, entry {number}: {why}", form) from error
    return orders
