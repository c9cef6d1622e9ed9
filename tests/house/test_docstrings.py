"""What docstrings and comments name is there: files and functions that were renamed or moved are found by their old
names."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from gemma_ops.config import RunConfig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gemma_ops"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "share" not in path.relative_to(PACKAGE).parts)
UPSTREAM = re.compile(r"(constants|conversion_mapping|metadata|state|tensor_mapping|utils|\w+_gemma4(_unified)?)\.py")
"""Files of libraries that we speak of."""
SECTIONS = {*RunConfig.model_fields, "register", "spec", "metric", "judge"}
"""First parts of keys: of configurations, of manifests for clusters, of metrics."""
MODULES = defaultdict(list)
for _path in SOURCES:
    MODULES[_path.parent.name if _path.stem == "__init__" else _path.stem].append(_path)


def defined(path):
    found = {entry.stem for entry in path.parent.iterdir()} if path.stem == "__init__" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    gone = [
        f"{name}.py"
        for name in re.findall(r"(?<![\w/.])([a-z_0-9]+)\.py\b", text)
        if name not in MODULES
        and not UPSTREAM.fullmatch(f"{name}.py")
        and not (ROOT / "recipes" / f"{name}.py").exists()
    ]
    for module, name in re.findall(r"`([a-z_0-9]+)\.([A-Za-z_0-9]+)`", text):
        if (
            module in SECTIONS
            or module not in MODULES
            or name in {"json", "jsonl", "md", "html", "py", "yaml", "xml", "sqlite"}
        ):
            continue
        if not any(name in defined(place) for place in MODULES[module]):
            gone.append(f"{module}.{name}")
    assert not gone
