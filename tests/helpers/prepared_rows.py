"""Raw rows of every layout, with what `prepare` looks for in them: duplicates, near duplicates, personal data, privacy
classes, tools, thoughts, rows that can't be used."""

from __future__ import annotations

import json
import random

from tests.helpers.conversations import TEXTS, conversation

_TALK = "card account refund order ticket delivery late broken invoice change please where when why how today"
_WORDS = _TALK.split(" ")
_PERSONAL = ["write to ana@example.com", "card 4111 1111 1111 1111", "call +49 30 1234567", "", "", "", ""]
_CLASSES = [None, None, "local_only", "paid", "any"]


def sentence(draw, count):
    return " ".join(draw.choices(_WORDS, k=count))


def asked_and_said(draw, seen):
    """A question with its answer: new, or an earlier one with a word exchanged, or that one itself."""
    if seen and draw.random() < 0.4:
        earlier, said = draw.choice(seen)
        words = earlier.split()
        if draw.random() < 0.7:
            words[draw.randrange(len(words))] = draw.choice(["changed", "please", "CARD", "7", "x²"])
        return " ".join(words), said if draw.random() < 0.7 else answer(draw)
    made = f"Answer this in one line: {sentence(draw, draw.randrange(6, 60))} {draw.choice(_PERSONAL)}".strip()
    seen.append((made, answer(draw)))
    return seen[-1]


def answer(draw):
    return draw.choice(["Yes.", "No, not today.", sentence(draw, 12), sentence(draw, 30), draw.choice(TEXTS) + "!"])


def row_of(layout, draw, seen):
    asked, said = asked_and_said(draw, seen)
    if layout == "messages":
        messages, tools = conversation(draw)
        if draw.random() < 0.7:
            messages, tools = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], None
        row = {"messages": messages, **({"tools": tools} if tools else {})}
        if draw.random() < 0.1:
            row["weight"] = 2
    elif layout == "sharegpt":
        row = {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}
    elif layout == "alpaca":
        row = {"instruction": asked, "input": draw.choice(["", "more"]), "output": said}
    elif layout == "prompt_completion":
        row = {"prompt": asked, "completion": said}
    elif layout == "gemini":
        turns = [("user", asked), ("model", said)]
        row = {"contents": [{"role": role, "parts": [{"text": text}]} for role, text in turns]}
    elif layout == "preference":
        row = {"prompt": asked, "chosen": said, "rejected": answer(draw) + " Never."}
    elif layout == "judged":
        row = {"prompt": asked, "completion": said, "label": draw.random() < 0.5}
    elif layout == "text":
        row = {"text": f"{asked}. {said}\n{sentence(draw, 20)}"}
    else:
        row = {"q": asked, "a": said}
    if draw.random() < 0.2 and (privacy := draw.choice(_CLASSES)):
        row["privacy"] = privacy
    return row


LAYOUTS = {
    "messages": {},
    "sharegpt": {"pii": "mask", "privacy": "any"},
    "alpaca": {"near_duplicates": None},
    "prompt_completion": {"overlap": "drop", "privacy": "any"},
    "gemini": {"near_duplicates": 0.6, "privacy": "paid"},
    "preference": {"privacy": "any"},
    "judged": {"overlap": "report"},
    "text": {"near_duplicates": 0.5, "pii": "off"},
    "columns": {"prompt": "Say: {q}", "completion": "{a}", "valid_share": 0.2, "system": "Be brief."},
}
"""Settings of `data` that each layout is prepared with."""


def raw_lines(layout, count):
    """Return lines of a file of a layout, the same at each call, some of them none that can be read."""
    draw, seen = random.Random(f"rows of {layout}"), []
    lines = [json.dumps(row_of(layout, draw, seen), ensure_ascii=draw.random() < 0.5) for _ in range(count)]
    lines[7], lines[count // 2] = '{"messages": [', '{"other": 1}'
    return lines


def task_questions(layout, count):
    """Return prompts of a task; a few stand in the rows as well."""
    draw, seen = random.Random(f"task of {layout}"), []
    taken, all_seen = random.Random(f"rows of {layout}"), []
    for _ in range(60):
        row_of(layout, taken, all_seen)
    return [asked_and_said(draw, seen)[0] for _ in range(count)] + [asked for asked, _ in all_seen[5:8]]
