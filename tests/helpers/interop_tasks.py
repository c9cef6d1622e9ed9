"""Tasks that nano gets partly right, as it was taught them, and nano's own answers to them."""

from __future__ import annotations

import json
import random

from gemma_ops.answer import Prompt
from gemma_ops.config import MachineConfig
from gemma_ops.nano import WEIGHTS, lessons
from gemma_ops.targets import open_target
from gemma_ops.targets.run_models import RunModels
from gemma_ops.tasks.task import load_task

HEAD = "schema: gemma-ops/eval-task@1\nversion: 3\ndata: {path: data.jsonl}\nprivacy: any\n"


def write(folder, name, body, rows):
    """A task folder; returns the task."""
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text(f"{HEAD}name: {name}\n{body}")
    (folder / "data.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return load_task(folder)


def mixed(folder, count=12):
    """Copying, JSON and look-ups with several metrics; a short limit cuts some answers, and some rows have a system
    turn."""
    draw = random.Random("exchanged")
    rows = []
    for number, item in enumerate(lessons.lesson(draw) for _ in range(count)):
        turns = [{"role": "user", "content": item.question}]
        if number % 4 == 1:
            turns.insert(0, {"role": "system", "content": "You are a “careful” clerk: {{ 1 + 1 }}\n\nAnswer at once."})
        rows.append({"id": f"row/{number}", "messages": turns, "reference": item.answer})
    rows.append({"id": "no reference", "prompt": "Repeat: seven\u2028river", "document": "a"})
    metrics = "metrics: [{id: exact_match, normalize: [casefold, json]}, chrf, contains]\n"
    return write(folder, "mixed", f"generation: {{max_new_tokens: 14}}\n{metrics}primary: exact_match\n", rows)


def plain(folder, count=8):
    """Only exact_match: what lm-evaluation-harness's own metric measures too."""
    draw = random.Random("plain")
    rows = [
        {"prompt": item.question, "reference": item.answer} for item in (lessons._repeat(draw) for _ in range(count))
    ]
    rows.append({"prompt": "Repeat: red bottle", "reference": "blue bottle"})  # nano can't get this right
    return write(
        folder, "plain", "generation: {max_new_tokens: 40}\nmetrics: [exact_match]\nprimary: exact_match\n", rows
    )


def topics(folder, count=6):
    """Every row with its choices; one choice begins another."""
    draw = random.Random("topics")
    choices = ["card", "card fee", "transfer", "refund", "app", "parcel"]
    rows = []
    while len(rows) < count:
        item = lessons._topic(draw)
        if item.answer in choices:
            rows.append({"prompt": item.question, "reference": item.answer, "choices": choices})
    body = "generation: {max_new_tokens: 8}\nmetrics: [choice_accuracy]\nprimary: choice_accuracy\n"
    return write(folder, "topics", body, rows)


def own_answers(task):
    """What our target answers on its own, one row at a time: {row: answer}."""
    target = open_target(
        "base", MachineConfig(device="cpu"), run="interop", use="evaluate", models=RunModels(base=WEIGHTS)
    )
    batches = [[Prompt(row.messages, row.privacy, row.id)] for row in task.rows]
    replies = target.answer(batches, max_new_tokens=task.file.generation.max_new_tokens)
    return {row.id: reply for row, (reply,) in zip(task.rows, replies, strict=True)}


def own_scores(task, answers):
    """Scores of those answers: {row: {metric: score}}."""
    return {row.id: task.score(answers[row.id].text, row).values for row in task.rows}
