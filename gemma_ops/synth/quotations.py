"""The check that a quotation stands in the source. Exactly, apart from how white space is written; and long enough to
prove something.

Not looked for: whether the quotation supports the answer. That is what a judge is for.
"""

from __future__ import annotations

import re

from gemma_ops.data.hashed_words import hash_words
from gemma_ops.synth.sections import DocumentSection

SHORTEST = 3
"""Fewest words of a quotation: any text holds a "the"."""
_QUOTES = "\"'“”„«»‘’`"


def find_quotation(section: DocumentSection, quotation: str) -> tuple[int, int] | None:
    """Return where a quotation stands in the section's source, as [first, last + 1); None when it doesn't stand there.

    Quotation marks around it don't count. Case, punctuation and every letter inside must be the same.
    """
    for text in (quotation.strip(), quotation.strip().strip(_QUOTES).strip()):
        parts = text.split()
        if not parts:
            continue
        match = re.search(r"\s+".join(map(re.escape, parts)), section.text)
        if match:
            return section.document.reading.span(section.start + match.start(), section.start + match.end())
    return None


def too_short(quotation: str) -> bool:
    """True if a quotation is too short to prove anything."""
    return len(hash_words(quotation)) < SHORTEST
