"""The support desk: a generator of customer messages and of the routing JSON a desk would want for each.

A message is a frame filled with parts. Frames for training and for testing are different sentences, so a model that
memorised the training frames fails the test; surnames and order numbers are drawn from spaces far larger than any data
set, so they can only be copied from the message. Category and priority must be understood: they never stand in it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

PRODUCTS = (
    "router", "headset", "mobile plan", "smart lamp", "backup drive", "payroll portal", "video doorbell", "printer",
    "tablet", "keyboard", "web camera", "coffee machine", "fitness watch", "air purifier", "desk lamp", "sound bar",
    "phone case", "charging dock", "travel adapter", "invoice app", "photo frame", "standing desk", "rain sensor",
    "thermostat", "door lock", "baby monitor", "robot vacuum", "electric kettle", "memory card", "bike light",
)  # fmt: skip

ISSUES: dict[str, tuple[str, ...]] = {
    "billing": (
        "was charged twice", "shows a wrong amount on the bill", "was billed after I cancelled it",
        "is missing from my invoice", "was charged in the wrong currency", "cost more than the price on the page",
        "was paid with a card that should not be used", "has a fee I do not recognise",
    ),
    "delivery": (
        "has not arrived yet", "was sent to the wrong address", "is stuck in customs", "came with a torn box",
        "was left outside in the rain", "is shown as delivered but is not here", "is three weeks late",
        "was handed to a neighbour I do not know",
    ),
    "fault": (
        "does not turn on", "keeps disconnecting", "crashes every morning", "stopped working after the update",
        "makes a loud noise", "gets very hot", "shows a blank screen", "loses its settings every night",
    ),
    "account": (
        "asks for a password I never set", "is locked after three attempts", "is linked to my old email",
        "does not accept my new phone number", "says my login has expired", "cannot be added to my profile",
        "is registered to somebody else", "sends the code to the wrong phone",
    ),
    "howto": (
        "has no manual that I can find", "needs to be set up and I do not know how", "has a button I do not understand",
        "should work with my old one but how", "can export data but I cannot see where",
        "must be moved to a new room how",
        "has two modes and I wonder which to use", "needs cleaning and I do not know with what",
    ),
    "return": (
        "is not what I wanted, I would like to send it back", "is the wrong colour, please exchange it",
        "does not fit, can I swap it", "was a gift and I already have one, please take it back",
        "is too big, I want my money back", "is the wrong model, please send the right one",
        "looks used, I want a new one", "is no longer needed, please refund it",
    ),
}  # fmt: skip

CUES: dict[str, tuple[str, ...]] = {
    "high": (
        "This is urgent.", "We are blocked, please hurry.", "Customers are waiting right now.",
        "I need this fixed today.",
        "Please call me at once.", "Our shop is closed because of this.",
    ),
    "low": (
        "No rush.", "Whenever you have time.", "Just curious.", "It can wait until next month.",
        "Not important, only asking.", "Take your time with this.",
    ),
    "normal": ("", "Thanks in advance.", "Please advise.", "Let me know.", "Kind regards.", "I hope you can help."),
}  # fmt: skip

FIRST = (
    "Ana", "Bo", "Chen", "Dara", "Eli", "Fay", "Gus", "Hana", "Ivo", "Jun", "Kay", "Lev", "Mia", "Noor", "Omar", "Pia",
    "Rosa", "Sam", "Tara", "Uma", "Vera", "Wim", "Yuki", "Zoe", "Aldo", "Berta", "Carl", "Dina", "Emil", "Frida",
)  # fmt: skip
_ONSETS = ("b", "br", "d", "f", "g", "gr", "h", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z")
_RIMES = ("a", "al", "an", "ar", "e", "el", "en", "er", "i", "in", "is", "o", "ol", "on", "or", "u", "um", "us")
_ENDS = ("son", "berg", "man", "ova", "ini", "ez", "sen", "er", "ak", "ford", "wick", "land")

SMALL_TALK = (
    "I bought it as a present.", "I have been a customer for years.", "The weather has been awful here.",
    "My colleague had the same last week.", "I already tried the help page.", "I wrote to you on Monday too.",
    "The chat window closed before I could ask.", "I am on holiday from Friday.", "It is for our new office.",
    "My neighbour told me to ask you.", "I could not find this on your site.", "The rest of the parcel was fine.",
)  # fmt: skip

# {who} {product} {order} {issue} {cue} {talk}; {order} is a phrase such as "order 48213" and may be left out with its
# frame part.
TRAINING_FRAMES = (
    "Hi, this is {who}. My {product}{order_in} {issue}. {cue}",
    "{who} here. The {product}{order_in} {issue}. {talk} {cue}",
    "{cue} The {product}{order_from} {issue}. Regards, {who}",
    "Hello, I am {who} and my {product} {issue}.{order_sentence} {cue}",
    "{talk} My {product}{order_in} {issue}. {cue} {who}",
    "Dear team, the {product}{order_from} {issue}. {cue} Best, {who}",
    "{order_lead}my {product} {issue}. {talk} {cue} Signed {who}",
    "My name is {who}. {talk} The {product} {issue}.{order_sentence} {cue}",
    "The {product} {issue}. {cue}{order_sentence} My name is {who}.",
    "{cue} {who} writing.{order_sentence} The {product} {issue}.",
    "Good morning, {who} speaking. {talk} My {product}{order_from} {issue}. {cue}",
    "{order_lead}the {product} I got {issue}. {cue} Yours, {who}",
    "Help! My {product} {issue}.{order_sentence} {talk} {cue} {who}",
    "I am writing about the {product}{order_in}. It {issue}. {cue} {who}",
    "About my {product}{order_from}: it {issue}. {talk} {cue} Greetings from {who}",
    "{who} again. {talk} My {product}, the one{order_from}, {issue}. {cue}",
)
TEST_FRAMES = (
    "To whom it may concern: the {product} I ordered {issue}.{order_sentence} {cue} Sincerely, {who}",
    "{talk} {cue} It is about the {product}{order_from}, which {issue}. Thank you, {who}",
    "Hey there, {who} on this side.{order_sentence} {talk} So my {product} {issue}. {cue}",
    "{order_lead}{who} wants you to know that the {product} {issue}. {cue}",
    "Subject: {product}. It {issue}. {cue}{order_sentence} From: {who}",
    "Evening! {talk} The thing is, my {product}{order_in} {issue}. {cue} Cheers, {who}",
    "I, {who}, must tell you that my {product} {issue}.{order_sentence} {cue}",
    "Can you look into this? The {product}{order_from} {issue}. {talk} {cue} Name: {who}",
)

INSTRUCTION = "Route this ticket as JSON: "


class Ticket(NamedTuple):
    """A message, its routing, and the index of the frame it was made from."""

    text: str
    routing: dict[str, str | None]
    frame: int


def name(rng: random.Random) -> str:
    """Return a first name and a made-up surname; about 50,000 surnames exist."""
    parts = [rng.choice(_ONSETS) + rng.choice(_RIMES) for _ in range(rng.randint(1, 2))]
    return f"{rng.choice(FIRST)} {''.join(parts).capitalize()}{rng.choice(_ENDS)}"


def ticket(rng: random.Random, frames: tuple[str, ...] = TRAINING_FRAMES) -> Ticket:
    """Draw one message and its routing."""
    category = rng.choice(tuple(ISSUES))
    priority = rng.choice(tuple(CUES))
    product, who = rng.choice(PRODUCTS), name(rng)
    order = f"{rng.choice('ABCDEFGHKLMNPRSTUVWXYZ')}{rng.randint(10000, 99999)}" if rng.random() < 0.85 else None
    frame = rng.randrange(len(frames))
    spelled = rng.choice(("order {}", "order no. {}", "order #{}", "ref {}", "order number {}")).format(order)
    text = frames[frame].format(
        who=who,
        product=product,
        issue=rng.choice(ISSUES[category]),
        cue=rng.choice(CUES[priority]),
        talk=rng.choice(SMALL_TALK) if rng.random() < 0.6 else "",
        order_in=f" ({spelled})" if order else "",
        order_from=f" from {spelled}" if order else "",
        order_sentence=f" It is {spelled}." if order else "",
        order_lead=f"Re {spelled}, " if order else "",
    )
    text = " ".join(text.split()).replace(" .", ".")
    routing = {"category": category, "product": product, "priority": priority, "order": order, "customer": who}
    return Ticket(text[0].upper() + text[1:], routing, frame)


def ticket_row(item: Ticket) -> dict[str, Any]:
    """Return a training row in OpenAI's message format."""
    return {
        "messages": [
            {"role": "user", "content": INSTRUCTION + item.text},
            {"role": "assistant", "content": json.dumps(item.routing)},
        ]
    }


def training_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` training rows from training frames only."""
    rng = random.Random(f"train-{seed}")
    return [ticket_row(ticket(rng)) for _ in range(count)]


def test_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` rows for the evaluation task, from frames no training row uses."""
    rng = random.Random(f"test-{seed}")
    rows = []
    for number in range(count):
        item = ticket(rng, TEST_FRAMES)
        rows.append(
            {
                "id": f"ticket-{number:04d}",
                "prompt": INSTRUCTION + item.text,
                "reference": json.dumps(item.routing),
                "category": item.routing["category"],
                "priority": item.routing["priority"],
                "has_order": "yes" if item.routing["order"] else "no",
                "frame": f"f{item.frame}",
            }
        )
    return rows


def write_tickets(folder: Path, *, train: int = 3000, test: int = 1000, seed: int = 1) -> None:
    """Write `train.jsonl` and `data.jsonl` of the support desk task, the files that are shipped."""
    for file, rows in (("train.jsonl", training_rows(train, seed)), ("data.jsonl", test_rows(test, seed))):
        (folder / file).write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")


if __name__ == "__main__":
    write_tickets(Path(sys.argv[1]))
