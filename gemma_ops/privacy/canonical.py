"""A text's letters and digits without its formatting, to tell whether one text is another, or stands inside it.

Case, white space, punctuation, compatibility forms (NFKC), markup of HTML and Markdown, list numbers, invisible
characters and JSON's escapes all go; letters and digits stay, in order. Combining marks that have no composed form go
too, so texts are taken for equal rather than for different.
"""

from __future__ import annotations

import html
import re
import unicodedata

_COMMENT = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,2000}>")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\((?:[^()\s]|\([^()]*\))*(?:\s+\"[^\"]*\")?\)")
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})[^\n]*$", re.MULTILINE)
_NUMBER = re.compile(r"^[ \t>]*\d{1,3}[.)][ \t]+", re.MULTILINE)
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\([nrt])")
_DRESS = re.compile(r"[\W_]+")
_ASCII = {code: chr(code).lower() if chr(code).isalnum() else None for code in range(128)}
_WIDE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of scripts that say more with one sign: each counts as two."""


def canonical_text(text: str) -> str:
    """Return a text's letters and digits, in order: `**Ｔhe** <b>ÄRGER</b>\n` and `the ärger` become `theärger`."""
    if "<" in text:
        text = _TAG.sub("", _COMMENT.sub("", text))
    if "\\" in text:
        text = _ESCAPE.sub(_unescaped, text)
    if "&" in text:
        text = html.unescape(text)
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    if "```" in text or "~~~" in text:
        text = _FENCE.sub("", text)
    if "\n" in text or _NUMBER.match(text):
        text = _NUMBER.sub("", text)
    if text.isascii():  # of which nothing has another form
        return text.translate(_ASCII)
    # Folding case can undo the compatibility form (a capital with a dot), so it is made again.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _DRESS.sub("", text)


def letters(canonical: str) -> int:
    """Return how much a canonical text says: its length, where signs of dense scripts count twice."""
    return len(canonical) if canonical.isascii() else len(canonical) + len(_WIDE.findall(canonical))


def without_headings(text: str, starts: tuple[int, ...]) -> str:
    """Return the text without the lines that begin at `starts`; where there are none, without a first line that looks
    like a title."""
    if not starts:
        first, newline, rest = text.lstrip().partition("\n")
        return rest if newline and len(first) <= 120 and rest.strip() else text
    parts, at = [], 0
    for start in sorted(starts):
        parts.append(text[at:start])
        end = text.find("\n", start)
        at = len(text) if end < 0 else end
    return "".join([*parts, text[at:]])


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else " "
