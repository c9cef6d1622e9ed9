"""Documents and seeds that hold each other's text: the strictest class of a text holds wherever it stands.

A document is as private as a stricter one that it is, holds (also without its headings), or is a piece of. A piece that
stands in several stricter documents which are no copies of each other is boilerplate, and stays what it says of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gemma_ops.privacy.canonical import canonical_text, letters
from gemma_ops.privacy.classes import PRIVACY, stricter
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.synth.material import Seed
from gemma_ops.synth.sources import Document

_PIECE = 60
"""Letters from which a document counts as a piece of a stricter one."""
_COMMON = 3


def tighten(
    documents: Sequence[Document], seeds: Sequence[Seed], private: PrivateTexts
) -> tuple[list[Document], list[Seed]]:
    """Return the sources, each with the strictest class of what it holds. `private` are texts from elsewhere, and grows
    by those of these sources that may not go everywhere."""
    for document in documents:
        for text in {document.body, document.plain}:
            private.add(text, document.privacy, document.name)
    for seed in seeds:
        private.add(seed.question, seed.privacy, seed.place)
        private.add(seed.answer, seed.privacy, seed.place, beside=True)
    if not len(private):
        return list(documents), list(seeds)
    pieces = _pieces(documents)
    found = [_tightened(document, private, pieces.get(canonical_text(document.body))) for document in documents]
    examples = []
    for seed in seeds:
        holds = private.strictest(f"{seed.question}\n{seed.answer}", seed.privacy)
        examples.append(replace(seed, privacy=holds.privacy) if holds else seed)
    return found, examples


def _tightened(document: Document, private: PrivateTexts, whole: Document | None) -> Document:
    for text in (document.body, document.plain):
        if holds := private.strictest(text, document.privacy):
            document = replace(document, privacy=holds.privacy, because=holds.name)
    if whole and stricter(whole.privacy, document.privacy) != document.privacy:
        document = replace(document, privacy=whole.privacy, because=whole.name)
    return document


def _pieces(documents: Sequence[Document]) -> dict[str, Document]:
    """Return the stricter document that a document is a piece of, by its canonical text."""
    plain = {document.name: canonical_text(document.body) for document in documents}
    lax: dict[str, Document] = {}
    index = PrivateTexts()
    for document in documents:
        if document.privacy != PRIVACY[0] and letters(plain[document.name]) >= _PIECE:
            known = lax.setdefault(plain[document.name], document)
            index.add(document.body, PRIVACY[0], known.name)
    holders: dict[str, dict[str, Document]] = {}
    for document in documents if len(index) else ():
        for name in {text.name for text in (*index.held(document.body), *index.held(document.plain))}:
            piece = lax[plain[name]]
            if stricter(document.privacy, piece.privacy) != piece.privacy:
                # Copies of one document count once: two are copies where their text is the same without headings.
                holders.setdefault(plain[name], {})[canonical_text(document.plain)] = document
    return {
        piece: min(found.values(), key=lambda document: PRIVACY.index(document.privacy))
        for piece, found in holders.items()
        if len(found) < _COMMON
    }
