r"""Numbers as people write them, read whole or not at all.

Reading a piece of a number is worse than reading none: `3/4` is not 4, `1.234,56` not 56, `12:30` not 30. So digits
that are glued together by signs form one run, and a run is a number only if all of it is. Read are signs, currency
signs, decimal points and commas, groups of three (`12,500`, `12 500`, `12'500`, `12_500`), of the Indian system
(`1,50,000`) and of four (`1,2345,6789`), exponents (`1.5e6`, `1.5 × 10^6`, `10^6`), fractions (`3/4`, `1 1/2`, `½`,
`\frac{3}{4}`), the digits of every script, and English words of magnitude after the number (`3 million`, `2 crore`,
`12k`).

A single sign between digits can be read both ways (`1,234` and `1.234`): `decimal` says which of them is the decimal
sign.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

DecimalSign = Literal["point", "comma"]

_SPACES = "\u00a0\u2007\u2009\u202f "
_SIGNS = "-+\u2212\u2013"
_CURRENCY = "$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u20ba\u00a2"
_VULGAR = "\u00bc-\u00be\u2150-\u215e\u2189"
_GLUE = (
    rf"[.,'\u2019_\u066b\u066c:/\u2044^\-\u2013\u2014\u00b7](?=[\d{_VULGAR}.-])"
    rf"|[{_SPACES}](?=\d{{3}}(?!\d)(?!\s*/\s*\d))"  # groups of three
    r"|\s?/\s?(?=\d)"
    r"|\s(?=\d+\s?/\s?\d)"  # a whole number before its fraction
    rf"|\s?(?=[{_VULGAR}])"
    r"|\s?(?:\u00d7|\*|x|\\times|\\cdot)\s?(?=10\s?(?:\^|\*\*))"
    r"|\s?(?:\^|\*\*)\s?\{?(?=[-\u2212]?\d)"
    r"|\}"
)
_LATEX = r"\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))"
_RUN = re.compile(
    rf"(?:(?<![\w)\]}}.])[{_SIGNS}]\s?)?(?:[{_CURRENCY}]\s?(?:[{_SIGNS}](?=[\d.]))?)?"
    rf"(?:{_LATEX}|(?:\.?\d|[{_VULGAR}])(?:\d|[{_VULGAR}]|{_GLUE}|[eE][-+\u2212]?(?=\d))*)"
)
_MAGNITUDE = {
    "hundred": 2, "thousand": 3, "k": 3, "lakh": 5, "lakhs": 5, "million": 6, "mn": 6, "crore": 7, "crores": 7,
    "billion": 9, "bn": 9, "trillion": 12,
}  # fmt: skip
_AFTER = re.compile(
    r"(?:(k|mn|bn)\b|[\s-]?(hundred|thousand|lakhs?|million|crores?|billion|trillion)\b)", re.IGNORECASE
)
_IRRATIONAL_BEFORE = re.compile(r"(?:\u221a|\\sqrt\s*(?:\[\d+\])?\{?|\b(?:sqrt|log|ln|sin|cos|tan)\s*\(?)\s*$")
_IRRATIONAL_AFTER = re.compile(r"\s?(?:\u03c0|\\pi\b|\u221a|\\sqrt|!(?!\w)(?=\s*[=+*/]))")
_EXPONENT = re.compile(r"^(.*?)\s?(?:\u00d7|\*|x|\\times|\\cdot)?\s?10\s?(?:\^|\*\*)\s?\{?(-?\d{1,3})\}?$")
_POWER = re.compile(r"^(\d+)\s?(?:\^|\*\*)\s?\{?(-?\d{1,2})\}?$")
_MOST = 300
"""Orders of magnitude beyond which a number is not read."""


def numbers_in(text: str, decimal: DecimalSign = "point") -> Iterator[Fraction | None]:
    """Yield the numbers of a text in order, None for a run of digits that is no number."""
    for match in _RUN.finditer(text):
        start = match.start() + len(match[0]) - len(match[0].lstrip())
        if start and (text[start - 1].isalnum() or text[start - 1] == "_") and match[0].strip()[0].isdigit():
            continue  # the digits of a name: v2, H2O
        before, after = text[: match.start()], text[match.end() :]
        if _IRRATIONAL_BEFORE.search(before) or _IRRATIONAL_AFTER.match(after):
            yield None
            continue
        if re.match(r"[^\W\d_]+\d", after):  # 0x1F, 3D2
            yield None
            continue
        value = read_number(match[0], decimal)
        power = _AFTER.match(after)
        if value is not None and power:
            value *= 10 ** _MAGNITUDE[(power[1] or power[2]).lower()]
        yield value


def read_number(run: str, decimal: DecimalSign = "point") -> Fraction | None:
    """Return the value of a run of digits and signs; None where it is not one number written out. Source: the module's
    text."""
    text = _plain(run)
    negative = text.startswith("-")
    text = text.lstrip("-+").strip()
    value = _unsigned(text, decimal)
    return None if value is None else -value if negative else value


def _plain(run: str) -> str:
    """Return the run with ASCII digits and signs, without currency signs."""
    found = []
    for letter in run.strip():
        if letter in "\u2212\u2013":
            found.append("-")
        elif letter in _CURRENCY:
            continue
        elif letter in _SPACES:
            found.append(" ")
        elif letter == "\u2019":
            found.append("'")
        elif letter == "\u066b":  # Arabic decimal separator
            found.append("\u066b")
        elif letter.isdecimal():
            found.append(str(unicodedata.decimal(letter)))
        else:
            found.append(letter)
    return "".join(found).strip()


def _unsigned(text: str, decimal: DecimalSign) -> Fraction | None:
    if latex := re.fullmatch(_LATEX, text):
        top, bottom = (latex[1], latex[2]) if latex[1] else (latex[3], latex[4])
        return Fraction(int(top), int(bottom)) if int(bottom) else None
    if vulgar := re.fullmatch(rf"(\d*)\s?([{_VULGAR}])", text):
        part = Fraction(unicodedata.normalize("NFKC", vulgar[2]).replace("\u2044", "/"))
        return part + int(vulgar[1] or 0)
    if mixed := re.fullmatch(r"(\d+) (\d+)\s?[/\u2044]\s?(\d+)", text):
        whole, top, bottom = map(int, mixed.groups())
        return Fraction(whole * bottom + top, bottom) if bottom and top < bottom else None
    if fraction := re.fullmatch(r"([\d.,' ]+?)\s?[/\u2044]\s?([\d.,']+)", text):
        over, under = (_decimal(part, decimal) for part in fraction.groups())
        return over / under if over is not None and under else None
    if power := _POWER.fullmatch(text):
        return Fraction(int(power[1])) ** int(power[2]) if int(power[1]) else None
    if scaled := _EXPONENT.fullmatch(text):
        value = _decimal(scaled[1], decimal) if scaled[1] else Fraction(1)
        return None if value is None else value * Fraction(10) ** int(scaled[2])
    return _decimal(text, decimal)


_THREES = r"\d{1,3}(?:%s\d{3})+"
_GROUPED = {
    ",": rf"(?:{_THREES % ','}|\d{{1,2}}(?:,\d{{2}})+,\d{{3}}|\d{{1,4}}(?:,\d{{4}})+)",
    ".": _THREES % r"\.",
    " ": _THREES % " ",
    "'": _THREES % "'",
    "_": _THREES % "_",
    "\u066c": _THREES % "\u066c",
}


def _decimal(text: str, decimal: DecimalSign) -> Fraction | None:
    """Return a number with groups, decimal sign and exponent; None where it can't be one."""
    body, _, exponent = text.replace("E", "e").partition("e")
    if exponent and not re.fullmatch(r"[-+]?\d{1,3}", exponent):
        return None
    point, comma = (".", ",") if decimal == "point" else (",", ".")
    found = _split(body, point, comma)
    if found is None:
        return None
    whole, rest = found
    size = len(whole.lstrip("0")) + abs(int(exponent or 0))
    if size > _MOST:
        return None
    return Fraction(f"{whole or '0'}.{rest or '0'}") * Fraction(10) ** int(exponent or 0)


