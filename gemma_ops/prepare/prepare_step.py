"""The step `prepare`: from files to clean, deduplicated, split training rows and a card that says what was done.

Rows stream: the first pass reads, checks and writes usable rows to a working file; the next compares them with each
other and with the evaluation tasks; the last writes the two sides of the split. What stays in memory of a row are
hashes (about 250 bytes, and 6 KiB while near duplicates are looked for). Killed and started again, the step starts from
the beginning and ends with the same bytes.
"""

from __future__ import annotations

import heapq
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.config import DataConfig, MachineConfig, Privacy
from gemma_ops.data import chat, example, media_files, published
from gemma_ops.data.hashed_words import Boilerplate, Hashes, hashes
from gemma_ops.data.import_rows import Imported, Importer, Teacher, teacher_of
from gemma_ops.data.row_tokens import Manner, examples_by_mode, loss_flags
from gemma_ops.errors import DataError
from gemma_ops.family.media import Senses
from gemma_ops.prepare.data_card import source_facts, write_report
from gemma_ops.prepare.deduplicate import NearDuplicates, exact_key, prompt_key
from gemma_ops.prepare.prepare_counts import PrepareCounts
from gemma_ops.prepare.split import Split
from gemma_ops.prepare.task_overlap import Overlap
from gemma_ops.privacy.classes import stricter
from gemma_ops.privacy.text_copies import FILE as PRIVATE
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.runs import journal
from gemma_ops.runs.durable import whole_file
from gemma_ops.tasks.compared_questions import asked_texts, names, read_task

_SAMPLE = 2000  # rows whose user texts tell what is boilerplate
_SAMPLE_WORDS = 1000  # words kept of each of their texts
_EVERY = 5000  # rows between progress records
_LISTED = 50  # dropped rows listed in the report, per kind


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
    tokenizer = chat.load_tokenizer(model)
    senses = media_files.senses(model)
    manner = Manner(template=published.template_of(model), senses=senses)
    facts = PrepareCounts(tasks=[read_task(folder, source) for folder in tasks])
    private = PrivateTexts()
    first = _FirstPass(settings, facts, private)
    first.run(out, work / "rows.jsonl", source, senses)
    _refuse_bad(out, settings, facts, source)
    drops = _compare(work / "rows.jsonl", settings, facts, first.sample())
    _refuse_overlap(settings, facts)
    split = Split(settings.valid_share)
    for number, row in enumerate(example.read_rows(work / "rows.jsonl")):
        if number not in drops:
            split.add(row["group"])
    with whole_file(out / "train.jsonl") as train, whole_file(out / "valid.jsonl") as valid:
        for number, row in enumerate(example.read_rows(work / "rows.jsonl")):
            if number in drops:
                continue
            if number in first.tightened:
                row["privacy"] = stricter(row["privacy"], first.tightened[number])
            if found := private.strictest(" ".join(example.row_texts(row)), row["privacy"]):
                row["privacy"] = found.privacy
                facts.copies += 1
            side = "valid" if split.is_valid(row["group"]) else "train"
            (valid if side == "valid" else train).write(example.line(row) + "\n")
            counted = loss_flags(tokenizer, row, manner)
            for loss in counted:
                facts.lengths[side].add(loss)
            if side == "train":
                facts.examples.update(examples_by_mode(tokenizer, row, manner, len(counted)))
            facts.show(row["messages"], senses)
            facts.kinds[example.kind(row)] += 1
            facts.privacy[row["privacy"]] += 1
            facts.rows[side] += 1
            if number in first.taught:
                facts.teachers[first.taught[number]] += 1
            _progress("write", number + 1)
    facts.groups = split.groups
    _refuse_empty(settings, facts)
    shutil.rmtree(work)
    private.save(out / PRIVATE)
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


