"""A task made for methods that learn from preferences and rewards: of all a customer's message names, say the product.

nano answers such a message with something copied out of it, at times the product, so there is something to strengthen.
Wrong answers are what else it could have copied: the customer's name, an order number, a word of the message.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from gemma_ops.nano import tickets

Kind = Literal["conversation", "pair", "judged"]
RECIPE = Path(__file__).with_name("answer_recipe.py")


def asked(count: int, seed: int, *, test: bool = False) -> Iterator[tuple[str, str, str]]:
    """Messages, each with the product in it and another thing that it names."""
    rng = random.Random(f"answers-{seed}")
    for _ in range(count):
        item = tickets.ticket(rng, tickets.TEST_FRAMES) if test else tickets.ticket(rng)
        question, facts = item.text, item.routing
        others = [str(facts[key]) for key in ("order", "customer") if facts.get(key)] + question.split()[:1]
        yield question, str(facts["product"]), rng.choice(others)


def rows(kind: Kind, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows as their author would write them, in TRL's layouts."""
    found: list[dict[str, Any]] = []
    for number, (question, product, other) in enumerate(asked(count, seed)):
        if kind == "pair":
            found.append({"prompt": question, "chosen": product, "rejected": other})
        elif kind == "judged":
            wanted = number % 2 == 0
            found.append({"prompt": question, "completion": product if wanted else other, "label": wanted})
        else:
            found.append({"prompt": question, "completion": product})
    return found


def write(folder: Path, kind: Kind, *, count: int = 256, questions: int = 64) -> tuple[Path, Path]:
    """A file of training rows and the folder of an evaluation task, whose sentence frames occur in no training row."""
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(kind, count, seed=1)))
    task = folder / "product"
    task.mkdir()
    (task / "task.yaml").write_text(
        "schema: gemma-ops/eval-task@1\nname: product\nversion: 1\ndescription: Say the product that the message "
        "names.\ndata: {path: data.jsonl}\ngeneration: {max_new_tokens: 16}\n"
        "privacy: any\nmetrics: [exact_match]\nprimary: exact_match\n"
    )
    held_out = ({"prompt": question, "reference": product} for question, product, _ in asked(questions, 2, test=True))
    (task / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    return source, task
