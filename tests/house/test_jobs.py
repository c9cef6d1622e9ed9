"""The pages of `recipes/jobs/` do what they say: their files are written, their commands run, their errors come.

On a page a block that follows a line that begins with a file's name in backticks is that file. `sh` blocks are run, one
after the other, in one shell. `console` blocks are run too, command by command: what is shown below a command begins
with the words that it prints, and where that is `error:`, the command has to fail with this very message.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import patience

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "recipes" / "jobs"
FILE = re.compile(r"^`([\w./-]+)`[^\n]*\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```(sh|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

SMALL = (
    "train.max_steps=2", "train.batch=4", "train.micro_batch=4", "train.samples=0", "data.max_rows=80",
    "data.valid_share=0.2", "quantize.fidelity_rows=2", "evaluate.rows=6", "evaluate.probes.rows=2",
)  # fmt: skip
EASY = "evaluate.gates=[{{metric: {}, target: tuned, test: noninferior, versus: base, margin: 0.9}}]"
"""A gate that two steps of training hold, so that what comes after a passed verdict is run too."""
NANO = ("model.base=nano", "train.weights=fp32", "train.max_length=512")
JSON = (*SMALL, EASY.format("exact_match"))
SUBSTITUTIONS = {
    "json-output": {"run": JSON, "data check": ("data.max_rows=80",)},
    "tool-calls": {"run": (*SMALL, "data.max_rows=500", "train.learning_rate=1.0e-6", EASY.format("exact_match"))},
    "images": {"run": (*SMALL, EASY.format("choice_accuracy"))},
    "private-data-gemini-judge": {"run": JSON, "judge run": ("evaluate.judge.rows=4",)},
    "26b-on-24gb": {"run": (*JSON, *NANO), "data check": NANO},
}
"""What a test sets besides, by page and verb: fewer rows and steps everywhere, and nano where a page's model is not
here."""


@dataclass(frozen=True)
class Command:
    """A command of a page, and what the page shows below it."""

    line: str
    shown: str = ""

    @property
    def fails(self) -> bool:
        return self.shown.startswith("error:")


def commands(text):
    """What the blocks of a page run, in order: an `sh` block whole, a `console` block command by command."""
    for kind, body in BLOCK.findall(text):
        if kind == "sh":
            yield Command(body)
            continue
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            line, shown = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.DOTALL).groups()
            yield Command(line, shown.strip())


def script(found):
    """One shell script of all commands, which leaves what each said in `said.N`."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT"]
    for number, command in enumerate(found):
        lines.append(f"echo '== command {number}' >&2")
        if command.fails:
            lines.append(f"if {{ {command.line} }} > said.{number} 2>&1; then echo 'it did not fail' >&2; exit 97; fi")
        elif command.shown:
            lines.append(f"{{ {command.line} }} > said.{number} 2>&1 || {{ cat said.{number} >&2; exit 98; }}")
        else:
            lines.append(command.line)
    return "\n".join(lines)


def stand_in(folder, page, port, preloaded):
    """A `gemma-ops` before all others on the path, which sets what the page's row of the table says besides, except for
    keys that the command sets itself."""
    more = SUBSTITUTIONS[page] | {"serve": (f"serve.port={port}", "serve.max_tokens=64")}
    file = folder / "gemma-ops"
    file.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.helpers.preloaded import run\nwords = sys.argv[1:]\nkeys = {word.split('=')[0] for word in words}\n"
        f"for verb, more in {more!r}.items():\n"
        "    if words[:len(verb.split())] == verb.split():\n"
        "        words += [f'--set={value}' for value in more if value.split('=')[0] not in keys]\n"
        f"sys.exit(run({preloaded!r}, words))\n"
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def preloaded():
    """The socket of a process that runs commands, see preloaded.py."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/commands"
        with subprocess.Popen([sys.executable, str(ROOT / "tests/helpers/preloaded.py"), "serve", path]) as process:
            patience.until(lambda: Path(path).exists(), 120, of=process.pid)
            yield path
            process.terminate()


def masked(text):
    """A text without its numbers: a test has fewer rows than a page."""
    return re.sub(r"\d[\d,]*", "0", text)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_page(page, home, preloaded):
    """Write the files of a page and run its commands; what each said, and what went to the shell."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    serving, emulating = free_port(), free_port()
    text = text.replace("8080", str(serving)).replace("8765", str(emulating))
    folder, tools = home / "work", home / "bin"
    folder.mkdir()
    tools.mkdir()
    stand_in(tools, page, serving, preloaded)
    for name, body in FILE.findall(text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body, encoding="utf-8")
    found = list(commands(text))
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = patience.run(
        ["bash", "-c", script(found)],
        cwd=folder,
        seconds=300,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
    )
    return folder, found, done


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="the pages use bash and curl")
@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md")))
def test_the_commands_of_a_page_do_what_it_says(page, tmp_path, preloaded):
    folder, found, done = run_page(page, tmp_path, preloaded)
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{done.stdout[-2000:]}"
    assert len(found) > 3
    for number, command in enumerate(found):
        if not command.shown:
            continue
        said = (folder / f"said.{number}").read_text(encoding="utf-8")
        if command.fails:
            first = command.shown.splitlines()[0].removesuffix(" …")
            assert masked(first) in masked(said), f"{command.line} said:\n{said}"
            continue
        for line in command.shown.splitlines():
            word = next((word for word in line.split() if re.search("[A-Za-z]", word)), "")
            assert masked(word) in masked(said), f"{command.line} shows no {line!r}, but:\n{said}"


def test_every_page_says_what_it_needs_and_what_goes_wrong():
    pages = sorted(PAGES.glob("*.md"))
    assert {path.stem for path in pages} == set(SUBSTITUTIONS)
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert 40 <= text.count("\n") <= 150, path
        for heading in ("## What you need", "## What to look at", "## What goes wrong"):
            assert f"\n{heading}\n" in text, f"{path} has no {heading}"


def test_a_command_that_fails_is_noticed(tmp_path):
    """The tests above would notice: a failing command, an error that doesn't come, and words that aren't said."""
    for text, code in (("```sh\nfalse\n```\n", 1), ("```console\n$ true\nerror: no\n```\n", 97)):
        found = list(commands(text))
        assert patience.run(["bash", "-c", script(found)], cwd=tmp_path, seconds=20).returncode == code
    (good,) = commands("```console\n$ echo one \\\n  two\none two\n```\n")
    assert (good.line, good.shown) == ("echo one \\\n  two\n", "one two")
    assert patience.run(["bash", "-c", script([good])], cwd=tmp_path, seconds=20).returncode == 0
    assert (tmp_path / "said.0").read_text() == "one two\n"
