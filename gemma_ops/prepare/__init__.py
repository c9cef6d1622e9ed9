"""The step `prepare`: deduplicate, keep apart from evaluation, split, write token tables; and checking rows before it.

prepare_step.py  the step, read from top to bottom: first_pass.py, compare_pass.py, write_pass.py; data_card.py writes
                 its report and card
row_workers.py   processes for chunks of rows: import_chunks.py, compare_rows.py and count_chunks.py say what is done
rehearse.py      the step without keeping what it makes
deduplicate.py   exact and near duplicates; near_rows.py near ones of a whole set
task_overlap.py  rows that also stand in an evaluation task
split.py         training and validation by hash of the group
check_rows.py    what `gemma-ops data check` shows; row_findings.py finds what is wrong, check_html.py draws it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.prepare.prepare_step import prepare
else:
    prepare = later("gemma_ops.prepare.prepare_step", "prepare")

__all__ = ["prepare"]
