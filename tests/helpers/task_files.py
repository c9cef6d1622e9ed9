"""The least that a `task.yaml` says, for tests of what reads a task's questions."""

from __future__ import annotations


def task_yaml(data, name="exam"):
    """The file's text; `data` is the value of its key in YAML."""
    return (
        f"schema: gemma-ops/eval-task@1\nname: {name}\nversion: 1\ndata: {data}\n"
        "metrics: [exact_match]\nprimary: exact_match\n"
    )
