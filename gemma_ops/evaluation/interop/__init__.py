"""Tasks exchanged with two other evaluation programs: lm-evaluation-harness and Inspect.

    task_documents.py   a task's rows as plain documents, and the folder that goes along with an export
    to_lm_eval.py  a YAML task that the harness runs
    to_inspect.py  a Python task that Inspect runs
    logs.py        what their logs say, in one shape
    intake.py      a log checked against the task, filed as stored answers, graded and compared

Both programs score an exported task with the task's own metrics, so that one definition of right and wrong holds in all
three. What a log brings back is only answers: they are graded here again, and compared pairwise with those of other
targets.

The chat template comes from the model, not from the export. An export holds conversations; the harness
(`--apply_chat_template`) and Inspect turn them into a prompt with the checkpoint's own `chat_template.jinja`, which
renders what `gemma_ops.data.chat` renders, for every size. A log whose prompts are anything else is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Program = Literal["lm-eval", "inspect"]


def export_task(
    folder: Path, to: Program, out: Path, *, source: Path | None = None, rows: int | None = None
) -> list[str]:
    """Write the task of a folder into the empty folder `out`, for one of the two programs.

    `source` is the data folder of tasks whose rows aren't shipped, `rows` keeps only so many, the first by hash of
    their id. Returns lines that say how to run it. Raises ConfigError and DataError.
    """
    from gemma_ops.evaluation.interop import to_inspect, to_lm_eval

    write = to_lm_eval.write_lm_eval if to == "lm-eval" else to_inspect.write_inspect
    # `made/..` is a place only once `made` is there, so it is spelled out.
    return write(folder, Path(os.path.normpath(out)), source=source, rows=rows)
