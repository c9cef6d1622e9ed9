"""Finding recipes, configurations and evaluation tasks: in the user's folder first, then among those shipped.

In a checkout they stand beside the package; in an installed wheel under `gemma_ops/share/`. They are found by path and
never imported by name.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from gemma_ops.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def root() -> Path:
    """Return the folder that holds the shipped `recipes`, `configs` and `eval`."""
    installed = _PACKAGE / "share"
    return installed if installed.is_dir() else _PACKAGE.parent


def find_shipped(kind: str, name: str, suffix: str = "", *, local: bool = True) -> Path:
    """Return the path of a recipe (`recipes`, `.py`), configuration (`configs`, `.yaml`), routing policy
    (`configs/routing`, `.yaml`) or task folder (`eval`, no suffix).

    A path that exists wins; then `<kind>/<name>` under the working folder; then the shipped one, which is the only one
    when `local` is off. Raises ConfigError that names close matches.
    """
    near = [Path(name), Path(kind) / f"{name}{suffix}"] if local else []
    far = [path for path in (root() / kind / f"{name}{suffix}", root() / name) if path.is_relative_to(root())]
    for path in (*near, *far):
        if path.is_file() if suffix else (path / "task.yaml").is_file():
            return path
    known = shipped(kind, suffix)
    close = difflib.get_close_matches(Path(name).stem, known, n=1)
    noun = {"recipes": "recipe", "configs": "configuration", "eval": "task"}.get(kind, "routing policy")
    raise ConfigError(
        f"no {noun} {name!r}: it is {'neither a path nor' if local else 'not'} shipped"
        + (f"; did you mean {close[0]}?" if close else ""),
        f"give {'a path, or ' if local else ''}one of: {', '.join(known)}",
    )


def shipped(kind: str, suffix: str = "") -> list[str]:
    """Return the names of what is shipped of one kind."""
    folder = root() / kind
    if suffix:
        return sorted(path.stem for path in folder.glob(f"*{suffix}") if not path.stem.startswith("_"))
    return sorted(path.parent.name for path in folder.glob("*/task.yaml"))
