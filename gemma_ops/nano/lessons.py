"""Lessons that nano learns before any fine-tuning: to read, to copy, to look things up, to write JSON, to tell topics
apart.

None of the lessons is the support desk's routing task: the routing keys never stand together in a lesson's answer, so
the base scores zero on it, and what fine-tuning adds is visible. Copying has to be learned here, because a low-rank
adapter can't teach it: it needs attention heads that find an earlier token and repeat its successor.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import NamedTuple

from gemma_ops.nano import tickets

# Sentence parts of everyday customer questions, by topic: enough ordinary English that words seen only in somebody's
# own data are made of known pieces.
_SUBJECTS: dict[str, tuple[str, ...]] = {
    "card": ("my card", "the new card", "a virtual card", "the card reader", "my debit card", "the card PIN",
        "a spare card", "the contactless card"),
    "transfer": ("my transfer", "a bank transfer", "the money I sent", "a payment to a friend", "the standing order",
        "an international transfer", "the receiving account"),
    "cash": ("the cash machine", "a cash withdrawal", "the ATM", "the cash I took out", "the note",
        "the withdrawal fee"),
    "top up": ("my top up", "the balance I added", "a top up by cheque", "the automatic top up", "the top up limit",
        "the top up code"),
    "exchange": ("the exchange rate", "the currency", "a payment in euros", "a foreign payment", "the dollars I bought",
        "the conversion fee"),
    "refund": ("my refund", "the money back", "a refund from a shop", "the cancelled purchase", "the returned item",
        "the disputed charge"),
    "identity": ("my passport", "the proof of identity", "the photo check", "my details", "the source of funds",
        "my address", "my date of birth"),
    "app": ("the app", "my phone", "the passcode", "the login code", "my account", "the notification", "the website",
        "the update"),
    "fee": ("an extra fee", "a strange charge", "the monthly price", "a hidden cost", "the direct debit",
        "the statement", "a pending charge"),
    "parcel": ("the parcel", "my delivery", "the courier", "the tracking link", "the box", "the shipment",
        "the post office"),
}  # fmt: skip
_QUESTIONS = (
    "Why was {s} declined yesterday?", "How do I activate {s}?", "What should I do about {s}?",
    "I think {s} is wrong, can you check it?",
    "How long does {s} take to arrive?", "Is there a limit on {s}?", "Where can I find {s}?",
    "{s} still has not been confirmed, why?",
    "Can I cancel {s} before it is complete?", "I do not recognise {s} in my history.",
    "Somebody stole my wallet, what about {s}?",
    "Please explain {s} to me.", "Can I use {s} in another country?", "How do I change {s}?",
    "{s} was lost, please help me get it again.",
    "I have been waiting for {s} since last week.", "Do you support {s} for people under eighteen?",
    "What is the price of {s}?",
    "Why does it say that {s} is pending?", "I tried to verify {s} but it failed.", "Which kinds of {s} do you accept?",
    "Could {s} be broken or blocked?",
    "There was a mistake with {s}, I want to undo it.", "Will {s} work automatically?", "When will {s} be available?",
    "{s} got swallowed, what now?",
)  # fmt: skip
_WORDS = [
    "red",
    "blue",
    "north",
    "south",
    "open",
    "late",
    "card",
    "bank",
    "tree",
    "seven",
    "river",
    "stone",
    "paper",
    "cloud",
    "green",
    "small",
    "large",
    "window",
    "garden",
    "letter",
    "music",
    "winter",
    "summer",
    "doctor",
    "teacher",
    "engine",
    "market",
    "ticket",
    "number",
    "answer",
    "question",
    "morning",
    "evening",
    "table",
    "chair",
    "bottle",
    "bread",
    "water",
    "coffee",
    "sugar",
    "train",
    "plane",
    "street",
    "corner",
    "island",
    "mountain",
    "yellow",
    "silver",
    "golden",
    "quiet",
    "happy",
    "simple",
    "travel",
]
_KEYS = (
    "name",
    "item",
    "code",
    "city",
    "level",
    "kind",
    "color",
    "size",
    "team",
    "status",
    "owner",
    "price",
    "date",
    "unit",
)


class Lesson(NamedTuple):
    """One question and its answer."""

    question: str
    answer: str


def customer_question(rng: random.Random) -> tuple[str, str]:
    """Return a customer question and its topic."""
    topic = rng.choice(tuple(_SUBJECTS))
    text = rng.choice(_QUESTIONS).format(s=rng.choice(_SUBJECTS[topic]))
    return text[0].upper() + text[1:], topic


def _token(rng: random.Random) -> str:
    """Return a word, a number, a code or a name: something only copying can produce."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(_WORDS)
    if kind < 0.55:
        return str(rng.randint(1000, 99999))
    if kind < 0.75:
        return f"{rng.choice('ABCDEFGHKLMNPRSTUVWXYZ')}{rng.randint(10000, 99999)}"
    return tickets.name(rng) if kind < 0.9 else rng.choice(tickets.PRODUCTS)


