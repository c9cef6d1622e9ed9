"""The walls of the house: one room per library, imports one way, small files, a light front door."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gemma_ops"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "share" not in path.relative_to(PACKAGE).parts)

# Which room may import a library. A room is a top-level module or folder of the package.
ROOMS = {
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "transformers": {"modeling", "kernels", "training", "nano", "bench", "toolenvs"},
    "peft": {"modeling", "kernels"},
    "bitsandbytes": {"modeling"},
    "xllamacpp": {"modeling"},
    "huggingface_hub": {"modeling"},
    "trl": {"training", "bench"},
    "accelerate": {"training"},
    "ray": {"training", "serving"},
    "datasets": {"data", "bench", "toolenvs"},
    "llmcompressor": {"toolenvs"},
    "compressed_tensors": {"toolenvs"},
    "litert_torch": {"toolenvs"},
    "litert_lm": {"toolenvs"},
    "litert_lm_builder": {"toolenvs"},
    "ai_edge_litert": {"toolenvs"},
    "ai_edge_quantizer": {"toolenvs"},
    "datasketch": {"tests"},  # which compare with it
    "stdnum": {"privacy"},
    "jinja2": {"data", "words"},
    "tokenizers": {"data", "modeling", "nano", "prepare", "serving"},
    "gguf": {"export", "bench"},
    "scipy": {"bench", "judging", "stats"},
    "sacrebleu": {"metrics"},
    "rouge_score": {"metrics"},
    "jsonschema": {"metrics", "serving", "synth"},
    "mlflow": {"registry"},
    "model_signing": {"registry"},
    "google": {"gemini"},
    "genai_prices": {"gemini"},
    "httpx2": {"gemini", "targets"},
    "pypdf": {"synth"},
    "psutil": {"runs"},
    "packaging": {"planning"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "orjson": {"serving"},
    "lm_eval": {"evaluation"},
    "inspect_ai": {"evaluation"},
}
# A room may import rooms of a lower level, and its own.
LEVELS = [
    {"errors", "stats", "wire"},
    {"family", "offline"},
    {"config", "ggml"},
    {"answer", "runs", "metrics", "planning"},
    {"privacy", "gates", "words", "toolenvs"},
    {"verdicts", "data", "gemini"},
    {"modeling", "emulator", "nano"},
    {"kernels", "targets", "registry"},
    {"tasks", "training", "routing", "fitting"},
    {"prepare", "judging", "serving", "export"},
    {"synth", "evaluation", "bench", "drafting"},
    {"recipes"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def room_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path):
    """Names imported anywhere in a file, inside functions too; those under TYPE_CHECKING don't run and don't count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "gemma_ops")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_library_stays_in_its_room(path):
    strays = [name for name in imports(path) if (rooms := ROOMS.get(name.split(".")[0])) and room_of(path) not in rooms]
    assert not strays


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_one_way(path):
    here = room_of(path)
    if here == "__init__":
        return
    assert here in LEVEL, f"{here} has no place in LEVELS"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "gemma_ops" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != here:
            assert LEVEL[parts[1]] < LEVEL[here], f"{here} imports {parts[1]}"
        assert parts[0] not in {"recipes", "eval"}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions and those for types alone count too: they hide a circle, and don't undo it."""
    modules = {module_of(path): path for path in SOURCES}
    graph = {}
    for module, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found.update(name if name in modules else node.module for name in names)
        graph[module] = found & set(modules) - {module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_holds_one_idea(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 300
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "no opening docstring"


def test_the_root_holds_what_every_room_needs():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "answer", "errors"}


def test_recipes_are_short_functions():
    for path in (ROOT / "recipes").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert any(node.name == "recipe" for node in functions)
        assert all((node.end_lineno or 0) - node.lineno < 60 for node in functions)


def test_top_level_holds_what_the_design_names():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    named = {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "Makefile",
        "LICENSE",
        "CHANGELOG.md",
        "recipes",
        "gemma_ops",
        "eval",
        "tests",
        "configs",
    }
    assert {name.split("/")[0] for name in tracked if not name.startswith(".")} <= named
    assert len(list((ROOT / "configs").glob("*.yaml"))) <= 10


HEAVY = [
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "mlflow",
    "google.genai",
    "scipy",
    "sklearn",
    "numpy",
    "bitsandbytes",
]


def test_rooms_open_without_heavy_libraries():
    rooms = [
        "data",
        "modeling",
        "modeling.checkpoint_source",
        "training",
        "export",
        "evaluation",
        "registry",
        "planning",
        "planning.doctor",
        "cli",
        "recipes.finding",
        "cli.run_summary",
    ]
    code = "import sys\n" + "".join(f"import gemma_ops.{room}\n" for room in rooms)
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


VERBS = [
    "",
    "run",
    "train",
    "evaluate",
    "quantize",
    "register",
    "promote",
    "policy",
    "audit",
    "rollback",
    "show",
    "plan",
    "bench train",
    "data check",
    "init",
    "doctor",
    "schema",
    "cost",
    "cost compare",
    "synth plan",
    "synth run",
    "judge run",
    "judge calibrate",
    "task export",
    "task import",
    "dev gemini-emulator",
    "launch render",
    "launch join",
    "deploy render",
    "route explain",
    "route check",
    "route replay",
    "tools install",
    "tools list",
]


@pytest.mark.parametrize("verb", VERBS)
def test_help_answers_at_once(verb):
    """Measured in processor seconds: half a second on an idle machine, whatever else runs on this one."""
    code = (
        "import resource, sys, contextlib\n"
        f"sys.argv = ['gemma-ops', *{verb.split()!r}, '--help']\n"
        "from gemma_ops.cli import app, guarded\n"
        "code = guarded(app)\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('SECONDS', usage.ru_utime + usage.ru_stime, heavy, code)"
    )
    began = time.time()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in result.stdout
    last = result.stdout.strip().splitlines()[-1].split(" ", 2)
    assert last[2] == "[] 0"
    assert float(last[1]) < 0.7, f"{last[1]} CPU seconds, {time.time() - began:.2f} s"


MAP = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_map_names_every_room_with_its_level():
    listed = MAP.split("<!-- rooms -->")[1].split("<!-- end of rooms -->")[0]
    found = re.findall(r"^\| (\d+) \| `(\w+)` \| \S.* \|$", listed, re.MULTILINE)
    assert len(found) == len(listed.strip().splitlines()) - 2
    assert {room: int(level) for level, room in found} == LEVEL
    assert [int(level) for level, _ in found] == sorted(LEVEL.values())


def test_the_map_names_files_that_are_there():
    named = set(re.findall(r"`([\w/.-]+/[\w*.-]+|[\w/]+\.(?:py|md|json|yaml))`", MAP))
    assert len(named) > 30
    places = (ROOT, PACKAGE)
    gone = {name for name in named if not any((place / name.rstrip("/")).exists() for place in places)}
    assert not gone - {"CHANGELOG.md", "verdict.json", "routing.json", "canary.json", "task.yaml", "gemma_ops"}
