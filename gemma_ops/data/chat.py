"""Conversations to text and tokens, exactly as Gemma 4 reads them, with the parts that carry loss.

One template, `gemma4_training.jinja`, serves training and inference: it renders byte for byte what Google's published
template renders and marks what the model itself emits: answers with their closing `<turn|>`, thoughts, tool calls, and
the `<|tool_response>` that hands over after them. Neither transformers nor torch is needed here.

The published template drops and strips silently (thoughts of earlier turns, channels inside an answer, white space at
the ends); `normal.py` and `check.py` say where that happens.
"""

from __future__ import annotations

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
from tokenizers import Tokenizer

from gemma_ops import family
from gemma_ops.data.encoded import Encoded, expand
from gemma_ops.errors import DataError, ModelError
from gemma_ops.family.media import Senses

Message = dict[str, Any]
Tool = dict[str, Any]

TEMPLATE = Path(__file__).with_name("gemma4_training.jinja")
BOS = "<bos>"
# Tokens that carry the structure of a conversation; a tokenizer without one of them isn't Gemma 4's.
STRUCTURE = (
    BOS, "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>",
    "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
)  # fmt: skip


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
    """A chat template, compiled in a sandbox with what such templates expect (`raise_exception`, `tojson`).

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
    """Our template with its generation markers."""
    return TEMPLATE.read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def inference_template() -> str:
    """The same template without markers: what a checkpoint ships as `chat_template.jinja`."""
    return re.sub(r"\{%-\s*(?:end)?generation\s*-%\}", "", training_template())


def render_template(
    source: str, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **variables: Any
) -> Rendered:
    """Render with any chat template. Raises DataError when the template refuses the conversation."""
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


def render(
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    add_generation_prompt: bool = False,
    thinking: bool = False,
    empty_thought: bool = False,
) -> Rendered:
    """A conversation as Gemma 4 text, with the character spans that carry loss.

    `thinking` puts `<|think|>` into the system turn. `empty_thought` is for the sizes whose prompt ends in an empty
    thought channel while thinking is off (12B, 26B-A4B, 31B): it opens every model turn that has no thought of its own,
    without loss, and ends the generation prompt. Raises DataError on what the template refuses.
    """
    return render_template(
        training_template(),
        messages,
        tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=thinking,
        empty_thought=empty_thought,
    )


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    max_length: int | None = None,
    empty_thought: bool = False,
    thinking: bool = False,
    last_only: bool = False,
    senses: Senses | None = None,
) -> Encoded:
    """A conversation as token ids with a loss flag each, cut at `max_length` tokens.

    A token carries loss only if all its characters are the model's; with `last_only`, and come after the last question.
    `senses` says what images and sounds cost. Raises DataError when the text would hold more than the one `<bos>` it
    starts with, or what `render` and `expand` raise.
    """
    rendered = render(messages, tools, thinking=thinking, empty_thought=empty_thought)
    encoding = tokenizer.encode(rendered.text, add_special_tokens=False)
    ids, offsets = encoding.ids, encoding.offsets
    _one_bos(tokenizer, ids)
    spans = rendered.spans
    if last_only:
        asked = rendered.text.rfind("<|turn>user")
        spans = [span for span in spans if span[0] > asked]
    whole = Encoded(ids, loss_flags(offsets, spans), False, rendered.text, offsets)
    return expand(whole, tokenizer, messages, senses).cut(max_length)


def loss_flags(offsets: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token's character range, whether it lies wholly inside one of the (ordered) spans."""
    flags: list[bool] = []
    index = 0
    for start, end in offsets:
        while index < len(spans) and spans[index][1] <= start:
            index += 1
        flags.append(index < len(spans) and start < end and spans[index][0] <= start and end <= spans[index][1])
    return flags


def straddling(offsets: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of tokens that a span boundary cuts: they carry no loss, and at inference they would be two tokens."""
    edges = sorted({edge for span in spans for edge in span})
    found, index = [], 0
    for number, (start, end) in enumerate(offsets):
        while index < len(edges) and edges[index] <= start:
            index += 1
        if index < len(edges) and edges[index] < end:
            found.append(number)
    return found


def prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    empty_thought: bool = False,
    thinking: bool = False,
    senses: Senses | None = None,
) -> Encoded:
    """The prompt that asks for the next answer, as tokens without loss. Raises like `encode`."""
    text = render(messages, tools, add_generation_prompt=True, thinking=thinking, empty_thought=empty_thought).text
    encoding = tokenizer.encode(text, add_special_tokens=False)
    _one_bos(tokenizer, encoding.ids)
    whole = Encoded(encoding.ids, [False] * len(encoding.ids), False, text, encoding.offsets)
    return expand(whole, tokenizer, messages, senses)


def prompt_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **manner: Any
) -> list[int]:
    """Token ids of the prompt that asks for the next answer; `manner` as in `prompt`. Raises like `encode`."""
    return prompt(tokenizer, messages, tools, **manner).ids


def _one_bos(tokenizer: Tokenizer, ids: list[int]) -> None:
    bos = tokenizer.token_to_id(BOS)
    if bos is None:
        raise ModelError(f"the tokenizer has no {BOS} token", "use the tokenizer of a Gemma 4 checkpoint")
    if ids[:1] != [bos] or ids.count(bos) != 1:
        raise DataError(
            f"the conversation holds {ids.count(bos)} {BOS} tokens instead of one",
            f"remove the literal {BOS} from the messages: the template adds it",
        )


def tokenizer_file(folder: Path) -> Path:
    """`tokenizer.json` of a checkpoint folder, or of an artifact that holds one. Raises ModelError when there is none."""
    for candidate in (folder / "weights", folder / "model", folder):
        if (candidate / "tokenizer.json").is_file():
            return candidate / "tokenizer.json"
    raise ModelError(f"no tokenizer.json in {folder}", "give a complete checkpoint folder (config, weights, tokenizer)")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, without truncation or padding.

    Raises ModelError when the file is missing, broken, or lacks one of Gemma 4's structural tokens.
    """
    file = tokenizer_file(folder)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{file} can't be read: {error}", "fetch the checkpoint again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    missing = [token for token in STRUCTURE if tokenizer.token_to_id(token) is None]
    if missing:
        raise ModelError(f"{file} is not a Gemma 4 tokenizer: it lacks {' '.join(missing)}", "use a Gemma 4 checkpoint")
    return tokenizer


def checkpoint_template(folder: Path) -> str | None:
    """The chat template a checkpoint brings (`chat_template.jinja`, else `tokenizer_config.json`), or None."""
    home = tokenizer_file(folder).parent
    if (home / "chat_template.jinja").is_file():
        return (home / "chat_template.jinja").read_text(encoding="utf-8")
    config = home / "tokenizer_config.json"
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # the older form: several templates by name
        found = next((item["template"] for item in found if item.get("name") == "default"), None)
    return found


def prefills(folder: Path) -> bool:
    """Whether prompts of this checkpoint end in an empty thought channel (those of 12B, 26B-A4B and 31B do).

    Its own template says so, since engines that serve it will follow that; without one the size of its `config.json`.
    """
    template = checkpoint_template(folder)
    if template is None:
        config = tokenizer_file(folder).parent / "config.json"
        return config.is_file() and family.empty_thought(json.loads(config.read_text(encoding="utf-8")))
    question = [{"role": "user", "content": "?"}]
    try:
        return render_template(template, question, add_generation_prompt=True).text.endswith("<channel|>")
    except DataError:
        return False  # a template that renders nothing prompts for nothing; `check` reports it on every row
