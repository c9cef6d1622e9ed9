"""Chat templates: rendering one, and the one that gemma-ops brings.

`gemma4_training.jinja` renders byte for byte what Google's template of 2026-07-09 renders and marks what the model
itself emits: answers with their closing `<turn|>`, thoughts, tool calls, and the `<|tool_response>` that hands over
after them. Neither transformers nor torch is needed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_ops.errors import DataError

Message = dict[str, Any]
Tool = dict[str, Any]

TEMPLATE = Path(__file__).with_name("gemma4_training.jinja")
BOS = "<bos>"
_SWITCH = "empty_thought | default(false)"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `spans` are the character ranges [start, end) that carry loss, in order, not touching."""

    text: str
    spans: list[tuple[int, int]]


class _Emitted(str):
    """Text from inside a generation block; the type survives until the pieces of a rendering are joined."""

    __slots__ = ()


class _GenerationBlock(Extension):  # type: ignore[misc]
    """`{% generation %}…{% endgeneration %}`: renders its body and marks it as emitted by the model."""

    tags = {"generation"}  # noqa: RUF012 (the interface of jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_emit"), [], [], body).set_lineno(line)

    def _emit(self, caller: Any) -> _Emitted:
        return _Emitted(caller())


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    """Compile a chat template in a sandbox with what such templates expect (`raise_exception`, `tojson`).

    The clock (`strftime_now`) is left out on purpose: a rendering must not depend on the day.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


@lru_cache(maxsize=1)
def training_template() -> str:
    """Return our chat template with its generation markers."""
    return TEMPLATE.read_text(encoding="utf-8")


@lru_cache(maxsize=2)
def inference_template(*, empty_thought: bool = False) -> str:
    """Return our chat template without markers: what a checkpoint ships as `chat_template.jinja`.

    `empty_thought`: of a size whose prompts end in an empty thought while thinking is off.
    """
    plain = re.sub(r"\{%-\s*(?:end)?generation\s*-%\}", "", training_template())
    return plain.replace(_SWITCH, _SWITCH.replace("false", "true")) if empty_thought else plain


def render_template(
    source: str, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **variables: Any
) -> Rendered:
    """Render a conversation with any chat template. Raises DataError when the template refuses the conversation."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    position = 0
    try:
        pieces = compiled(source).generate(messages=list(messages), tools=tools or None, bos_token=BOS, **variables)
        for piece in pieces:
            end = position + len(piece)
            if isinstance(piece, _Emitted) and piece:
                if spans and spans[-1][1] == position:
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((position, end))
            parts.append(piece)
            position = end
    except (jinja2.TemplateError, TypeError) as error:
        raise DataError(
            f"the chat template refuses this conversation: {error}",
            "see `gemma-ops data check` for the row; importing it with `prepare` repairs what can be repaired",
        ) from error
    return Rendered("".join(parts), spans)
