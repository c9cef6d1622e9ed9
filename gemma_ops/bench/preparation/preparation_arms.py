"""What `gemma-ops bench prepare` measures: an arm a process, which imports first, takes the time then, and prints JSON.

`step` is the whole step `prepare`: checks, personal data, exact and near duplicates, private texts, the split, tokens
counted. `tokens` makes the token table that training reads. `datasets` is what people write themselves: `datasets.map`
over `apply_chat_template`, and nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_ops.nano import WEIGHTS

Arm = Callable[[], int]
"""What is timed; returns how many tokens it made or counted."""


def step_arm(source: Path, folder: Path, workers: int) -> Arm:
    """Return the step as it is by default."""
    from gemma_ops.config import DataConfig, MachineConfig
    from gemma_ops.prepare.prepare_step import prepare

    def run() -> int:
        settings, machine = DataConfig(path=str(source)), MachineConfig(workers=workers)
        metrics = prepare(folder, settings, machine, source=source, model=WEIGHTS)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return int(metrics["train_tokens"]) + int(report["tokens"]["valid"]["tokens"])

    return run


def tokens_arm(source: Path, folder: Path, workers: int) -> Arm:
    """Return the token table of the rows, which is made by one process."""
    import datasets  # noqa: F401 (which is imported before the clock runs)

    from gemma_ops.data import chat, published
    from gemma_ops.data.arrow import token_table
    from gemma_ops.data.row_tokens import Manner

    tokenizer, manner = chat.load_tokenizer(WEIGHTS), Manner(template=published.template_of(WEIGHTS))

    def run() -> int:
        table, _ = token_table(source, folder, tokenizer, manner, max_length=8192)
        return sum(table["length"])

    return run


def datasets_arm(source: Path, folder: Path, workers: int) -> Arm:
    """Return `datasets.map` with the checkpoint's template and tokenizer, its cache off."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)

    def run() -> int:
        rows = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(folder))
        made = rows.map(
            lambda row: {"input_ids": tokenizer.apply_chat_template(row["messages"], return_dict=False)},
            remove_columns=rows.column_names,
            num_proc=workers if workers > 1 else None,
        )
        return sum(map(len, made["input_ids"]))

    return run


ARMS: dict[str, Callable[[Path, Path, int], Arm]] = {
    "step": step_arm,
    "tokens": tokens_arm,
    "datasets": datasets_arm,
}


def measured(arm: str, source: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Run an arm in this process. Returns `tokens`, `seconds`, `cpu_seconds` with those of its children, and the
    `peak_mib` of the largest of the processes."""
    folder.mkdir(parents=True)
    run = ARMS[arm](source, folder, workers)
    children = _cpu(resource.RUSAGE_CHILDREN)
    started, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    spent = time.process_time() - cpu + _cpu(resource.RUSAGE_CHILDREN) - children
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = time.perf_counter() - started
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": spent, "peak_mib": peak / 1024}


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, rows, place, processes = sys.argv[1:]
    print(json.dumps(measured(name, Path(rows), Path(place), int(processes))), file=replies)
