"""Personal data and secrets that can be recognised for certain: by checksum, registry rule or fixed form.

Names, addresses and diagnoses have no such form and are not found; the data card says so. What is found is rarely a
false alarm: order numbers and timestamps fail the checksums or the rules. Patterns say where a number may stand, and
python-stdnum whether it is one; what it has no rule for (which cards are issued, months of a NIR) is said here.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stdnum import iban, luhn
from stdnum.de import idnr
from stdnum.fr import nir
from stdnum.us import ssn

_PHONE_WORD = re.compile(
    r"(?:phone|mobile|mobil|cell|call|tel|fax|telefon|handy|portable|whatsapp|reach \w+)\W{0,3}(?:\w+\W{1,3}){0,2}$",
    re.IGNORECASE,
)
_NUMBER_WORD = re.compile(
    r"(?:order|ref|reference|invoice|ticket|case|item|sku|part|serial|tracking|batch|id|no|nr|number|#)\W{0,3}$",
    re.IGNORECASE,
)


# Presidio is no part of this. Its own patterns are about these; what it adds, named entities, takes spaCy (390 MB) and
# a model that pip doesn't bring, and is a guess where everything here is certain.


@dataclass(frozen=True)
class PersonalFinding:
    """One occurrence: characters [start, end) of the text. It never carries the text itself."""

    kind: str
    start: int
    end: int


def find_personal(text: str) -> list[PersonalFinding]:
    """Return all findings of a text, in order, without overlaps (the earlier, then the longer one stays)."""
    found: list[PersonalFinding] = []
    numbers = _SEVEN.search(text) is not None
    for kind, pattern, check, parts in _NEEDED:
        if parts is None:
            possible = numbers
        else:
            possible = False
            for part in parts:
                if part in text:
                    possible = True
                    break
        if possible and (kind != "IP" or _MARKS_OF_IP.search(text)):
            found += [PersonalFinding(kind, *match.span()) for match in pattern.finditer(text) if check(match)]
    if not found:
        return found
    kept: list[PersonalFinding] = []
    for item in sorted(found, key=lambda item: (item.start, -item.end)):
        if not kept or item.start >= kept[-1].end:
            kept.append(item)
    return kept


def mask_personal(text: str) -> str:
    """Return the text with every finding replaced by its kind: `write to [EMAIL]`."""
    return mask_findings(text, find_personal(text))


def mask_findings(text: str, findings: list[PersonalFinding]) -> str:
    """Return the text with the given findings replaced."""
    parts, position = [], 0
    for item in findings:
        parts += [text[position : item.start], f"[{item.kind}]"]
        position = item.end
    return "".join(parts) + text[position:]


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every text in it (not the keys) passed through a function."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [each_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: each_text(item, change) for key, item in value.items()}
    return value


def _digits(match: re.Match[str]) -> str:
    return re.sub(r"\D", "", match[0])


def _is_card(match: re.Match[str]) -> bool:
    """True if the check digit (ISO/IEC 7812), length and prefix are those of a card that an issuer really uses."""
    digits = _digits(match)
    size, two, four = len(digits), int(digits[:2]), int(digits[:4])
    issued = (
        (digits[0] == "4" and size in (16, 19))  # 13 digits are no longer issued, and are article numbers
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and size == 16)
        or (two in (34, 37) and size == 15)
        or (
            (four == 6011 or two == 65 or 644 <= int(digits[:3]) <= 649 or two == 62 or 3528 <= four <= 3589)
            and 16 <= size <= 19
        )
        or ((300 <= int(digits[:3]) <= 305 or two in (36, 38, 39)) and size == 14)
    )
    return issued and luhn.is_valid(digits) and len(set(digits)) > 1


def _is_iban(match: re.Match[str]) -> bool:
    """True if the form is that of the country and the remainder 1 modulo 97 (ISO 13616). Checks of a country's own are
    left out: one that a bank doesn't keep to would let a number through."""
    return iban.is_valid(match[0], check_country=False)


def _is_ipv4(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 12) : match.start()].lower()
    if re.search(r"(?:v|version|release|build|section|chapter|§)[\s.]*$", before):
        return False
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast or int(address) >> 24 in (0, 255))


def _is_ipv6(match: re.Match[str]) -> bool:
    groups = [group for group in match[0].split(":") if group]
    if len(groups) < 2 or sum(map(len, groups)) < 5 or not any(char.isdigit() for char in match[0]):
        return False
    try:
        return not ipaddress.IPv6Address(match[0]).is_loopback
    except ValueError:
        return False


def _is_ssn(match: re.Match[str]) -> bool:
    """True if the Social Security Administration assigns the area, group and serial; the three numbers known from
    adverts don't count."""
    return ssn.is_valid(match[0])


