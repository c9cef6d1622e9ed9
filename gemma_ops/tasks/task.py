"""A task: questions, expected answers, and how answers are scored. A folder with a `task.yaml`; see
`eval/README.md`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gemma_ops.data.media_files import MediaShelf
from gemma_ops.data.parts import media_of
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.metrics.metric import ScoredAnswer, ScoredRow, Scorer
from gemma_ops.runs import digest
from gemma_ops.tasks import task_rows as rowfiles
from gemma_ops.tasks.question import make_question, renamed
from gemma_ops.tasks.task_file import TaskFile, read_task_file


@dataclass(frozen=True)
class Task:
    """A task ready to be answered and scored. `digest` covers task.yaml and every file that decides rows or scores."""

    file: TaskFile
    folder: Path
    rows: tuple[ScoredRow, ...]
    scorers: tuple[Scorer, ...]
    digest: str
    rubric: str
    total: int
    """Number of rows before `first` chose some."""
    copies: int = 0
    """Number of rows that ask what an earlier row asks; see `question_copies.py`."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Text that makes a row stricter than it says of itself, by the row's id; see `tightening.py`."""

    @property
    def clustered(self) -> bool:
        """True if rows come in clusters, so that `cluster` of each row says in which."""
        return self.file.cluster_by is not None or self.copies > 0

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def shows(self) -> frozenset[str]:
        """Return the kinds of media in the questions: of `image` and `audio`."""
        return frozenset(part["type"] for row in self.rows if row.media for part in media_of(row.messages))

    @property
    def columns(self) -> list[str]:
        """Return the names of all per-row figures."""
        return [column for scorer in self.scorers for column in scorer.columns]

    @property
    def figures(self) -> list[str]:
        """Return the names of everything a gate may ask about: columns and aggregates."""
        return self.columns + [name for scorer in self.scorers for name in scorer.aggregates]

    def score(self, text: str, row: ScoredRow) -> ScoredAnswer:
        """Score one answer with every metric."""
        values: dict[str, float | None] = {}
        detail: dict[str, Any] = {}
        for scorer in self.scorers:
            scored = scorer.score(text, row)
            values |= scored.values
            if scored.detail:
                detail[scorer.key] = scored.detail
        return ScoredAnswer(values, detail)

    def first(self, count: int | None) -> Task:
        """Return the task with only `count` rows, the first by hash of their id: the same ones whatever the file's
        order."""
        if count is None or count >= len(self.rows):
            return self
        chosen = set(
            sorted((row.id for row in self.rows), key=lambda item: hashlib.sha256(item.encode()).hexdigest())[:count]
        )
        return replace(self, rows=tuple(row for row in self.rows if row.id in chosen))


def needs_source(folder: Path) -> bool:
    """True if the task's rows are not shipped, so that `load_task` needs the user's data folder."""
    return read_task_file(folder / "task.yaml").data.from_source is not None


def load_task(folder: Path, source: Path | None = None) -> Task:
    """Read a task folder. `source` is the user's data folder, or a file in it, for tasks whose rows aren't shipped.

    Raises ConfigError for a wrong task.yaml (every problem with its line) and DataError for wrong or missing rows.
    """
    path = folder / "task.yaml"
    file = read_task_file(path)
    system = _text(folder, file.system, "system")
    rubric = _text(folder, file.rubric, "rubric")
    data = _data_path(file, folder, source)
    parts = {"task.yaml": digest.of_file(path), "data": digest.of_file(data)}
    for name in (file.system, file.rubric, *(getattr(metric, "file", None) for metric in file.metrics)):
        if name and (folder / name).is_file():
            parts[name] = digest.of_file(folder / name)
    rows: list[ScoredRow] = []
    seen: dict[str, str] = {}
    shelf = MediaShelf(data.parent, None, whole=False)
    for place, body in rowfiles.read_task_rows(data):
        row = make_question(file, body, place, system, shelf)
        if row.id in seen:
            if "id" in body or file.data.id:
                raise DataError(
                    f"{place}: the id {row.id!r} was used before, at {seen[row.id]}", "give every row its own id"
                )
            row = renamed(row, seen)
        seen[row.id] = place
        rows.append(row)
    if shelf.found:
        parts["shown"] = digest.of_listing({name: Path(name).stem for name in shelf.found})
    if not rows:
        raise DataError(f"{data} holds no rows", "a task needs at least one question")
    scorers = tuple(metric.scorer(folder, rows) for metric in file.metrics)
    return Task(file, folder, tuple(rows), scorers, digest.of_listing(parts), rubric, len(rows))


def validate_tasks(task: Task, limit: int = 5) -> None:
    """Check that the task can be won and lost: gold answers score 1 in every column, an empty answer less.

    Raises DataError with the first problems. Rows without a reference are left out.
    """
    problems: list[str] = []
    for row in task.rows:
        if row.reference is None:
            continue
        gold, empty = task.score(row.gold, row).values, task.score("", row).values
        for column in task.columns:
            value, nothing = gold[column], empty[column]
            if value is not None and value < 1 - 1e-9:
                problems.append(f"row {row.id}: its own reference scores {value:.3f} in {column}")
            if nothing is not None and nothing >= 1 - 1e-9:
                problems.append(f"row {row.id}: an empty answer scores {nothing:.3f} in {column}")
    if problems:
        more = f"\n  … and {len(problems) - limit} more" if len(problems) > limit else ""
        raise DataError(
            f"task {task.name} can't measure anything yet:\n  " + "\n  ".join(problems[:limit]) + more,
            "correct the references or the metrics' options: each reference must be an answer that deserves full marks",
        )


def _text(folder: Path, name: str | None, key: str) -> str:
    if name is None:
        return ""
    try:
        return (folder / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{folder / 'task.yaml'}: {key}: {folder / name} can't be read: {error}", f"add the file or correct `{key}`"
        ) from error


def _data_path(file: TaskFile, folder: Path, source: Path | None) -> Path:
    if file.data.path is not None:
        path = folder / file.data.path
        if not path.is_file():
            raise DataError(
                f"task {file.name}: {path} does not exist", "put the rows there, or correct data.path in task.yaml"
            )
        return path
    assert file.data.from_source is not None
    if source is None:
        raise DataError(
            f"task {file.name} reads {file.data.from_source} from your data folder, and no folder was given",
            f"point data.path at the folder that holds {file.data.from_source}: --set data.path=FOLDER",
        )
    path = (source if source.is_dir() else source.parent) / file.data.from_source
    if not path.is_file():
        raise DataError(
            f"task {file.name}: {path} does not exist",
            f"put {file.data.from_source} beside the training data that data.path names",
        )
    return path


def load_all(folders: tuple[Path, ...], source: Path | None) -> Iterator[Task]:
    """Load several tasks; two of one name are refused, since results are filed under the name."""
    names: dict[str, Path] = {}
    for folder in folders:
        task = load_task(folder, source)
        if task.name in names:
            raise ConfigError(f"{folder} and {names[task.name]} both call their task {task.name}", "rename one of them")
        names[task.name] = folder
        yield task
