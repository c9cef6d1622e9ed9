"""What moved below us: `python -m tests.upgrade` compares pins with the newest releases and runs the traps' probes.

For each dependency of pyproject.toml: the pin of constraints.txt, the newest release that the package index offers, and
whether our window lets it in. Then the tests marked `upstream`, each of which shows one failure of the stack that
`gemma_ops.family.TRAPS` describes: one that no longer fails there was mended. To try newer pins, change
constraints.txt, `make setup`, and run this, `make test` and `make mutants` again.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

from packaging.requirements import Requirement
from packaging.version import Version

from gemma_ops.family import TRAPS

ROOT = Path(__file__).parents[1]


def pins() -> dict[str, str]:
    """Versions by normalised name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {_plain(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def direct() -> list[Requirement]:
    """Requirements of the project and its extras, its own extras left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found = {_plain(each.name): each for each in map(Requirement, named)}
    return [found[name] for name in sorted(found) if name != _plain(project["name"])]


def newest(name: str) -> str | None:
    """The newest release the configured index offers for this Python; None where it can't be asked."""
    asked = [sys.executable, "-m", "pip", "index", "versions", name, "--disable-pip-version-check"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Available versions: ([^,\s]+)", said)
    return found[1] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def moved() -> int:
    """Print the dependencies with newer releases; returns how many."""
    known, count = pins(), 0
    print(f"{'package':22} {'pinned':12} {'newest':12} window")
    for each in direct():
        pinned, latest = known.get(_plain(each.name)), newest(each.name)
        if latest is None:
            print(f"{each.name:22} {pinned or '-':12} {'not known':12} {each.specifier}")
        elif pinned is None or Version(latest) > Version(pinned):
            lets = "lets it in" if latest in each.specifier else "keeps it out"
            print(f"{each.name:22} {pinned or '-':12} {latest:12} {each.specifier} {lets}")
            count += 1
    return count


def probes() -> dict[str, bool]:
    """By trap, whether what it describes still happens."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        asked = ["-m", "pytest", "-q", "-m", "upstream", "-p", "tests.upgrade", f"--junitxml={report}", "tests"]
        subprocess.run([sys.executable, *asked], cwd=ROOT, check=False, capture_output=True)
        found: dict[str, bool] = {}
        for case in ET.parse(report).iter("testcase"):
            trap = next((item.get("value") for item in case.iter("property") if item.get("name") == "trap"), None)
            if trap:
                held = case.find("failure") is None and case.find("error") is None
                found[str(trap)] = found.get(str(trap), True) and held
        return found


def pytest_collection_modifyitems(items: list) -> None:
    """As a plugin of pytest: write each probe's trap into the report."""
    for item in items:
        marker = item.get_closest_marker("upstream")
        if marker:
            item.user_properties.append(("trap", marker.args[0]))


def main() -> int:
    count = moved()
    print(f"\n{count} packages have newer releases\n")
    found = probes()
    for trap in TRAPS:
        state = {True: "still so", False: "CHANGED: look again", None: "no probe: read its evidence again"}
        print(f"{trap.code:30} {state[found.get(trap.code)]}")
    changed = [code for code, held in found.items() if not held]
    print(f"\n{len(found)} of {len(TRAPS)} traps probed, {len(changed)} changed")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
