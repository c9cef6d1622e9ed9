"""Evaluations without a model: a target that knows a share of the answers, a task of numbered questions, and one
run."""

from __future__ import annotations

import json

import yaml

from gemma_ops.answer import Answer
from gemma_ops.config import EvaluateConfig
from gemma_ops.evaluation import evaluate_step
from gemma_ops.privacy.classes import HERE
from gemma_ops.targets.target import LOCAL

FACTS = {"targets": {name: {"identity": name, "learned": "any"} for name in ("base", "tuned", "q8_0")}, "data": {}}


class Echo:
    """Knows the answers to a share of the questions: row `q<i>` is answered right while i is below `skill`."""

    sees, place, lockstep, family, learned = LOCAL, HERE, True, "gemma", "any"

    def __init__(self, name, skill, *, end="stop", explode=None):
        self.name, self.identity, self.skill, self.end, self.explode = name, name, skill, end, explode
        self.asked, self.closed = [], 0

    def answer(self, batches, *, max_new_tokens, schema=None):
        for batch in batches:
            if self.explode is not None and len(self.asked) >= self.explode:
                raise RuntimeError("lost power")
            self.asked.append([prompt.messages[-1]["content"] for prompt in batch])
            found = []
            for prompt in batch:
                number = int(prompt.messages[-1]["content"].split()[1])
                text = f"a{number}" if number < self.skill else "wrong"
                found.append(
                    Answer(text, self.end, 5, 3, 0.01) if self.end == "stop" else Answer("", self.end, 5, 0, 0.01)
                )
            yield found

    def close(self):
        self.closed += 1


def make_task(folder, count=40, *, rows=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "schema": "gemma-ops/eval-task@1",
        "name": folder.name,
        "version": 1,
        "data": {"path": "data.jsonl"},
        "metrics": ["exact_match"],
        "primary": "exact_match",
        "privacy": "any",
        **changes,
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    rows = rows or [
        {"id": f"q{i}", "prompt": f"question {i} " + "x" * (i % 7), "reference": f"a{i}", "half": i % 2}
        for i in range(count)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def go(out, folder, targets, *, batch=8, gates=(), facts=FACTS, **settings):
    out.mkdir(exist_ok=True)
    config = EvaluateConfig(
        tasks=(folder.name,), targets=tuple(target.name for target in targets), gates=gates, **settings
    )
    tasks = evaluate_step.load_checked(config, (folder,), None)
    metrics = evaluate_step.run_evaluation(out, config, tasks, targets, facts, batch=batch)
    return metrics, json.loads((out / "verdict.json").read_text(encoding="utf-8"))


SUPERIOR = {"metric": "exact_match", "target": "tuned", "test": "superior", "versus": "base", "margin": 0.3}
