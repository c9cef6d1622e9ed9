"""Chat templates: rendering one, and the one that gemma-ops brings.

`gemma4_training.jinja` renders byte for byte what Google's template of 2026-07-09 renders and marks what the model
itself emits: answers with their closing `<turn|>`, thoughts, tool calls, and the `<|tool_response>` that hands over
after them. Neither transformers nor torch is needed here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_ops.data.written_template import written
from gemma_ops.errors import DataError

Message = dict[str, Any]
Tool = dict[str, Any]

TEMPLATE = Path(__file__).with_name("gemma4_training.jinja")
BOS = "<bos>"
_SWITCH = "empty_thought | default(false)"
_GOOGLES = "603a42db292c25278e9b23d94c7abbe77453f13e26a053c43c5c2f900b4136f7"
"""SHA-256 of Google's template of E2B and E4B of 2026-07-09, without white space at its ends: `written_template` is
proven equal to it as well."""


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


@lru_cache(maxsize=32)
def _written_as(source: str) -> dict[str, Any] | None:
    """Return the variables by which `written_template` renders what this template does; None for a template that it
    isn't proven equal to."""
    if source in (training_template(), inference_template()):
        return {}
    if source == inference_template(empty_thought=True):
        return {"empty_thought": True}
    known = hashlib.sha256(source.strip().encode("utf-8", "surrogatepass")).hexdigest() == _GOOGLES
    return {"empty_thought": False} if known else None


def _written(
    source: str, messages: list[Message], tools: list[Tool] | None, variables: dict[str, Any]
) -> Iterable[str] | None:
    """Return the pieces of a rendering without Jinja, those of the model itself marked where the template marks them;
    None where only Jinja can say."""
    own = _written_as(source)
    if own is None:
        return None
    # The larger sizes' template has it as a default, Google's doesn't know the variable.
    given = own | variables if own.get("empty_thought") else variables | own
    found = written(messages, tools, BOS, given)
    if found is None:
        return None
    texts, emitted = found
    if source != training_template():
        return ("".join(texts),)
    return [_Emitted(text) if said else text for text, said in zip(texts, emitted, strict=True)]


def render_template(
    source: str, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **variables: Any
) -> Rendered:
    """Render a conversation with any chat template. Raises DataError when the template refuses the conversation.

    Our template, and Google's that ours repeats, are rendered without Jinja where the conversation has a known shape.
    """
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    position = 0
    try:
        turns, declared = list(messages), list(tools) if tools else None
        pieces = _written(source, turns, declared, variables)
        if pieces is None:
            pieces = compiled(source).generate(messages=turns, tools=declared, bos_token=BOS, **variables)
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
