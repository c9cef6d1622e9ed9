"""Which turns a conversation must have, and which response answers which call."""

from __future__ import annotations

from typing import Any

from gemma_ops.data.rowerror import RowError


def check_turns(messages: list[dict[str, Any]], *, asked: bool) -> None:
    """Raise RowError for a row that can't be learned from, or, if it is to be `asked`, has nothing to answer."""
    if not asked:
        _check_answers(messages)
    elif messages[-1]["role"] in ("system", "assistant") and not messages[-1].get("tool_responses"):
        raise RowError(
            "no_question", f"the conversation ends with a {messages[-1]['role']} turn: there is nothing to answer"
        )
    if not any(message["role"] == "user" for message in messages):
        raise RowError("no_user", "the row has no user turn: there is nothing to answer")


def _check_answers(messages: list[dict[str, Any]]) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError("no_assistant", "the row has no assistant turn: there is nothing to learn")
    if messages[-1]["role"] in ("user", "system"):
        raise RowError("no_answer", f"the row ends with a {messages[-1]['role']} turn that nobody answers")
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise RowError("nothing_learned", "every turn of the model is marked not to be learned")


def match_responses(messages: list[dict[str, Any]], notes: list[str]) -> None:
    """Number the calls and give every tool turn the number of its call: the template names a response after its call.

    The ids themselves are never shown to the model, so equal conversations get equal ids here.
    """
    waiting: list[tuple[str, dict[str, Any]]] = []  # the id the author gave ("" for none), and the call
    made, unnamed = 0, False
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            claimed = _claim(waiting, message)
            if claimed is None:
                raise RowError("tool_without_call", f"message {index + 1} is a tool result without a call before it")
            waiting.remove(claimed)
            message["tool_call_id"] = claimed[1]["id"]
            message.setdefault("name", claimed[1]["function"]["name"])
            continue
        given = [(call["id"], call) for call in message.get("tool_calls", [])]
        for author_id, call in given:
            made += 1
            call["id"] = f"call_{made}"
            unnamed |= not author_id
        waiting = [] if "tool_responses" in message else given
    if unnamed:
        notes.append("call_ids_made")


def _claim(waiting: list[tuple[str, dict[str, Any]]], message: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the waiting call that a tool turn answers: the one with its id; else, where either has none, by name or by
    order."""
    wanted, name = message.get("tool_call_id"), message.get("name")
    same = [entry for entry in waiting if wanted and entry[0] == wanted]
    free = [entry for entry in waiting if not wanted or not entry[0]]
    named = [entry for entry in free if entry[1]["function"]["name"] == name]
    return next(iter(same or named or free), None)
