"""Checks of a row: whether it is usable. Checked one row at a time, by rules that can be named; nothing is repaired by
guessing.

These rules are cheap and miss much: that a quotation stands in the source doesn't make the answer follow from it. Each
code and its reason stands next to the row in `rejected.jsonl`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gemma_ops.data.hashed_words import hash_words, normal
from gemma_ops.data.normal import conversation
from gemma_ops.data.rowerror import RowError
from gemma_ops.synth import quotations
from gemma_ops.synth.language import language
from gemma_ops.synth.material import Draft, Item

_REFUSAL = re.compile(
    r"(?:i(?:'|’)?m sorry|i am sorry|sorry,|i apologi[sz]e|i can(?:not|'t|’t)|i(?: am|'m|’m) (?:unable|not able)"
    r"|i do(?:n't|n’t| not) (?:know|have)"
    r"|as an ai|there is no information|the (?:text|document|passage) does(?:n't|n’t| not)"
    r"|es tut mir leid|ich kann (?:leider )?nicht|leider kann ich|als ki\b"
    r"|je suis désolé|je ne peux pas|lo siento|no puedo|mi dispiace"
    r"|não posso|lamento)",
    re.IGNORECASE,
)
_SOURCE = re.compile(
    r"\b(?:the|this|that|given|provided|above|following) (?:text|passage|document|section|excerpt|article)\b"
    r"|\baccording to the (?:text|source)\b"
    r"|\b(?:im|laut|dem|der|diese[rms]?|oben\w*) (?:text|dokument|abschnitt|auszug)\b"
    r"|\b(?:le|ce|du) (?:texte|passage|document)\b"
    r"|\b(?:el|este|del) (?:texto|pasaje|documento)\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"\[(?:insert|your|name|company|date|todo)[^\]]*\]|<(?:insert|your)[^>]*>|\blorem ipsum\b|\bTODO\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Rejection:
    """Why a row is left out. `code` is short and stable."""

    code: str
    reason: str


def check_row(item: Item, draft: Draft) -> Rejection | tuple[int, int] | None:
    """Return what is wrong with a row; else where its quotation stands in the source, or None where it needs none."""
    if draft.problem:
        return Rejection(*draft.problem)
    try:
        conversation(draft.messages, list(draft.tools) or None)
    except RowError as error:
        return Rejection(error.code, error.reason)
    question = next(message["content"] for message in draft.messages if message["role"] == "user")
    answers = [draft.messages[-1]["content"], *([] if draft.rejected is None else [draft.rejected])]
    return _wording(item, question, answers) or _language(item, question, answers) or _evidence(item, draft)


def _wording(item: Item, question: str, answers: list[str]) -> Rejection | None:
    if not hash_words(question):
        return Rejection("empty_question", "the question holds no words")
    if not all(hash_words(answer) for answer in answers):
        return Rejection("empty_answer", "an answer holds no words")
    if _REFUSAL.match(answers[0].lstrip("\"'*_ ")) and item.method != "tool_calls":
        return Rejection("refusal", "the answer declines to answer")
    for text in (question, *answers):
        if match := _PLACEHOLDER.search(text):
            return Rejection("placeholder", f"{match[0]!r} was not filled in")
        if (
            item.material.section
            and (match := _SOURCE.search(text))
            and match[0].lower() not in item.material.text.lower()
        ):
            return Rejection("mentions_source", f"{match[0]!r} means a text that nobody will have before their eyes")
    if normal(question) == normal(answers[0]):
        return Rejection("repeats_question", "the answer is the question")
    if len(answers) > 1 and normal(answers[0]) == normal(answers[1]):
        return Rejection("same_answer", "the good and the flawed answer are the same")
    return None


def _language(item: Item, question: str, answers: list[str]) -> Rejection | None:
    """Check question and answer together, and the question alone, against the material's language, where both can be
    told."""
    wanted = language(item.material.text) if item.material.text.strip() else None
    for text in (f"{question} {answers[0]}", *answers[1:]):
        found = language(text)
        if wanted and found and found != wanted:
            return Rejection("other_language", f"the row is in {found}, its source in {wanted}")
    return None


def _evidence(item: Item, draft: Draft) -> Rejection | tuple[int, int] | None:
    if draft.quote is None or item.material.section is None:
        return None
    if quotations.too_short(draft.quote):
        return Rejection("quote_too_short", f"a quotation of fewer than {quotations.SHORTEST} words proves nothing")
    return quotations.find_quotation(item.material.section, draft.quote) or Rejection(
        "not_in_source", "the quotation does not stand in the source"
    )