def _record(rng: random.Random) -> dict[str, str | None]:
    keys = rng.sample(_KEYS, rng.randint(2, 4))
    return {key: _token(rng) if rng.random() < 0.93 else None for key in keys}


def _repeat(rng: random.Random) -> Lesson:
    text = " ".join(_token(rng) for _ in range(rng.randint(2, 7)))
    return Lesson(f"Repeat: {text}", text)


def _repeat_message(rng: random.Random) -> Lesson:
    text = tickets.ticket(rng).text if rng.random() < 0.5 else customer_question(rng)[0]
    return Lesson(f"Repeat the message: {text}", text)


def _to_json(rng: random.Random) -> Lesson:
    item = _record(rng)
    parts = [f"{key} is {value}" if value else f"no {key}" for key, value in item.items()]
    return Lesson(f"As JSON: {', '.join(parts)}", json.dumps(item))


def _from_json(rng: random.Random) -> Lesson:
    item = _record(rng)
    key = rng.choice(tuple(item))
    return Lesson(f"From {json.dumps(item)} give {key}", item[key] or "none")


def _after(rng: random.Random) -> Lesson:
    words = rng.sample(_WORDS, rng.randint(4, 9))
    place = rng.randrange(len(words) - 1)
    return Lesson(f"In: {' '.join(words)}. What comes after {words[place]}?", words[place + 1])


_ABOUT = {
    "billing": "money", "delivery": "the way here", "fault": "a defect", "account": "access", "howto": "advice",
    "return": "giving it back",
}  # fmt: skip


def _ticket_question(rng: random.Random) -> Lesson:
    item = tickets.ticket(rng)
    kind = rng.randrange(5)
    if kind == 0:
        return Lesson(f"Which order? {item.text}", item.routing["order"] or "none")
    if kind == 1:
        return Lesson(f"Which thing? {item.text}", item.routing["product"] or "none")
    if kind == 2:
        return Lesson(f"Who wrote this? {item.text}", item.routing["customer"] or "nobody")
    if kind == 3:
        urgent = {"high": "yes", "low": "no", "normal": "maybe"}[item.routing["priority"] or "normal"]
        return Lesson(f"Must we hurry? {item.text}", urgent)
    return Lesson(f"What is it about? {item.text}", _ABOUT[item.routing["category"] or ""])


def _topic(rng: random.Random) -> Lesson:
    text, topic = customer_question(rng)
    return Lesson(f"Topic: {text}", topic)


def _same_topic(rng: random.Random) -> Lesson:
    (first, one), (second, two) = customer_question(rng), customer_question(rng)
    return Lesson(f"Same topic? {first} / {second}", "yes" if one == two else "no")


def _words_of(rng: random.Random) -> Lesson:
    text = customer_question(rng)[0]
    words = text.rstrip("?.").split()
    return Lesson(f"Last three words: {text}", " ".join(words[-3:]))


_LESSONS: tuple[tuple[Callable[[random.Random], Lesson], int], ...] = (
    (_repeat, 4), (_repeat_message, 2), (_to_json, 4), (_from_json, 3), (_after, 2), (_ticket_question, 6), (_topic, 3),
    (_same_topic, 1), (_words_of, 1),
)  # fmt: skip
_MAKERS = [maker for maker, _ in _LESSONS]
_WEIGHTS = [weight for _, weight in _LESSONS]


def lesson(rng: random.Random) -> Lesson:
    """Draw one lesson."""
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng)


def corpus(count: int, seed: int) -> list[str]:
    """Return lines of text for training the tokenizer: lessons and routing answers."""
    rng = random.Random(f"corpus-{seed}")
    lines = []
    for _ in range(count):
        item = lesson(rng)
        lines += [item.question, item.answer, json.dumps(tickets.ticket(rng).routing), customer_question(rng)[0]]
    return lines
