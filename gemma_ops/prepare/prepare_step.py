"""The step `prepare`: from files to clean, deduplicated, split training rows and a card that says what was done.

Rows stream: the first pass reads, checks and writes usable rows to a working file; the next compares them with each
other and with the evaluation tasks; the last writes the two sides of the split. Each pass hands chunks of rows to
`machine.workers` processes, and takes what they return in the order of the rows, so that the bytes are the same with
one as with many. What stays in memory of a row are hashes and its place (about 600 bytes); what near duplicates and
private texts are found by lies in files. Killed and started again, the step starts from the beginning and ends with the
same bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gemma_ops.config import DataConfig, MachineConfig
from gemma_ops.data import chat, media_files, published
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError
from gemma_ops.prepare.compare_pass import compare_rows
from gemma_ops.prepare.data_card import source_facts, write_report
from gemma_ops.prepare.first_pass import FirstPass
from gemma_ops.prepare.prepare_counts import PrepareCounts
from gemma_ops.prepare.row_workers import RowWorkers
from gemma_ops.prepare.stored_rows import StoredRows
from gemma_ops.prepare.write_pass import WritePass
from gemma_ops.privacy.text_copies import FILE as PRIVATE
from gemma_ops.privacy.text_records import TextRecords
from gemma_ops.tasks.compared_questions import read_task


def prepare(
    out: Path,
    settings: DataConfig,
    machine: MachineConfig,
    *,
    source: Path | None = None,
    model: Path,
    tasks: tuple[Path, ...] = (),
) -> dict[str, float]:
    """Write `train.jsonl`, `valid.jsonl`, `rejected.jsonl`, `report.json` and `card.md` below `out`, and in `media/`
    what the rows show.

    `source` is a file or folder, None for the Hub set of the settings; `model` is the folder whose tokenizer counts;
    `tasks` are folders of evaluation tasks the rows must not overlap with. Raises DataError (unusable rows, an empty
    set, overlap, personal data, as the settings say), ModelError (no tokenizer), ServiceError (the Hub).
    """
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    chat.load_tokenizer(model)  # which says first what is wrong with it
    senses = media_files.senses(model)
    manner = Manner(template=published.template_of(model), senses=senses)
    facts = PrepareCounts(tasks=[read_task(folder, source) for folder in tasks])
    rows, private = StoredRows(work / "rows.jsonl"), TextRecords(work / "private")
    first = FirstPass(settings, facts, rows, private)
    with RowWorkers(machine.workers) as workers:
        first.run(out, source, senses, workers)
        _refuse_bad(out, settings, facts, source)
        drops = compare_rows(rows, settings, facts, first.sample(), workers)
        _refuse_overlap(settings, facts)
        WritePass(settings, facts, first, senses).run(out, model, manner, drops, workers)
    _refuse_empty(settings, facts)
    private.save(out / PRIVATE, first.names)
    shutil.rmtree(work)
    _keep_media(out, facts.files)
    write_report(out, settings, facts, source_facts(source, settings))
    lengths = facts.lengths["train"].table()
    return {
        "rows": float(facts.read),
        "train_rows": float(facts.rows["train"]),
        "valid_rows": float(facts.rows["valid"]),
        "rejected": float(facts.rejected.total()),
        "exact_duplicates": float(facts.exact_duplicates),
        "near_duplicates": float(facts.near_duplicates),
        "overlap": float(facts.overlaps.total()),
        "pii_rows": float(facts.pii_count),
        "train_tokens": float(lengths["tokens"]),
        "train_tokens_with_loss": float(lengths["tokens_with_loss"]),
    }


def _keep_media(out: Path, used: set[str]) -> None:
    """Keep the files of rows that are kept, and remove all others."""
    folder = out / media_files.FOLDER
    for file in folder.iterdir() if folder.is_dir() else ():
        if f"{media_files.FOLDER}/{file.name}" not in used:
            file.unlink()
    if folder.is_dir() and not used:
        folder.rmdir()


def _refuse_bad(out: Path, settings: DataConfig, facts: PrepareCounts, source: Path | None) -> None:
    name = source or settings.hub
    if facts.read == 0:
        raise DataError(f"{name} holds no rows", "check data.path (and data.split); empty lines don't count as rows")
    bad = facts.rejected.total()
    if bad > settings.max_bad_share * facts.read:
        first = "".join(f"\n  {entry}" for entry in facts.first_rejected)
        more = f"\n  … and {bad - 3} more" if bad > 3 else ""
        raise DataError(
            f"{bad} of {facts.read} rows ({bad / facts.read:.1%}) of {name} can't be used, "
            f"and data.max_bad_share allows {settings.max_bad_share:.1%}:{first}{more}",
            f"correct them (all are listed in {out / 'rejected.jsonl'}), or leave them out: --set "
            f"data.max_bad_share=0.1",
        )
    if settings.pii == "refuse" and facts.pii_count:
        first = "".join(f"\n  {entry}" for entry in facts.pii_rows[:3])
        raise DataError(
            f"{facts.pii_count} rows of {name} hold personal data:{first}",
            "take it out, or have it replaced by its kind: --set data.pii=mask",
        )


def _refuse_overlap(settings: DataConfig, facts: PrepareCounts) -> None:
    if settings.overlap != "refuse" or not facts.overlaps:
        return
    first = "".join(
        f"\n  {pair['row']} and {pair['question']} of {pair['task']} ({pair['how']})"
        for pair in facts.overlap_pairs[:3]
    )
    tasks = ", ".join(f"{count} in {task}" for task, count in sorted(facts.overlaps.items()))
    raise DataError(
        f"{facts.overlaps.total()} training rows also stand in an evaluation task ({tasks}):{first}",
        "leave those rows out of training: --set data.overlap=drop; or correct the task",
    )


def _refuse_empty(settings: DataConfig, facts: PrepareCounts) -> None:
    if not facts.rows["train"]:
        groups = f", in {facts.groups} groups" if settings.group_by else ""
        raise DataError(
            f"no training rows are left: {facts.rows['valid']} rows for validation{groups}, {facts.rejected.total()} "
            f"rejected, {facts.exact_duplicates + facts.near_duplicates} duplicates, {facts.overlaps.total()} "
            f"overlapping with a task",
            "lower data.valid_share, choose another data.group_by, or give more rows",
        )
