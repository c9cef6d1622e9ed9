"""The second pass of the step `prepare`: which rows give an evaluation task away, and which nearly repeat another."""

from __future__ import annotations

from gemma_ops.config import DataConfig
from gemma_ops.data.boilerplate import Boilerplate
from gemma_ops.data.hashed_words import Hashes
from gemma_ops.prepare.compare_rows import Comparer, chunk_comparer
from gemma_ops.prepare.first_pass import LISTED, show_progress
from gemma_ops.prepare.near_rows import NearRows
from gemma_ops.prepare.prepare_counts import PrepareCounts
from gemma_ops.prepare.row_workers import RowWorkers
from gemma_ops.prepare.stored_rows import StoredRows
from gemma_ops.prepare.task_overlap import Overlap


def compare_rows(
    rows: StoredRows, settings: DataConfig, facts: PrepareCounts, sample: list[Hashes], workers: RowWorkers
) -> set[int]:
    """Return the numbers of the rows to leave out: those that overlap with a task (with `drop`) and near duplicates."""
    threshold = settings.near_duplicates
    comparer = Comparer(Overlap(facts.tasks, sample), Boilerplate(sample), threshold)
    near = NearRows(rows.path.parent, threshold, rows.row) if threshold else None
    drops: set[int] = set()
    number = 0
    for chunk in workers.each(chunk_comparer, (rows.path, comparer), rows.spans()):
        for match in chunk.matches:
            show_progress("compare", number + 1)
            if match:
                facts.overlaps[match.task] += 1
                if len(facts.overlap_pairs) < LISTED:
                    place = {"task": match.task, "question": match.place, "how": match.how}
                    facts.overlap_pairs.append({"row": rows.row(number)["source"], **place})
                if settings.overlap == "drop":
                    drops.add(number)
            number += 1
        if near and chunk.asked:
            near.add(chunk.asked)
    for pair in near.pairs(frozenset(drops)) if near else ():
        facts.near_duplicates += 1
        if len(facts.near_pairs) < LISTED:
            sources = {"row": rows.row(pair.row)["source"], "of": rows.row(pair.earlier)["source"]}
            facts.near_pairs.append({**sources, "similarity": round(pair.similarity, 3)})
        drops.add(pair.row)
    return drops
