"""Take every trap's fix out and see its tests fail: `python -m tests.mutants [--touched | --trap CODE] [--processes
N]`.

Works on a copy of the repository. Every listed test must first pass there as it is; then, for one mutant after another,
the fix is taken out and each of its tests alone must fail (an error while collecting is not a failure). What was killed
is written to `record.json` with a digest of the mutant, of the file it changes and of the files of its tests;
`--touched` runs the mutants whose digest is another, and that is what a change must pass.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("record.json")
_ANYWHERE = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache")
_AT_ROOT = {"runs", "mlflow", "dist", "build"}
_ALL_PASSED, _SOME_FAILED = 0, 1


def digest(mutant: Mutant) -> str:
    """Of everything the result depends on that a change usually touches: the mutant, its file, and its tests."""
    found = hashlib.sha256(json.dumps(astuple(mutant)).encode())
    found.update((ROOT / "gemma_ops" / mutant.file).read_bytes())
    for test in mutant.tests:
        file, _, name = test.partition("::")
        found.update(_source(ROOT / "tests" / file, name.partition("[")[0]).encode())
    return found.hexdigest()[:16]


def _source(file: Path, name: str) -> str:
    text = file.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_source_segment(text, node) or ""
    raise SystemExit(f"{file.name} has no test {name}")


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What a copy of the repository does without: what runs and builds leave at its root, and caches."""
    return _ANYWHERE(folder, names) | (_AT_ROOT & set(names) if Path(folder) == ROOT else set())


def check(mutant: Mutant) -> str:
    """The mutated text of its file. Ends the run for a mutant whose place is gone."""
    text = (ROOT / "gemma_ops" / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.trap}: {mutant.file} holds {text.count(mutant.old)} times {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def run(copy: Path, test: str) -> tuple[int, str]:
    """pytest's exit code for one test of the copy, and the end of what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr)[-600:]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--touched", action="store_true", help="only mutants whose record is out of date")
    parser.add_argument("--trap", help="only those of one trap")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    chosen = [each for each in MUTANTS if not asked.trap or each.trap == asked.trap]
    texts = {each: check(each) for each in chosen}
    if asked.touched:
        chosen = [each for each in chosen if record.get(_name(each)) != digest(each)]
    print(f"{len(chosen)} of {len(MUTANTS)} mutants to run")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.processes) as pool:
        copies = [Path(folder) / str(number) for number in range(asked.processes)]
        for copy in copies if chosen else []:
            shutil.copytree(ROOT, copy, ignore=_left_out)
        free = list(copies)

        def one(mutant: Mutant) -> tuple[Mutant, list[str]]:
            copy = free.pop()
            started, survived, file = time.monotonic(), [], copy / "gemma_ops" / mutant.file
            whole = file.read_text(encoding="utf-8")
            for test in mutant.tests:
                file.write_text(whole, encoding="utf-8")
                code, said = run(copy, test)
                if code != _ALL_PASSED:
                    survived.append(f"{test} does not pass without the mutant:\n{said}")
                    continue
                file.write_text(texts[mutant], encoding="utf-8")
                code, said = run(copy, test)
                if code != _SOME_FAILED:
                    survived.append(f"{test} does not fail with it (pytest ends with {code}):\n{said}")
            file.write_text(whole, encoding="utf-8")
            free.append(copy)
            fate = "SURVIVED" if survived else "killed"
            print(f"{fate:8}  {mutant.trap:30} {mutant.file:36} {time.monotonic() - started:4.0f} s", flush=True)
            return mutant, survived

        results = list(pool.map(one, chosen))
    for mutant, survived in results:
        for line in survived:
            print(f"\n{mutant.trap}: {line}")
        if survived:
            record.pop(_name(mutant), None)
        else:
            record[_name(mutant)] = digest(mutant)
    known = {_name(each) for each in MUTANTS}
    record = {name: value for name, value in sorted(record.items()) if name in known}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    lost = sum(bool(survived) for _, survived in results)
    print(f"{len(results) - lost} killed, {lost} survived")
    return 1 if lost else 0


def _name(mutant: Mutant) -> str:
    return f"{mutant.trap} {mutant.file} {hashlib.sha256((mutant.old + mutant.new).encode()).hexdigest()[:6]}"


if __name__ == "__main__":
    sys.exit(main())
