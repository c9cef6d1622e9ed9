"""Colours and marks of the targets in one report: each target has its own, the same on the whole page.

The targets that a run makes keep their colours. Every other one gets the candidate that lies farthest from all colours
in use, for normal sight and for the two common kinds of red-green blindness (Viénot, Brettel and Mollon, Color Research
and Application 24, 1999); distances are Euclidean in Oklab (Ottosson, 2020). A mark of another shape tells a target
apart where its colour doesn't.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

from markupsafe import Markup

from gemma_ops.family.formats import QUANTIZED
from gemma_ops.words.figures import colour
from gemma_ops.words.markup import trusted

Rgb = tuple[float, float, float]
"""Red, green and blue as sRGB says them, 0 to 1."""

_KNOWN = {
    "t-base": ("#7d8794", "#9aa4b0"),
    "t-tuned": ("#2b63d9", "#7aa5ff"),
    **{each.css: each.colours for each in QUANTIZED.values()},
}
"""Colours of known targets, on a light and on a dark page."""
_FIRST = {"gemini": ("#b8336a", "#ff8fb5"), "openai": ("#56720f", "#b5d35a")}
"""Colour of the first service of a kind."""
_APART = 0.05
"""Least distance at which the first service of a kind keeps its usual colour."""
_PAPER = (1.0, 1.0, 1.0)
_CONTRAST = 3.2
"""Least contrast with a white page; WCAG 2.2 asks for 3 of graphics."""
_SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.6 -4.6h9.2v9.2h-9.2z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0z",
    "M0 -5.8L5.6 4.4L-5.6 4.4z",
    "M0 5.8L5.6 -4.4L-5.6 -4.4z",
    "M-1.9 -5.6h3.8v3.7h3.7v3.8h-3.7v3.7h-3.8v-3.7h-3.7v-3.8h3.7z",
    "M-5.8 0L-2.9 -5H2.9L5.8 0L2.9 5H-2.9z",
    "M0 -6L1.8 -1.9L6 -1.9L2.7 0.9L3.9 5.2L0 2.7L-3.9 5.2L-2.7 0.9L-6 -1.9L-1.8 -1.9z",
)
"""Marks around the origin, about 11 px wide: circle, square, diamond, triangles, cross, hexagon, star."""


def palette(targets: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the colours by CSS class, as hex on a light and on a dark page, for every target in the order of the
    report."""
    classes = {colour(name): name for name in targets}
    found = {kind: _KNOWN[kind] for kind in classes if kind in _KNOWN}
    for kind, name in classes.items():
        if kind in found:
            continue
        used = [_rgb(light) for light, _ in found.values()]
        first = _FIRST.get(name.partition(":")[0])
        if first and first not in found.values() and all(distance(_rgb(first[0]), one) > _APART for one in used):
            found[kind] = first
            continue
        best = max(_candidates(), key=lambda one: min((distance(one, other) for other in used), default=0.0))
        found[kind] = (_hex(best), _hex(_lighter(best)))
    return {kind: found[kind] for kind in classes}


def style(targets: Sequence[str]) -> Markup:
    """Style rules that give every target its colour, on light and on dark pages."""
    colours = palette(targets)

    def rules(index: int) -> str:
        return "".join(f".{kind} {{ --own: {pair[index]}; }}\n" for kind, pair in colours.items())

    return trusted(f"{rules(0)}@media (prefers-color-scheme: dark) {{\n{rules(1)}}}\n")


def report_style() -> Markup:
    """Return the style sheet that all pages of the evaluation share."""
    return trusted((Path(__file__).parent / "report.css").read_text(encoding="utf-8"))


def page_style(targets: Sequence[str]) -> Markup:
    """Return the style sheet of a page about these targets."""
    return report_style() + style(targets)


def marks(targets: Sequence[str]) -> Markup:
    """Return an invisible drawing that holds the mark of every target, for `svg.mark` to refer to."""
    paths = "".join(
        f'<path id="mark-{kind}" d="{_SHAPES[index % len(_SHAPES)]}"/>'
        for index, kind in enumerate(dict.fromkeys(map(colour, targets)))
    )
    paths += f'<path id="mark-t-other" d="{_SHAPES[0]}"/>'
    hidden = 'width="0" height="0" style="position:absolute" aria-hidden="true"'
    return trusted(f"<svg {hidden}><defs>{paths}</defs></svg>")


def distance(one: Rgb, other: Rgb) -> float:
    """Return the least distance of two colours in Oklab: for protanopia, for deuteranopia, or half of that for normal
    sight, which tells more hues apart."""
    normal, protan, deutan = (math.dist(first, second) for first, second in zip(_seen(one), _seen(other), strict=True))
    return min(normal / 2, protan, deutan)


def contrast(one: Rgb, other: Rgb = _PAPER) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2), 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@cache
def _candidates() -> tuple[Rgb, ...]:
    """Return colours that can be read on white: all hues, from dark to middling, strong and dull."""
    every = product(range(0, 360, 10), (0.22, 0.3, 0.38, 0.46, 0.54, 0.62), (0.35, 0.65, 0.95))
    found = [_rgb(_hex(colorsys.hls_to_rgb(hue / 360, light, strong))) for hue, light, strong in every]
    return tuple(one for one in found if contrast(one) >= _CONTRAST)


@cache
def _seen(one: Rgb) -> tuple[Rgb, Rgb, Rgb]:
    """Return a colour in Oklab as normal, protanope and deuteranope eyes see it."""
    red, green, blue = map(_linear, one)
    protan = 0.11238 * red + 0.88762 * green
    deutan = 0.29275 * red + 0.70725 * green
    return (
        _oklab(red, green, blue),
        _oklab(protan, protan, 0.00401 * red - 0.00401 * green + blue),
        _oklab(deutan, deutan, -0.02234 * red + 0.02234 * green + blue),
    )


def _oklab(red: float, green: float, blue: float) -> Rgb:
    long = max(0.0, 0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    middle = max(0.0, 0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = max(0.0, 0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


def _luminance(one: Rgb) -> float:
    red, green, blue = map(_linear, one)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _lighter(one: Rgb) -> Rgb:
    """Return a colour's hue for a dark page: as light there as the colour is dark."""
    hue, light, strong = colorsys.rgb_to_hls(*one)
    return colorsys.hls_to_rgb(hue, 0.9 - 0.4 * light, min(strong, 0.75))


def _rgb(text: str) -> Rgb:
    red, green, blue = (int(text[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def _hex(one: Rgb) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in one)
