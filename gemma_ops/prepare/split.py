"""The split into training and validation rows, by a hash of their group: appended rows never move earlier ones."""

from __future__ import annotations

import hashlib


def split_position(group: str) -> float:
    """Return where a group lies in [0, 1), by BLAKE2b-64 of its name."""
    return (
        int.from_bytes(hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64
    )


class Split:
    """Split of groups by their position: below `share` is validation.

    With at least 20 rows and a share above 0 somebody must validate: when no group lies below the share, the lowest one
    does. That group alone moves back when rows that come later bring a lower one.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._rows = 0
        self._groups: set[str] = set()
        self._lowest: tuple[float, str] | None = None

    def add(self, group: str) -> None:
        """Count one row that will be kept."""
        self._rows += 1
        self._groups.add(group)
        place = (split_position(group), group)
        if self._lowest is None or place < self._lowest:
            self._lowest = place

    @property
    def groups(self) -> int:
        """Return how many groups there are."""
        return len(self._groups)

    def is_valid(self, group: str) -> bool:
        """True if a group's rows validate; ask after all rows were added."""
        if split_position(group) < self.share:
            return True
        forced = self.share > 0 and self._rows >= 20 and len(self._groups) > 1
        return bool(forced and self._lowest and self._lowest[0] >= self.share and self._lowest[1] == group)
