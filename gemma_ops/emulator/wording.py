"""Text for a field, by its name and by the sentence that its object is about."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from gemma_ops.emulator import prompt_material

_ROLES = (
    ("quote", r"quot|evidence|span|excerpt|citation|passage|verbatim|source_text|support"),
    ("question", r"question|query|problem|user|^ask"),
    ("instruction", r"instruct|task|prompt|request|command|goal"),
    ("worse", r"reject|wors|incorrect|wrong|bad|flaw"),
    (
        "answer",
        r"answer|response|output|completion|solution|reply|chosen|better|assistant|content|text|summary|message",
    ),
    ("reason", r"reason|rational|explan|critique|comment|thought|why|justif|analysis"),
    ("title", r"title|topic|label|name|categor|subject|heading|keyword|tag|skill|concept"),
    ("language", r"^lang|language$|locale"),
    ("id", r"(^|_)id$|(^|_)key$|uuid|hash"),
    ("json", r"argument|parameter|^args|result|payload"),
)
_ENGLISH = re.compile(r"\b(?:the|and|of|is|are|to|it|with|for|this)\b", re.IGNORECASE)
_QUESTIONS = (
    "What is to be known about {topic}?",
    "How does it stand with {topic}?",
    "What holds for {topic}?",
    "Can you tell me about {topic}?",
    "I need to know about {topic}: what applies?",
)


def text_for(name: str, about: str, other: str, chance: random.Random) -> str:
    """Return the text of a field. Evidence and answer are the sentence itself, a flawed answer is an `other` sentence,
    and a question asks for it without mentioning a text. Material that is not English gets no English words added."""
    role = next((role for role, pattern in _ROLES if re.search(pattern, name.lower())), "answer")
    topic = prompt_material.topic(about)
    english = _ENGLISH.search(f"{about} {other}") is not None
    return {
        "quote": about,
        "question": chance.choice(_QUESTIONS).format(topic=topic) if english else f"{topic}?",
        "instruction": f"Explain {topic} in your own words." if english else f"{topic}!",
        "worse": other if other != about else f"{topic}.",
        "answer": about,
        "reason": f"It turns on {topic}." if english else f"{topic}.",
        "title": topic,
        "language": "en" if english else "und",
        "id": f"{chance.getrandbits(32):08x}",
        "json": json.dumps({"value": topic}, ensure_ascii=False),
    }[role]


def declared(texts: list[str]) -> list[dict[str, Any]]:
    """Return functions whose declarations stand as a JSON list in the prompt."""
    for block in prompt_material.blocks(texts):
        try:
            found = json.loads(block)
        except ValueError:
            continue
        items = (
            [item.get("function", item) for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        )
        if items and all("name" in item and "parameters" in item for item in items):
            return items
    return []