def _split(body: str, point: str, comma: str) -> tuple[str, str] | None:
    """Split a number into the digits before and after the decimal sign. `point` is the decimal sign where a number
    could be read either way."""
    for sign in (point, "\u066b", comma):
        whole, found, rest = body.partition(sign)
        if found and not rest.isdigit():
            continue
        if not (found or sign == point) or (found and sign in rest):
            continue
        if sign == comma and not _other_sign(whole, rest, comma, point):
            continue
        digits = _ungrouped(whole, sign)
        if digits is not None:
            return digits, rest
    # Groups under the other sign without a decimal part: 1.234.567 can't be a fraction.
    if re.fullmatch(_GROUPED.get(point, "x"), body) and body.count(point) > 1:
        return body.replace(point, ""), ""
    return None


def _other_sign(whole: str, rest: str, comma: str, point: str) -> bool:
    """True if the sign that usually groups is the decimal sign here: the other one groups before it, or its neighbours
    can be no group."""
    if point in whole:
        return True
    return bool(whole) and not re.fullmatch(_GROUPED[comma], f"{whole}{comma}{rest}")


def _ungrouped(whole: str, sign: str) -> str | None:
    if whole.isdigit() or not whole:
        return whole
    for group, pattern in _GROUPED.items():
        if group != sign and re.fullmatch(pattern, whole):
            return whole.replace(group, "")
    return None
