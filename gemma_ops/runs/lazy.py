"""Functions of a room that import their file when they are called, so that a step which is kept costs no import."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def later(module: str, name: str) -> Callable[..., Any]:
    """Return a function that hands over to the function `name` of `module`, which is imported at the first call.

    For a room's `__init__`, under `else` of `if TYPE_CHECKING`, whose import says the signature to whoever reads or
    checks.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    call.__doc__ = f"See `{module}.{name}`."
    return call