def _is_phone(match: re.Match[str]) -> bool:
    """True for international numbers by length (E.164), and national ones by the North American plan or after a word
    for it."""
    digits, before = _digits(match), match.string[max(0, match.start() - 30) : match.start()]
    if match[0][0] == "+" or match[0].startswith("00"):
        significant = digits if match[0][0] == "+" else digits[2:]
        return 8 <= len(significant) <= 15 and significant[0] != "0" and len(set(significant)) > 2
    if _PHONE_WORD.search(before):
        return 7 <= len(digits) <= 15
    form = re.fullmatch(r"(?:1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}", match[0])
    plan = re.fullmatch(r"1?[2-9](?!11)\d{2}[2-9]\d{6}", digits)
    return bool(form and plan and not _NUMBER_WORD.search(before))


def _is_german_tax_id(match: re.Match[str]) -> bool:
    """True if one digit stands twice or thrice among the first ten, and the check digit fits (ISO 7064 MOD 11,10)."""
    return idnr.is_valid(_digits(match))


def _is_french_nir(match: re.Match[str]) -> bool:
    """True if the month is in range and the key fits (97 - number mod 97; Corsica has a rule of its own)."""
    number = re.sub(r"\W", "", match[0]).upper()
    month = int(number[3:5])
    return (1 <= month <= 12 or 20 <= month <= 42) and nir.is_valid(number)


def _is_jwt(match: re.Match[str]) -> bool:
    head = match[0].split(".")[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except ValueError:
        return False


def _always(match: re.Match[str]) -> bool:
    return True


_SECRETS = (
    r"AIza[\w-]{35}",  # Google
    r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{50,255}",
    r"xox[abeprs]-[A-Za-z0-9-]{10,250}",  # Slack
    r"sk-(?:proj-|ant-|svcacct-)?[A-Za-z0-9_-]{24,200}",
    r"[rs]k_live_[A-Za-z0-9]{16,250}",  # Stripe
    r"hf_[A-Za-z0-9]{30,100}",
    r"glpat-[\w-]{20,100}",
)
_PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    ("PRIVATE_KEY", re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:.{0,20000}?"
        r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|.{0,20000})", re.DOTALL), _always),
    ("JWT", re.compile(r"\beyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,4000}"), _is_jwt),
    ("AWS_KEY", re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"), _always),
    ("API_KEY", re.compile(r"(?<![\w-])(?:" + "|".join(_SECRETS) + r")(?![\w-])"), _always),
    ("EMAIL", re.compile(r"(?<![\w.+-])[\w+%-](?:[\w.+%-]{0,62}[\w+%-])?@"
        r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b"), _always),
    ("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), _is_iban),
    ("CARD", re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w]|[.,-]\d)"), _is_card),
    ("SSN", re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), _is_ssn),
    ("TAX_ID", re.compile(r"(?<![\w.,-])\d{2}[ ]?\d{3}[ ]?\d{3}[ ]?\d{3}(?![\w]|[.,-]\d)"), _is_german_tax_id),
    ("NIR", re.compile(r"(?<![\w.,-])[12][ ]?\d{2}[ ]?\d{2}[ ]?(?:\d{2}|2[AB])"
        r"[ ]?\d{3}[ ]?\d{3}[ ]?\d{2}(?![\w]|[.,-]\d)"), _is_french_nir),
    ("PHONE", re.compile(r"(?<![\w+.,:/-])(?:\+|00)?\(?\d(?:[ ./()-]{0,2}\d){6,14}(?![\w:]|[.,/-]\d)"), _is_phone),
    ("IP", re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"), _is_ipv4),
    ("IP", re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)"), _is_ipv6),
)  # fmt: skip
KINDS = tuple(dict.fromkeys(kind for kind, _, _ in _PATTERNS))


_SEVEN = re.compile(r"\d(?:[ ./()-]{0,2}\d){6}")
"""What every pattern of numbers holds: seven digits with at most two signs between neighbours."""
_MARKS_OF_IP = re.compile(r":[0-9A-Fa-f]{0,4}:|\.\d{1,3}\.")
"""What every address holds: two colons, or two points, with no more than a group between them."""
_PREFIXES = ("AIza", "github_pat_", "xox", "sk-", "k_live_", "hf_", "glpat-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_")


_FIRST = {
    "PRIVATE_KEY": ("PRIVATE KEY",),
    "JWT": ("eyJ",),
    "AWS_KEY": ("AKIA", "ASIA"),
    "API_KEY": _PREFIXES,
    "EMAIL": ("@",),
    "IBAN": ("",),
    "IP": (".", ":"),
}
_NEEDED = tuple((*entry, _FIRST.get(entry[0])) for entry in _PATTERNS)
"""The patterns, each with texts of which one must be there before it can match, which is far cheaper to see; None
stands for `_SEVEN`."""
