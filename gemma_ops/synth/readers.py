"""Text of documents by file type, with the place of every character in its source and the headings found on the way.

A place counts characters: in Markdown and plain text those of the file, in HTML those of the page's source (so that a
quotation from the visible text is found between its tags), in JSON Lines those of the row's `text`, in PDF those of the
text drawn from its pages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from gemma_ops.errors import DataError, MachineError

_ATX = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Heading:
    """A heading at a position of the text; level 1 is the highest."""

    at: int
    level: int
    title: str


@dataclass(frozen=True)
class Reading:
    """The text that was read of a document. `places[i]` is where character i stands in the source; None where it stands
    at i."""

    text: str
    headings: tuple[Heading, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    """Statements of the document about itself: `privacy`, `license`, `title`."""
    begins: int = 0
    """Position where the text begins, after front matter."""
    places: Sequence[int] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return where characters [start, end) of the text stand in the source, as [first, last + 1)."""
        if self.places is None:
            return start, end
        return self.places[start], self.places[end - 1] + 1


def markdown(text: str, name: str) -> Reading:
    """Read Markdown as it stands, with its headings (`#` and underlined); those inside code fences are code."""
    facts, begins = _front_matter(text, name)
    headings: list[Heading] = []
    at, fence, before = begins, "", ""
    for line in text[begins:].splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        mark = _FENCE.match(bare)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif match := _ATX.match(bare):
            headings.append(Heading(at, len(match[1]), match[2].strip()))
        elif (
            (match := _UNDERLINE.match(bare))
            and before.strip()
            and not before.lstrip().startswith(("#", "-", "|", ">"))
        ):
            level = 1 if match[1][0] == "=" else 2
            headings.append(Heading(at - len(before), level, before.strip()))
        before = line
        at += len(line)
    return Reading(text, tuple(headings), facts, begins)


def read_plain(text: str, name: str) -> Reading:
    """Read plain text, which has no headings."""
    facts, begins = _front_matter(text, name)
    return Reading(text, (), facts, begins)


def _front_matter(text: str, name: str) -> tuple[dict[str, Any], int]:
    """Return the YAML block between two lines of `---` at the very beginning, and where the text begins after it."""
    match = _FRONT.match(text)
    if not match:
        return {}, 0
    try:
        facts = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise DataError(
            f"{name}: the front matter is not YAML: {error}", "correct it, or take the --- lines out"
        ) from None
    return (facts, match.end()) if isinstance(facts, dict) else ({}, 0)


_BLOCKS = {
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "figure", "footer",
    "form",
    "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "td",
    "th", "tr", "ul",
}  # fmt: skip
_HIDDEN = {"script", "style", "template", "noscript", "svg", "title"}


def read_page(source: str, name: str) -> Reading:
    """Read the visible text of an HTML page: tags gone, white space collapsed, blocks on lines of their own."""
    parser = _Page(source)
    parser.feed(source)
    parser.close()
    return Reading("".join(parser.text), tuple(parser.headings), parser.facts, 0, parser.places)


class _Page(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.text: list[str] = []
        self.places: list[int] = []
        self.headings: list[Heading] = []
        self.facts: dict[str, Any] = {}
        self._lines = [0, *(match.end() for match in re.finditer("\n", source))]
        self._hidden: list[str] = []
        self._heading: tuple[int, int] | None = None
        self._title: list[str] = []

    def _at(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def _put(self, text: str, at: int, step: int) -> None:
        """Append text whose characters stand in the source at `at`, `at + step`, …; white space collapses."""
        for offset, letter in enumerate(text):
            if letter.isspace() and (not self.text or self.text[-1].isspace()):
                continue
            self.text.append(" " if letter.isspace() else letter)
            self.places.append(at + offset * step)

    def _break(self, text: str) -> None:
        while self.text and self.text[-1] == " ":
            self.text.pop()
            self.places.pop()
        if self.text and self.text[-1] != "\n":
            self.text += text
            self.places += [self._at()] * len(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if tag == "meta" and given.get("name", "").lower() in ("privacy", "license"):
            self.facts[given["name"].lower()] = given.get("content", "").strip()
        if tag in _HIDDEN:
            self._hidden.append(tag)
        if tag in _BLOCKS:
            self._break("\n" if tag in ("br", "li", "tr", "td", "th", "dt", "dd") else "\n\n")
        if re.fullmatch("h[1-6]", tag):
            self._heading = (len(self.text), int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        if tag == "title":
            self.facts.setdefault("title", " ".join("".join(self._title).split()))
        if self._heading and re.fullmatch("h[1-6]", tag):
            at, level = self._heading
            if title := "".join(self.text[at:]).strip():
                self.headings.append(Heading(at, level, title))
            self._heading = None
        if tag in _BLOCKS:
            self._break("\n" if tag in ("li", "tr", "td", "th", "dt", "dd") else "\n\n")

    def handle_data(self, data: str) -> None:
        if self._hidden:
            if self._hidden[-1] == "title":
                self._title.append(data)
            return
        self._put(data, self._at(), 1)

    def handle_entityref(self, name: str) -> None:
        self._reference(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._reference(f"&#{name};")

    def _reference(self, text: str) -> None:
        if self._hidden:
            if self._hidden[-1] == "title":
                self._title.append(html.unescape(text))
            return
        self._put(html.unescape(text), self._at(), 0)


def pdf(path: Path) -> Reading:
    """Read the text of a PDF's pages, one after the other. Raises MachineError without the package, DataError when
    unreadable."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise MachineError(f"reading {path.name} needs the package pypdf", "pip install 'gemma-ops[pdf]'") from None
    try:
        pages = [sheet.extract_text() for sheet in PdfReader(path).pages]
    except (PyPdfError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path.name} can't be read as PDF: {error}", "convert it to text, or take it out") from error
    if not any(text.strip() for text in pages):
        raise DataError(f"{path.name} holds no text", "a scanned PDF needs text recognition first; or take it out")
    return Reading("\n\n".join(pages))
