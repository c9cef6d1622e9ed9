"""The schema of a `task.yaml`, and reading one with every problem reported at its line.

A task is written by hand, so an unknown key is refused with the key that was probably meant. A new kind of metric is
added in `metrics/`; nothing here changes for it.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from gemma_ops.config import ConfigSection, Name, Privacy
from gemma_ops.config import places as yamlplaces
from gemma_ops.config.places import Key
from gemma_ops.errors import ConfigError
from gemma_ops.metrics import AnyMetric, by_id


class TaskData(ConfigSection):
    """Where the questions are: shipped with the task, or in the user's data folder."""

    path: str | None = None
    """A jsonl file of the task's folder, one row per line."""
    from_source: str | None = None
    """A csv, tsv, jsonl or parquet file in the folder that the run's `data.path` points at, for data that isn't
    shipped."""
    prompt: str | None = None
    """For `from_source`: the user turn, with `{column}` placeholders (`{{` and `}}` are braces)."""
    reference: str | None = None
    """For `from_source`: the expected answer, with `{column}` placeholders."""
    id: str | None = None
    """For `from_source`: the row's id, with `{column}` placeholders; by default a hash of the question."""

    @model_validator(mode="after")
    def _one(self) -> TaskData:
        if (self.path is None) == (self.from_source is None):
            raise ValueError("data needs either path (shipped rows) or from_source (a file of the user's data folder)")
        if self.from_source and not (self.prompt and self.reference):
            raise ValueError("data.from_source needs data.prompt and data.reference")
        if self.path and (self.prompt or self.reference or self.id):
            raise ValueError("data.prompt, data.reference and data.id belong to data.from_source")
        return self


class TaskGeneration(ConfigSection):
    """How answers are made."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """An answer is cut after this many tokens, and counted as cut."""


class SliceSpec(ConfigSection):
    """A way to break results down."""

    name: Name
    """How the slice is called."""
    field: str
    """A field of the row or of its metadata, `reference.<key>` of a JSON reference, or `prompt_words`."""
    buckets: tuple[float, ...] = ()
    """For numbers: rising limits; `[10, 20]` makes `<10`, `10 to <20`, `≥20`."""

    @field_validator("buckets")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("buckets must rise")
        return value


class TaskFile(ConfigSection):
    """Everything that may stand in a `task.yaml`."""

    schema_: Annotated[Literal["gemma-ops/eval-task@1"], Field(alias="schema")]
    name: Name
    version: Annotated[int, Field(ge=1)]
    """Raise it when the task changes; results also carry a digest of the content."""
    description: str = ""
    data: TaskData
    system: str | None = None
    """A text file of the task's folder: the system turn."""
    prompt: str | None = None
    """For `data.path`: the user turn made from fields of the row; without it a row carries `prompt` or `messages`."""
    generation: TaskGeneration = TaskGeneration()
    privacy: Privacy = "local_only"
    """Who may see the rows; a row may only be stricter."""
    cluster_by: str | None = None
    """Field whose equal values belong together (one document, one customer): the unit of every interval."""
    slices: tuple[SliceSpec, ...] = ()
    metrics: Annotated[tuple[AnyMetric, ...], Field(min_length=1)]
    primary: str
    """The metric that targets are compared on."""
    rubric: str | None = None
    """A Markdown file of the task's folder that tells a reader what a good answer is; shown in the report."""

    @field_validator("slices", mode="before")
    @classmethod
    def _short_slices(cls, value: Any) -> Any:
        """Expand `category` to `{name: category, field: category}`."""
        return (
            [{"name": item, "field": item} if isinstance(item, str) else item for item in value]
            if isinstance(value, list)
            else value
        )

    @field_validator("metrics", mode="before")
    @classmethod
    def _short_metrics(cls, value: Any) -> Any:
        """Expand `json_valid` to `{id: json_valid}`."""
        return [{"id": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> TaskFile:
        names = [metric.key for metric in self.metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two metrics are called {twice[0]}: give one of them a `name`")
        if self.primary not in names:
            close = difflib.get_close_matches(self.primary, names, n=1)
            raise ValueError(
                f"primary: {self.primary!r} is none of the metrics"
                + (f", did you mean {close[0]}?" if close else f" ({', '.join(names)})")
            )
        if self.data.from_source and self.prompt:
            raise ValueError("with data.from_source the template is data.prompt, not prompt")
        return self


def read_task_file(path: Path) -> TaskFile:
    """Read a `task.yaml`. Raises ConfigError with every problem, each with its line."""
    places: dict[Key, str] = {}
    problems: list[str] = []
    body = yamlplaces.Reader(str(path), lambda _: "any", places, problems).file(path)
    task = None
    try:
        task = TaskFile.model_validate(body)
    except ValidationError as error:
        problems += [_explain(path, places, item) for item in error.errors()]
    if problems or task is None:
        raise ConfigError(
            f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(problems),
            "correct the lines above; eval/README.md describes every key",
        )
    return task


def _explain(path: Path, places: dict[Key, str], error: Any) -> str:
    """Return one line for one problem: file and line, the key, what is wrong, what was probably meant."""
    # In a list of metrics pydantic adds the metric's id to the location; the file has no such level.
    key: Key = tuple(
        part for index, part in enumerate(error["loc"]) if not (index == 2 and error["loc"][0] == "metrics")
    )
    where = next((places[key[:end]] for end in range(len(key), 0, -1) if key[:end] in places), f"{path}:1")
    name = ".".join(map(str, key))
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1])
        close = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
        return f"{where}: {name}: unknown key" + (
            f", did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
        )
    if error["type"] == "union_tag_invalid":
        found = str(error["ctx"]["tag"])
        close = difflib.get_close_matches(found, list(by_id()), n=1)
        return f"{where}: {name}: no metric {found!r}" + (
            f", did you mean {close[0]}?" if close else f"; there are {', '.join(by_id())}"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error", "missing"):
        return f"{where}: {f'{name}: ' if name else ''}{'is missing' if error['type'] == 'missing' else message}"
    return f"{where}: {name}: {message[0].lower()}{message[1:]}, found {json.dumps(error['input'], default=str)[:60]}"


def _fields(loc: Key) -> list[str]:
    """Return the keys known at a place of the tree."""
    model: type[BaseModel] = TaskFile
    sections: dict[str, type[BaseModel]] = {"data": TaskData, "generation": TaskGeneration, "slices": SliceSpec}
    for index, part in enumerate(loc):
        if index == 2 and loc[0] == "metrics":
            model = by_id()[str(part)]
        elif isinstance(part, str) and part in sections:
            model = sections[part]
    return sorted(field.alias or name for name, field in model.model_fields.items())
