"""Layouts of a row: OpenAI messages, ShareGPT, Alpaca, prompt/completion, Gemini tuning, or columns filled into a text.

Each function takes one raw row and returns `(messages, tools)` as its author wrote them; `normal.conversation` then
brings them into one spelling. Rows with answers that were compared or judged are read by `preferences.py`. `detect`
looks at the keys of the first rows, never at the file's name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from gemma_ops.config import DataConfig
from gemma_ops.data import documents, preferences
from gemma_ops.data.example import parse_example
from gemma_ops.data.gemini_rows import gemini
from gemma_ops.data.marks import REVERSED, TURN_MARKS, UNREADABLE
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError

Row = dict[str, Any]
Raw = tuple[Any, Any]  # messages, tools
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w .-]*)\}")
_SHAREGPT_TOOLS = {"function_call", "tool_call"}
_MARKS = frozenset({*TURN_MARKS, *REVERSED, *UNREADABLE})
_SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")


def detect(rows: Sequence[Row]) -> str:
    """Return the format that most of the given rows have. Raises DataError naming the keys found and what to set."""
    votes = [layout for row in rows if (layout := _layout(row))]
    if votes:
        return max(sorted(set(votes)), key=votes.count)
    keys = sorted({str(key) for row in rows for key in row})[:20]
    raise DataError(
        f"no known layout in the first rows, whose keys are: {', '.join(keys) or 'none'}",
        "set data.prompt and data.completion with {column} placeholders, for example "
        "--set data.prompt='{question}' --set data.completion='{answer}', or name the layout with data.format",
    )


def _layout(row: Row) -> str | None:
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return "preference"
    if "preferred_output" in row:
        return "openai_preference"
    if "completion" in row and isinstance(row.get("label"), bool):
        return "judged"
    turns = row.get("conversations", row.get("conversation"))
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    if isinstance(row.get("messages"), list) or "role" in first:
        return "messages"
    if "from" in first:
        return "sharegpt"
    if isinstance(row.get("contents"), list):
        return "gemini"
    if "instruction" in row and ("output" in row or "response" in row):
        return "alpaca"
    if "prompt" in row and ("completion" in row or "response" in row):
        return "prompt_completion"
    if isinstance(row.get("text"), str) and row.keys() <= documents.KEYS:
        return "text"
    return None


def reader(layout: str, settings: DataConfig) -> Callable[[Row], Any]:
    """Return the function that reads rows of a layout: into `Raw`, `Compared` where answers were compared or judged, or
    a text.

    Raises DataError when `columns` has no templates.
    """
    if layout == "columns":
        if settings.prompt is None or settings.completion is None:
            raise DataError("data.format is columns, but there are no templates", "set data.prompt and data.completion")
        return lambda row: table_columns(row, settings.prompt or "", settings.completion or "")
    return {
        "messages": messages,
        "sharegpt": sharegpt,
        "alpaca": alpaca,
        "prompt_completion": prompt_completion,
        "gemini": gemini,
        "preference": preferences.preference,
        "openai_preference": preferences.openai_preference,
        "judged": preferences.judged_answers,
        "text": documents.document_of,
    }[layout]


def messages(row: Row) -> Raw:
    """Read OpenAI's `{"messages": [{"role", "content", …}], "tools": […]}`; `conversations` is read as well."""
    found = next((row[key] for key in ("messages", "conversations", "conversation") if key in row), None)
    if isinstance(found, str):
        found = _json(found, "messages")
    return found, row.get("tools", row.get("functions"))


def sharegpt(row: Row) -> Raw:
    """Read ShareGPT's `{"conversations": [{"from", "value"}], "system", "tools"}`, with its function calls as JSON
    text."""
    turns = row.get("conversations", row.get("conversation"))
    if not isinstance(turns, list):
        raise RowError("no_messages", "the row has no conversations")
    found: list[Row] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowError("not_a_message", "a turn is not an object with from and value")
        speaker, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if speaker in _SHAREGPT_TOOLS:
            calls = _json(value, "a function call")
            calls = calls if isinstance(calls, list) else [calls]
            found.append({"role": "assistant", "content": "", "tool_calls": [{"function": call} for call in calls]})
        else:
            found.append({**{key: turn[key] for key in turn if key in _MARKS}, "role": speaker, "content": value})
    return found, row.get("tools")


