"""Things in groups that fit into some room together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def groups_within(items: Iterable[Item], size_of: Callable[[Item], int], room: int) -> Iterator[list[Item]]:
    """Yield the items in order, in groups of at most `room` in all; one that is larger makes a group of its own."""
    group: list[Item] = []
    size = 0
    for item in items:
        needed = size_of(item)
        if group and size + needed > room:
            yield group
            group, size = [], 0
        group.append(item)
        size += needed
    if group:
        yield group
