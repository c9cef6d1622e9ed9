"""A recipe: where it lies, its function, and the steps it makes.

A recipe is a file with a function `recipe(run, config)`: eager calls of `run.step`, read from top to bottom. Recipes
are loaded by path, so a user's own file works like a shipped one.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import RunConfig, shipped
from gemma_ops.errors import ConfigError
from gemma_ops.runs.run import Run


@dataclass(frozen=True)
class Recipe:
    """One recipe, looked up and read once a run."""

    name: str
    """Name of the recipe, as the configuration spells it."""
    path: Path
    function: Callable[[Run, RunConfig], Any]
    steps: dict[str, frozenset[str] | None] | None
    """Steps that it makes, in order, each with the names of its inputs, read from its text. None for the whole when a
    step's name is only known when it runs, and for the inputs of one that are (`**inputs`)."""

    def __call__(self, run: Run, config: RunConfig) -> Any:
        """Run the recipe."""
        return self.function(run, config)

    def check_steps(self, wanted: Iterable[str]) -> None:
        """Raise ConfigError when `--until` or `--redo` names a step the recipe doesn't have."""
        for step in wanted:
            if self.steps is not None and step not in self.steps:
                close = difflib.get_close_matches(step, sorted(self.steps), n=1)
                raise ConfigError(
                    f"the recipe {self.name} has no step {step!r}" + (f"; did you mean {close[0]}?" if close else ""),
                    f"its steps are: {', '.join(sorted(self.steps))}",
                )


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name or path. Raises ConfigError when there is none, or its file has no function
    `recipe`."""
    path = shipped.find_shipped("recipes", name, ".py")
    spec = importlib.util.spec_from_file_location(f"gemma_ops_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}", "correct that line of the recipe") from error
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise ConfigError(f"{path} has no function recipe(run, config)", "see the shipped recipes for the shape of one")
    return Recipe(name, path, function, _steps(path))


def _steps(path: Path) -> dict[str, frozenset[str] | None] | None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step"
    ]
    # A step made for another one's input stands inside of it, and ends before it.
    calls.sort(key=lambda node: (node.end_lineno, node.end_col_offset))
    found: dict[str, frozenset[str] | None] = {}
    for node in calls:
        given = next((keyword.value for keyword in node.keywords if keyword.arg == "name"), None)
        first = node.args[0] if node.args else None
        inputs = [keyword.arg for keyword in node.keywords]
        known = frozenset(name for name in inputs if name) if None not in inputs else None
        if isinstance(given, ast.Constant):
            found[str(given.value)] = known
        elif given is None and isinstance(first, ast.Name):
            found[first.id] = known
        else:
            return None
    return found
