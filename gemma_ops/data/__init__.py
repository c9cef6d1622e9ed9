"""From a person's files to training rows: import, clean, deduplicate, keep apart from evaluation, split, tokenize.

chat.py        conversations to text and tokens, as Gemma 4 reads them; what carries loss
example.py     the contract of a row
files.py       raw rows from jsonl, json, csv, tsv, parquet, `datasets` folders and the Hub (lines.py, tables.py)
formats.py     layouts of a row; normal.py brings them into one spelling, importing.py joins the two
media.py       images and sounds that rows show (parts.py their spellings, pictures.py and sounds.py the files, naming.py which
               there are, encoded.py their tokens)
preferences.py the same for answers that were compared or judged; answers.py makes them tokens
documents.py   raw texts, for continued pre-training
dedup.py       exact and near duplicates (words.py, near.py)
overlap.py     rows that also stand in an evaluation task (tasks.py)
pii.py         personal data and secrets, by checksum and rule
split.py       training and validation by hash of the group
pipeline.py    the step `prepare`; card.py writes its report and card
tokens.py      rows as token ids and labels; arrow.py puts them on disk, answer_tables.py those of compared answers
check.py       what `gemma-ops data check` shows (findings.py says what is wrong with a row, check_html.py draws it)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from gemma_ops.config import DataConfig, MachineConfig


def prepare(
    out: Path,
    settings: DataConfig,
    machine: MachineConfig,
    *,
    source: Path | None = None,
    model: Path,
    tasks: tuple[Path, ...] = (),
) -> dict[str, float]:
    """The step `prepare`; see `pipeline.prepare`."""
    from gemma_ops.data.pipeline import prepare as run

    return run(out, settings, machine, source=source, model=model, tasks=tasks)