class _FirstPass:
    """First pass over the rows: reads and checks each, and writes usable ones (without exact duplicates) and rejected
    ones to their files."""

    def __init__(self, settings: DataConfig, facts: PrepareCounts, private: PrivateTexts) -> None:
        self.settings = settings
        self.facts = facts
        self.private = private
        self.tightened: dict[int, Privacy] = {}
        self.taught: dict[int, Teacher] = {}
        """Strictest class among the duplicates of a kept row, by its number."""
        self._kept: dict[bytes, int] = {}
        self._count = 0
        self._prompts: set[bytes] = set()
        self._sample: list[tuple[int, list[Hashes]]] = []

    def run(self, out: Path, rows: Path, source: Path | None, senses: Senses) -> None:
        importer = Importer(source, self.settings, senses, out=out)
        with whole_file(out / "rejected.jsonl") as bad, whole_file(rows) as good:
            for item in importer:
                self.facts.read += 1
                _progress("read", self.facts.read)
                if item.example is None:
                    bad.write(example.line(item.rejected()) + "\n")
                    self._reject(item)
                elif self._keep(item, item.example):
                    good.write(example.line(item.example) + "\n")
        self.facts.layout = importer.layout

    def _reject(self, item: Imported) -> None:
        self.facts.rejected[item.code] += 1
        if len(self.facts.first_rejected) < 3:
            self.facts.first_rejected.append(f"{item.raw.source}: {item.reason}")

    def _keep(self, item: Imported, row: dict[str, Any]) -> bool:
        self.facts.repaired.update(set(item.notes))
        self.private.add_row(row, row["source"])
        if item.pii:
            self.facts.pii.update(item.pii)
            self.facts.pii_count += 1
            if len(self.facts.pii_rows) < _LISTED:
                self.facts.pii_rows.append(f"{row['source']}: {', '.join(sorted(item.pii))}")
        key = exact_key(row)
        if key in self._kept and self.settings.exact_duplicates == "drop":
            self.facts.exact_duplicates += 1
            number = self._kept[key]
            self.tightened[number] = stricter(self.tightened.get(number, "any"), row["privacy"])
            return False
        number = self._count
        self._kept.setdefault(key, number)
        self._count += 1
        if teacher := teacher_of(item.raw.value or {}):
            self.taught[number] = teacher
        if example.kind(row) == "conversation":
            prompt = prompt_key(row)
            self.facts.conflicts += prompt in self._prompts
            self._prompts.add(prompt)
        elif example.kind(row) != "text":
            self.facts.contradictions += exact_key(example.swapped(row)) in self._kept
        # The rows with the smallest ids: the same sample in whatever order the files are.
        texts = [hashes(text) for text in asked_texts(row)]
        heapq.heappush(self._sample, (-int(row["id"], 16), [_ends(text) for text in texts]))
        if len(self._sample) > _SAMPLE:
            heapq.heappop(self._sample)
        return True

    def sample(self) -> list[Hashes]:
        """Return hashed user texts of up to 2,000 rows."""
        return [text for _, texts in sorted(self._sample, key=lambda entry: entry[0]) for text in texts]


def _ends(text: Hashes) -> Hashes:
    """Return a text for the sample: of a long one its beginning and end, where instructions stand."""
    return (
        text
        if len(text) <= _SAMPLE_WORDS
        else np.concatenate([text[: _SAMPLE_WORDS // 2], text[-_SAMPLE_WORDS // 2 :]])
    )


def _compare(rows: Path, settings: DataConfig, facts: PrepareCounts, sample: list[Hashes]) -> set[int]:
    """Return the numbers of the rows to leave out: those that overlap with a task (with `drop`) and near duplicates."""
    overlap = Overlap(facts.tasks, sample)
    near = NearDuplicates(settings.near_duplicates, Boilerplate(sample)) if settings.near_duplicates else None
    drops: set[int] = set()
    for number, row in enumerate(example.read_rows(rows)):
        _progress("compare", number + 1)
        match = overlap.find(asked_texts(row), names(row["messages"]))
        if match:
            facts.overlaps[match.task] += 1
            _list(facts.overlap_pairs, row=row["source"], task=match.task, question=match.place, how=match.how)
            if settings.overlap == "drop":
                drops.add(number)
                continue
        earlier = near.find_or_add(row) if near else None
        if earlier:
            facts.near_duplicates += 1
            _list(facts.near_pairs, row=row["source"], of=earlier[0], similarity=round(earlier[1], 3))
            drops.add(number)
    return drops


def _keep_media(out: Path, used: set[str]) -> None:
    """Keep the files of rows that are kept, and remove all others."""
    folder = out / media_files.FOLDER
    for file in folder.iterdir() if folder.is_dir() else ():
        if f"{media_files.FOLDER}/{file.name}" not in used:
            file.unlink()
    if folder.is_dir() and not used:
        folder.rmdir()


def _list(pairs: list[dict[str, Any]], **entry: Any) -> None:
    if len(pairs) < _LISTED:
        pairs.append(entry)


def _progress(phase: str, rows: int) -> None:
    if rows % _EVERY == 0:
        journal.record(phase=phase, rows=rows)


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
