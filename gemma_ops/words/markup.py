"""HTML from template files: jinja2 escapes every text that isn't HTML already, and refuses a name that nobody gave.

A template file holds macros, each a part of a page with its values as parameters. It is laid out for whoever reads the
file: a line break is left out of the page together with the spaces around it, but is one space between two words, and
an empty line is one line break.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from html import escape as html_escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

_BREAK = re.compile(r"(?P<tag>\{[{%#].*?[#%}]\})|[ \t]*\n\s*", re.DOTALL)
"""Pattern of a jinja2 tag, kept as it is, or of line breaks with the spaces around them."""
_KEPT = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def escape(text: object) -> Markup:
    """Return text as HTML, safe in elements and in quoted attributes.

    Control characters, which HTML can't hold, are made visible, and so is whatever else is neither printed nor a space,
    but for the joiners of Persian, Indic scripts and emoji.
    """
    shown = "".join(
        char if char in _KEPT or char.isprintable() or char.isspace() else "\N{REPLACEMENT CHARACTER}"
        for char in str(text)
    )
    return Markup(html_escape(shown, quote=True))  # noqa: S704 - this is where it is made safe


def trusted(text: str) -> Markup:
    """Mark text as HTML that needs no escaping: drawings made in Python, whose texts were escaped one by one."""
    return Markup(text)  # noqa: S704


class Templates:
    """Template files of some folders, of which the first that has a name is used, and the functions they may call."""

    def __init__(self, *folders: Path, helpers: Mapping[str, Any] | None = None) -> None:
        self.folders = folders
        self.helpers = dict(helpers or {})

    def fill(self, file: str, macro: str, /, **values: Any) -> Markup:
        """Return the HTML of one macro of a file.

        Raises jinja2.TemplateNotFound for a file, and jinja2.UndefinedError or TypeError for a name or a parameter,
        that isn't there: faults of the code, never of what is shown.
        """
        found = getattr(self._environment.get_template(file).module, macro)
        try:
            return trusted(found(**values))
        except Exception:
            self._environment.handle_exception()  # raises it again, with the lines of the template in its traceback
            raise

    def page(self, file: str, macro: str, /, **values: Any) -> str:
        """Return a whole page as plain text, which is not taken for a part of another page."""
        return str(self.fill(file, macro, **values))

    @cached_property
    def _environment(self) -> Environment:
        from jinja2 import Environment, FunctionLoader, StrictUndefined

        environment = Environment(
            autoescape=True, undefined=StrictUndefined, finalize=_shown, loader=FunctionLoader(self._source)
        )
        environment.globals.update(verbatim=self._verbatim, **self.helpers)
        return environment

    def _source(self, name: str) -> tuple[str, str, None] | None:
        path = self._path(name)
        return (join_lines(path.read_text(encoding="utf-8")), str(path), None) if path else None

    def _verbatim(self, name: str) -> Markup:
        """Return a file next to the templates as it is: a style sheet, a script."""
        path = self._path(name)
        assert path is not None, name
        return trusted(path.read_text(encoding="utf-8"))

    def _path(self, name: str) -> Path | None:
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)


def _shown(value: Any) -> Markup:
    return value if isinstance(value, Markup) else escape(value)


def join_lines(source: str) -> str:
    """Return a template without its layout. Lines are still counted as they lie in the file, in comments."""

    def joined(match: re.Match[str]) -> str:
        if match["tag"]:
            return match[0]
        breaks = match[0].count("\n")
        before, after = source[match.start() - 1 : match.start()], source[match.end() : match.end() + 1]
        words = before not in ("", ">", "}") and after not in ("", "<", "{")
        shown = "\n" if breaks > 1 else " " if words else ""
        return shown + "{#" + "\n" * (breaks - shown.count("\n")) + "#}"

    return _BREAK.sub(joined, source)
