"""Names say what they name wherever they are read: classes are unique, functions carry their noun, modules their
room's."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "gemma_ops"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "share" not in path.relative_to(PACKAGE).parts)
SECTIONS = {"config"}
"""Rooms whose files are named after what they describe."""
BARE = {
    "add", "ask", "build", "check", "choose", "collect", "compare", "decide", "draw", "export", "fill", "find", "get",
    "guard", "keep", "lines", "list", "load", "make", "measure", "move", "open", "page", "parse", "pick", "put", "read",
    "render", "report", "resolve", "run", "save", "score", "section", "select", "set", "store", "table", "take", "text",
    "update", "validate", "write",
}  # fmt: skip
"""Words that say nothing without the module they stand in."""


def top_level(kinds):
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, kinds) and not node.name.startswith("_"):
                yield node.name, path.relative_to(PACKAGE).as_posix()


def test_public_class_names_are_unique():
    found = defaultdict(list)
    for name, place in top_level(ast.ClassDef):
        found[name].append(place)
    assert not {name: places for name, places in found.items() if len(places) > 1}


def test_public_functions_carry_their_noun():
    """The verbs of the command line are named as they are typed, and the bodies of Triton kernels as their
    operation."""
    functions = top_level((ast.FunctionDef, ast.AsyncFunctionDef))
    bare = [(name, place) for name, place in functions if name in BARE]
    assert not [item for item in bare if not item[1].startswith(("cli/", "kernels/"))]


def test_modules_of_two_rooms_are_not_called_alike():
    found = defaultdict(set)
    for path in SOURCES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] not in {"__init__", "__main__"} and parts[0] not in SECTIONS:
            found[parts[-1]].add("/".join(parts))
    assert not {name: sorted(places) for name, places in found.items() if len(places) > 1}
