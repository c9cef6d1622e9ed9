"""The material that judges are shown: a question and its answers, made harmless.

Answers are written by models and questions by anybody, so both may hold orders to the judge, a forged end of the
material, or the control tokens of a chat template. None of it may look like what we write ourselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.answer import End
from gemma_ops.config import Privacy, ReleaseConfig
from gemma_ops.privacy.classes import answers_class

_CONTROL = re.compile(r"<(\|?)([A-Za-z_/\"][\w /\"-]{0,30}|[A-Za-z]?)(\|?)>")
"""Patterns of control tokens such as `<|turn>`, `<turn|>`, `<|im_start|>`, `<start_of_turn>`, `</s>`, as far as
`_TOKENS` knows the plain ones."""
_TOKENS = frozenset(
    {"start_of_turn", "end_of_turn", "bos", "eos", "s", "/s", "pad", "unk", "mask", "start_of_image", "end_of_image"}
)
_FENCE = re.compile(r"^(\s*)={3,}(?=\s*[0-9a-f]{8,})", re.MULTILINE)
_MARKERS = re.compile(
    r"\[(?=/?INST\]|\[?(?:A|B|C|tie|rating[^\]]*)\]\]"
    r"|(?:BEGIN|END)[ _](?:DATA|OF|ANSWER|QUESTION|RUBRIC))|<<(?=/?SYS>>)",
    re.IGNORECASE,
)
_UNSEEN = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")


@dataclass(frozen=True)
class Side:
    """The writer of a side's answers. Judges never see it."""

    name: str
    identity: str = ""
    family: str = "unknown"
    learned: Privacy = "any"
    """Strictest class of the rows that the writer learned from; for answers in a file, their rows say it."""
    answers: Privacy = "any"
    """Class of the answers for that reason: as `learned`, unless a person has released them."""

    @classmethod
    def of_model(cls, name: str, identity: str, family: str, learned: Privacy, release: ReleaseConfig) -> Side:
        """Return the side of a model that answered, under the release that a person gave."""
        return cls(name, identity, family, learned, answers_class(learned, release))


@dataclass(frozen=True)
class JudgedPair:
    """One question with the answers of both sides; `second` is None where one side is scored alone."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    first: str
    second: str | None
    first_end: End = "stop"
    second_end: End = "stop"
    reference: str | None = None
    privacy: Privacy = "local_only"
    cluster: str | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


def harmless(text: str) -> str:
    """Return the text with everything taken apart that could pass for a fence, a control token or a grader's marker,
    and with invisible characters made visible. What it says stays readable: a judge must see attempts."""
    text = _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)
    text = _CONTROL.sub(_control, text)
    text = _MARKERS.sub(lambda found: found.group(0) + " ", text)
    return _FENCE.sub(lambda found: found.group(1) + "= = =", text)


def _control(found: re.Match[str]) -> str:
    left, name, right = found.groups()
    if left or right or name in _TOKENS:
        return f"‹{left}{name}{right}›"
    return found.group(0)


def turns(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return role and text of every turn. Parts that are no text are named, not shown; tool calls are shown as they
    are."""
    found = []
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "\n".join(part["text"] if "text" in part else f"({part.get('type', 'part')})" for part in content)
        for call in message.get("tool_calls") or ():
            content += f"\n(calls {call})"
        found.append((str(message.get("role", "user")), content.strip()))
    return found
