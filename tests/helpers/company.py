"""A small company for the tests of `gemma_ops.synth`: its documents, and a teacher that reads them.

The documents are sentences with facts that differ from document to document, so that rows about them differ too. The
teacher is a responder of the Gemini emulator: it quotes the text it is shown, letter by letter.
"""

from __future__ import annotations

import json
import re

from gemma_ops.emulator import EmulatedReply

TOPICS = (
    "parking permit", "gym locker", "travel card", "parental leave", "expense report", "night shift",
    "first aid course",
    "laptop loan", "canteen card", "visitor badge", "bicycle lease", "training budget", "holiday carry-over",
    "sick note",
    "pension plan", "relocation grant", "language course", "safety helmet", "meeting room", "archive access",
)  # fmt: skip
PLACES = (
    "north gate",
    "second floor",
    "blue building",
    "old harbour office",
    "main reception",
    "west wing",
    "glass pavilion",
)
PEOPLE = ("Ines Marlow", "Tobias Wren", "Hana Sorel", "Piotr Lund", "Mei Castell", "Omar Birch", "Greta Voss")


def document(number):
    """Markdown with two sections of four sentences; no two documents share a sentence."""
    topic, place, person = TOPICS[number % 20], PLACES[number % 7], PEOPLE[(number * 3 + 1) % 7]
    fee, days, hour = 7 + 3 * number, 4 + number, 6 + number % 12
    return (
        f"# {topic.capitalize()}\n\n"
        f"Every employee may ask for a {topic} at the {place}. The desk for the {topic} opens at {hour} o'clock each "
        f"morning. "
        f"A {topic} costs {fee} euros in the first year of service. {person} signs each {topic} within {days} working "
        f"days.\n\n"
        f"## When a {topic} ends\n\n"
        f"The {topic} ends {days + 20} days after the contract of its holder. Whoever loses a {topic} pays {fee * 2} "
        f"euros for a new one. An unused {topic} is given back at the {place} before {hour + 8} o'clock. {person} "
        f"answers questions about "
        f"a late {topic} on every second Tuesday.\n"
    )


def write_documents(folder, count=20, *, front=""):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"{number:02}-{TOPICS[number % 20].replace(' ', '-')}.md"
        (folder / name).write_text(front + document(number), encoding="utf-8")
    return folder


def shown(text):
    """The material in a prompt: what stands between the longest pair of marks."""
    return max(
        (match[2] for match in re.finditer(r"<(text-[0-9a-f]{8})>\n(.*?)\n</\1>", text, re.DOTALL)), key=len, default=""
    )


def sentences(text):
    return [item.strip() for item in re.findall(r"[A-Z][^.#]*\.", text)]


def teach(body):
    """A diligent teacher: as many rows as were asked for, one sentence each, beginning at a place that the prompt
    decides."""
    found = sentences(shown(body.last)) or ["Nothing is known about this."]
    wanted = int((re.search(r"Write (\d+)", body.last) or [0, 1])[1])
    start = body.chance("where").randrange(len(found))
    chosen = [found[(start + index) % len(found)] for index in range(min(wanted, len(found)))]
    kind = body.schema["properties"] if body.schema else {}
    if "grade" in kind:
        return json.dumps({"reason": "It is supported.", "grade": 5})
    if "question" in kind:
        return json.dumps(row(chosen[0], "Compared with before, "))
    fields = body.schema["$defs"]
    rows = [pair(item) if "Pair" in fields else row(item) for item in chosen]
    return EmulatedReply(json.dumps({"rows": rows}), thought_tokens=body.chance("thoughts").randrange(200))


def row(sentence, before=""):
    return {
        "quote": sentence,
        "question": f"{before}What should I know: {sentence[:-1].lower()}?",
        "answer": f"{before}{sentence}",
    }


def pair(sentence):
    made = row(sentence)
    wrong = re.sub(r"\d+", "99", sentence).replace("every", "no")
    return {
        "quote": sentence,
        "question": made["question"],
        "chosen": made["answer"],
        "rejected": f"I believe that {wrong}",
        "reason": "The number is wrong.",
    }
