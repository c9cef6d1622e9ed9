"""Strings that match a regular expression, for the patterns that schemas hold: literals, classes, repeats, choices."""

from __future__ import annotations

import random
import re
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

# rstr does the same, and backreferences too. Ours stays: the patterns that Gemini takes (RE2's) have none, and ours are
# short. rstr repeats up to 100 times, and more when nested (6,133 characters for a name of several words), all billed
# as tokens, and its limit is a constant of its module; it fails on possessive repeats, which ours reads.
_CATEGORIES = {
    kinds.CATEGORY_DIGIT: r"\d",
    kinds.CATEGORY_WORD: r"\w",
    kinds.CATEGORY_SPACE: r"\s",
    kinds.CATEGORY_NOT_DIGIT: r"\D",
    kinds.CATEGORY_NOT_WORD: r"\W",
    kinds.CATEGORY_NOT_SPACE: r"\S",
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 -"
"""Characters that classes are drawn from, also where a class is negated."""


def sample(pattern: str, chance: random.Random) -> str:
    """Return a short match; an empty string for a pattern that Python can't read."""
    try:
        return _several(parser.parse(pattern), chance)
    except (re.error, KeyError, NotImplementedError):
        return ""


def _several(parts: Any, chance: random.Random) -> str:
    return "".join(_one(kind, value, chance) for kind, value in parts)


def _one(kind: Any, value: Any, chance: random.Random) -> str:
    if kind is kinds.LITERAL:
        return chr(value)
    if kind is kinds.NOT_LITERAL:
        return "b" if value == ord("a") else "a"
    if kind is kinds.ANY:
        return "a"
    if kind is kinds.IN:
        return _from_class(value, chance)
    if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
        least, most, parts = value
        count = chance.randint(least, min(int(most), least + 2) if int(most) > least else least)
        return "".join(_several(parts, chance) for _ in range(max(count, min(1, int(most)))))
    if kind is kinds.SUBPATTERN:
        return _several(value[-1], chance)
    if kind is kinds.BRANCH:
        return _several(chance.choice(value[1]), chance)
    if kind is kinds.AT:
        return ""
    raise NotImplementedError(kind)


def _from_class(items: Any, chance: random.Random) -> str:
    negated = bool(items) and items[0][0] is kinds.NEGATE
    letters: list[str] = []
    for kind, value in items[negated:]:
        if kind is kinds.LITERAL:
            letters.append(chr(value))
        elif kind is kinds.RANGE:
            letters += [chr(code) for code in range(value[0], min(value[1], value[0] + 200) + 1)]
        elif kind is kinds.CATEGORY:
            letters += re.findall(_CATEGORIES[value], _LETTERS)
    if negated:
        letters = [letter for letter in _LETTERS if letter not in letters] or ["~"]
    return chance.choice(letters)
