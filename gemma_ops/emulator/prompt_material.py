"""The subject of a prompt: its longest passage, that passage's sentences, and words that stand for a sentence."""

from __future__ import annotations

import re

_BLOCKS = (
    re.compile(r"<([A-Za-z][\w-]*)(?:\s[^<>]*)?>\n?(.*?)\n?</\1>", re.DOTALL),
    re.compile(r"\[BEGIN ([^\]\n]+)\]\n?(.*?)\n?\[END \1\]", re.DOTALL),
    re.compile(r"(```|\"\"\"|~~~)[\w-]*\n(.*?)\n?\1", re.DOTALL),
    re.compile(r"(?m)^(-{3,}|={3,}).*\n((?:.|\n)*?)\n?^\1.*$"),
)
_BETWEEN = re.compile(r"""(?<=[.!?])(?<![A-Z][a-z]\.)\s+(?=["'(\[]?[A-Z0-9\u00c0-\u00dd])""")
_MARKUP = re.compile(r"^\s*(?:#{1,6}\s|[-*|>]\s|\d+[.)]\s|<[^>]+>\s*$)")
_LONGEST = 240
"""Characters of the longest sentence that is quoted."""
_COMMON_WORDS = (
    "about above after again against also because been before being below between both cannot could does doing down "
    "during each every from further have having here into itself just more most must never only other over same shall "
    "should some such than that their them then there these they this those through under until upon very were what "
    "when where which while will with within without would your yours"
)
_COMMON = frozenset(_COMMON_WORDS.split())


def passage(texts: list[str]) -> str:
    """Return the document in a prompt: the longest passage between delimiters, or else the longest text."""
    found = [text for text in blocks(texts) if len(text.split()) >= 8]
    return max(found or texts or [""], key=len)


def blocks(texts: list[str]) -> list[str]:
    """Return everything that stands between delimiters."""
    return [match.group(2) for text in texts for block in _BLOCKS for match in block.finditer(text)]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each an exact substring; headings and fragments are left out where there is
    anything else."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "```"))]
    found = [sentence.strip() for line in lines for sentence in _BETWEEN.split(_plain(line))]
    found = [_short(sentence) for sentence in found if sentence]
    return [sentence for sentence in found if len(sentence.split()) >= 4] or found or [text.strip()[:_LONGEST]]


def topic(sentence: str, most: int = 3) -> str:
    """Return the words that carry a sentence, in its order."""
    words = re.findall(r"\w[\w'-]*", sentence)
    telling = [word for word in words if len(word) > 3 and word.lower() not in _COMMON] or words
    kept = sorted(set(telling), key=lambda word: (-len(word), word))[:most]
    return " ".join(dict.fromkeys(word for word in words if word in kept)) or "the text"


def _plain(line: str) -> str:
    """Return the line without the mark of a list item or a quotation."""
    return _MARKUP.sub("", line)


def _short(sentence: str) -> str:
    if len(sentence) <= _LONGEST:
        return sentence
    return sentence[:_LONGEST].rsplit(" ", 1)[0]
