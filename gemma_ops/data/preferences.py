"""Rows whose answers were compared or judged: TRL's and OpenAI's layouts, and what becomes of them.

Whatever the layout, one prompt is left, and an answer that is wanted, one that is not, or both. What both sides share
is the prompt; where they part must be the model's turn, else they answer different questions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gemma_ops.data.normal import ROLES, conversation
from gemma_ops.data.rowerror import RowError

Row = dict[str, Any]
Messages = list[dict[str, Any]]
_TURN = re.compile(r"\n\n(Human|Assistant):")
"""Pattern of the turns in the one text of Anthropic's HH-RLHF."""


@dataclass(frozen=True)
class Compared:
    """A prompt and its answers as their author wrote them; without a prompt, each side is a whole conversation."""

    prompt: Any
    chosen: Any
    rejected: Any
    tools: Any = None


def preference(row: Row) -> Compared:
    """Read TRL's `{"prompt", "chosen", "rejected"}`, texts or lists of messages, or whole conversations without a
    prompt.

    A prompt may also be called `question`, with `system` next to it, and `messages` where this project wrote the row.
    With one of the two sides the row is a judged answer.
    """
    chosen, rejected = (_turns(row.get(side), "assistant") for side in ("chosen", "rejected"))
    whole = any(
        ROLES.get(str(turn.get("role")).lower()) == "user" for side in (chosen, rejected) for turn in side or []
    )
    prompt = _turns(row.get("prompt", row.get("question")), "user")
    if prompt is None and not whole and row.get("messages") is not None:
        prompt = _turns(row["messages"], "user")
    if prompt is None and not whole:
        raise RowError("no_prompt", "the row has no prompt, and its sides are no conversations")
    if whole:
        _same_beginning(prompt, chosen, rejected)
        prompt = None
    return Compared(prompt, chosen, rejected, row.get("tools"))


def openai_preference(row: Row) -> Compared:
    """Read OpenAI's `{"input": {"messages", "tools"}, "preferred_output": […], "non_preferred_output": […]}`."""
    given = row.get("input")
    if not isinstance(given, dict):
        raise RowError("no_prompt", "input is not an object with messages")
    chosen, rejected = (_turns(row.get(key), "assistant") for key in ("preferred_output", "non_preferred_output"))
    if chosen is None or rejected is None:
        raise RowError("one_side", "the row needs preferred_output and non_preferred_output")
    return Compared(_turns(given.get("messages"), "user"), chosen, rejected, given.get("tools"))


def judged_answers(row: Row) -> Compared:
    """Read KTO's `{"prompt", "completion", "label"}`; `messages` instead of the first two is read as well."""
    label = row.get("label")
    if label not in (True, False):  # 1 and 0 count as well
        raise RowError("no_label", f"the label {label!r} is neither true nor false")
    prompt = _turns(row.get("prompt"), "user")
    answer = _turns(row.get("completion", row.get("messages")), "assistant")
    return Compared(prompt, answer if label else None, None if label else answer, row.get("tools"))


def compared(raw: Compared, *, system: str | None = None, own: str | None = None) -> tuple[Row, list[str]]:
    """Return normalised `messages`, `tools`, `chosen` and `rejected`, and the codes of what was repaired; `system` and
    `own` as in `normal.conversation`.

    Raises RowError: what `conversation` raises for either side, different prompts, equal sides.
    """
    sides = {name: side for name, side in (("chosen", raw.chosen), ("rejected", raw.rejected)) if side is not None}
    if not sides:
        raise RowError("one_side", "the row has neither a chosen nor a rejected answer")
    whole: dict[str, Messages] = {}
    notes: list[str] = []
    for name, side in sides.items():
        if not isinstance(side, list):
            raise RowError("not_a_message", f"{name} is neither a text nor a list of messages")
        try:
            whole[name], tools, found = conversation((raw.prompt or []) + side, raw.tools, system=system, own=own)
        except RowError as error:
            raise RowError(error.code, f"{name}: {error.reason}") from None
        notes += [code for code in found if code not in notes]
    first = next(iter(whole.values()))
    if raw.prompt is not None:
        shared = len(first) - len(next(iter(sides.values())))
    elif len(whole) == 2:
        shared = _common(*whole.values())
    else:
        shared = max(index for index, message in enumerate(first) if message["role"] == "user") + 1
    answers = {name: messages[shared:] for name, messages in whole.items()}
    prompt = first[:shared]
    _check(prompt, answers)
    return {"messages": prompt, "tools": tools, **answers}, notes


def _check(prompt: Messages, answers: dict[str, Messages]) -> None:
    plain = [[{**turn, "content": turn["content"].strip()} for turn in answer] for answer in answers.values()]
    if len(plain) == 2 and plain[0] == plain[1]:
        raise RowError("identical_sides", "chosen and rejected are the same answer: there is nothing to prefer")
    for name, answer in answers.items():
        if not answer or any(turn["role"] in ("user", "system") for turn in answer):
            raise RowError(
                "different_prompts",
                f"the two sides don't answer the same prompt: {name} goes on with a question of its own",
            )
    if not prompt or not any(turn["role"] == "user" for turn in prompt):
        raise RowError("different_prompts", "the two sides have no question in common")
    if prompt[-1]["role"] == "assistant" and "tool_responses" not in prompt[-1]:
        raise RowError("prompt_is_answered", "the prompt ends with an answer of the assistant")
    if prompt[-1]["role"] == "system":
        raise RowError("no_user", "the prompt ends with a system turn: there is nothing to answer")


def _common(first: Messages, second: Messages) -> int:
    """Return how many messages two conversations begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _turns(value: Any, role: str) -> Any:
    """Return the messages of a text, of one message, or of a list of them; a text of HH-RLHF becomes its turns."""
    if isinstance(value, str):
        if role == "assistant" and value.startswith("\n\nHuman:"):
            _, *parts = _TURN.split(value)
            names = {"Human": "user", "Assistant": "assistant"}
            return [
                {"role": names[name], "content": text.strip()}
                for name, text in zip(parts[::2], parts[1::2], strict=True)
            ]
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [value]
    if value is None or (isinstance(value, list) and all(isinstance(turn, dict) for turn in value)):
        return value
    raise RowError("not_a_message", f"an answer or prompt is of type {type(value).__name__}, not text or messages")


def _same_beginning(prompt: Any, *sides: Any) -> None:
    """Check that whole conversations begin with the prompt that is given as well (system turns aside)."""
    asked = [turn.get("content") for turn in prompt or [] if turn.get("role") != "system"]
    for side in sides:
        begins = [turn.get("content") for turn in side or [] if turn.get("role") != "system"][: len(asked)]
        if side is not None and begins != asked:
            raise RowError("different_prompts", "a side begins with another prompt than the row's")