def alpaca(row: Row) -> Raw:
    """Read Alpaca's `{"instruction", "input", "output", "system", "history"}`; the input follows after an empty
    line."""
    question = _field(row, "instruction")
    if row.get("input"):
        question = f"{question}\n\n{_field(row, 'input')}"
    found: list[Row] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("not_a_message", "history is not a list of [question, answer] pairs")
        found += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    answer = _field(row, "output" if "output" in row else "response")
    return [*found, {"role": "user", "content": question}, {"role": "assistant", "content": answer}], row.get("tools")


def prompt_completion(row: Row) -> Raw:
    """Read `{"prompt", "completion"}`, each a text or a list of messages (TRL's conversational form)."""
    answer = row.get("completion", row.get("response"))
    found: list[Any] = []
    for role, value in (("user", row.get("prompt")), ("assistant", answer)):
        if isinstance(value, list):
            found += value
        else:
            found.append({"role": role, "content": value})
    return found, row.get("tools")


def table_columns(row: Row, prompt: str, completion: str) -> Raw:
    """Make a user and an assistant turn from templates with `{column}` placeholders; `{{` and `}}` are literal
    braces."""
    found = [
        {"role": "user", "content": fill_template(prompt, row)},
        {"role": "assistant", "content": fill_template(completion, row)},
    ]
    return found, None


@lru_cache(maxsize=64)
def _compiled(names: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(r"\{\{|\}\}|\{(" + "|".join(re.escape(name) for name in longest_first) + r")\}")


def fill_template(template: str, row: Row) -> str:
    """Return a template with `{column}` replaced by the row's text, numbers as written in JSON.

    Braces that don't hold a column's name stay as they are, so JSON can stand in a template. Raises RowError when the
    row has no such column, or its cell is null or not text.
    """
    for name in placeholders(template):
        if name not in row:
            raise RowError("no_column", f"the row has no column {name}")

    def cell(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        value = row[match[1]]
        if isinstance(value, bool | int | float):
            return json.dumps(value)
        if not isinstance(value, str):
            raise RowError("null_column" if value is None else "not_text", f"the column {match[1]} is {_shape(value)}")
        return value

    return _compiled(tuple(str(name) for name in row)).sub(cell, template)


@lru_cache(maxsize=64)
def placeholders(template: str) -> tuple[str, ...]:
    """Return the column names that a template asks for."""
    return tuple(_PLACEHOLDER.findall(template.replace("{{", "").replace("}}", "")))


def check_columns(settings: DataConfig, rows: Sequence[Row]) -> None:
    """Raise DataError when a template asks for a column that none of the first rows has."""
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    for name in placeholders(settings.prompt or "") + placeholders(settings.completion or ""):
        if rows and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {{{near[0]}}}?" if near else ""
            raise DataError(
                f"the template asks for the column {{{name}}}, but the columns are: {', '.join(names)}{hint}",
                "correct data.prompt or data.completion; write {{ and }} for literal braces around a name",
            )


def system_column(row: Row) -> str | None:
    """Return the instructions that stand in a column next to a row's turns. Raises RowError for one that is no text."""
    for key in _SYSTEM:
        if row.get(key) not in (None, ""):
            return _field(row, key)
    return None


def _field(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError("null_column" if value is None else "not_text", f"{key} is {_shape(value)}")
    return value


def _json(text: Any, what: str) -> Any:
    try:
        return parse_example(text)
    except (TypeError, ValueError) as error:
        raise RowError("bad_json", f"{what} is not JSON: {error}") from None


def _shape(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}, not text"
