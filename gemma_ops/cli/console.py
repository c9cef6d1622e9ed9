"""Output for a person: results on stdout, progress on stderr. The only user of rich.

On a terminal a training shows a bar with loss, tokens/s and the time left; elsewhere (a log file, CI) the same facts
come as plain lines, at most one every few seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gemma_ops.runs.artifact import Artifact
from gemma_ops.runs.journal import Record
from gemma_ops.runs.run import Run

_PARTS = ("phase", "what", "task", "target", "format", "event")
"""Fields of a record that say which part of a step it is about; each part counts from the beginning."""
_EVERY = 5.0
"""Seconds between plain progress lines of one step."""


def out() -> Console:
    """Return the console for results."""
    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    """Return the console for progress and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n")


def print_error(what: str, fix: str) -> None:
    """Print the two lines every failure ends in."""
    console = err()
    console.print(Text.assemble(("error: ", "bold red"), what))
    console.print(Text.assemble(("try: ", "bold"), fix))


def notice(text: str) -> None:
    """Print a line that a person should read before the work starts."""
    err().print(Text.assemble(("note: ", "bold yellow"), text))


def coloured_tokens(tokens: Iterable[tuple[str, bool]]) -> Text:
    """Return the tokens of a row: those that carry loss green, the others dim; boundaries stay visible as alternating
    underlines."""
    text = Text()
    for index, (token, has_loss) in enumerate(tokens):
        shown = token.replace("\n", "⏎\n")
        style = "green" if has_loss else "dim"
        text.append(shown, style=f"{style} underline" if index % 2 else style)
    return text


class ProgressFollower:
    """Shows a run while it happens. Implements `run.Listener`."""

    def __init__(self) -> None:
        self._console = err()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._part: tuple[Any, ...] = ()
        self._began: dict[str, float] = {}
        self._last = 0.0

    def step_started(self, run: Run, step: str, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        self._began[step] = time.time()
        self._last = time.time()
        self._console.print(Text.assemble(("▸ ", "cyan"), (f"{step:<9}", "bold")))

    def step_record(self, run: Run, step: str, record: Record) -> None:
        if "message" in record:
            self._console.print(Text(f"  {record['message']}", style="dim"))
        if record.get("event") == "gemini" and record.get("from_store"):
            stored, asked = record["from_store"], record["answers"]
            self._console.print(
                Text(f"  {stored:,} of {asked:,} answers of Gemini were in the store and cost nothing now", style="dim")
            )
        if record.get("event") == "gemini.pii":
            found = ", ".join(f"{kind} {count:,}" for kind, count in record["found"].items())
            forbidden = "; the terms of the unpaid tier forbid sending it" if record["forbidden_by_terms"] else ""
            told = f"  personal data in {record['rows']:,} of {record['of']:,} requests to Gemini ({found}){forbidden}"
            self._console.print(Text(told, style="yellow"))
        done = record.get("step", record.get("done"))
        if done is None:
            return
        total = next((record[key] for key in ("steps", "total", "of", "rows") if record.get(key)), None)
        if self._console.is_terminal and total:
            self._show_bar(step, record, int(done), int(total))
        elif time.time() - self._last >= _EVERY:
            self._last = time.time()
            self._console.print(f"  {_line(record, done, total)}")

    def step_finished(self, run: Run, artifact: Artifact) -> None:
        self._close()
        if artifact.kept:
            self._console.print(Text.assemble(("✓ ", "green"), (f"{artifact.name:<9}", "bold"), ("  kept", "dim")))
            return
        seconds = time.time() - self._began.get(artifact.name, time.time())
        self._console.print(
            Text.assemble(
                ("✓ ", "green"), (f"{artifact.name:<9}", "bold"), f"  {seconds:.1f} s  ", (artifact.digest[:12], "dim")
            )
        )

    def run_finished(self, run: Run, error: BaseException | None) -> None:
        self._close()

    def _show_bar(self, step: str, record: Record, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("  "), BarColumn(bar_width=30), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[facts]}"), TimeRemainingColumn(), console=self._console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(step, total=total, facts="")
        assert self._task is not None
        part = tuple(record.get(key) for key in _PARTS)
        if part != self._part:  # another target or phase: its speed is its own
            self._part = part
            self._bar.reset(self._task, total=total, completed=done)
        self._bar.update(self._task, completed=done, total=total, facts=_facts(record))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._task = None, None


def _facts(record: Record) -> str:
    parts = []
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    if "eval_loss" in record:
        parts.append(f"valid {record['eval_loss']:.4f}")
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    parts += [str(record[key]) for key in ("phase", "what", "task", "target", "format") if key in record]
    return "  ".join(parts)


def _line(record: Record, done: Any, total: Any) -> str:
    text = f"{done:,}/{total:,}" if total else f"{done:,}"
    eta = f"  {record['eta_seconds']:.0f} s left" if record.get("eta_seconds") else ""
    return f"{text}  {_facts(record)}{eta}".rstrip()


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns on stdout; the first is a name, the others are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, width=200 if not sys.stdout.isatty() else None).print(table)
