"""The part of the model card that says what a version's drafter does, and how it is used."""

from __future__ import annotations

from typing import Any

from gemma_ops.family.formats import GGUF
from gemma_ops.verdicts.drafter_record import DRAFTER_GGUF, DRAFTER_SHELF, DRAFTER_WEIGHTS, DrafterRecord


def drafter_section(subject: dict[str, Any]) -> list[str]:
    """Return the card's heading and text about the drafter; nothing where the version carries none."""
    told = subject.get("drafter")
    if not told:
        return []
    record = DrafterRecord.model_validate(told)
    said = (
        f"A model of {record.parameters:,} parameters says the next {record.tokens} tokens before this one checks them "
        f"all at once. It was tuned on {record.rows:,} answers of this version, and measured with {record.engine}, one "
        "request at a time. Intervals in brackets are by resampling of questions."
    )
    lines = [
        said,
        "",
        "| file | task | tokens a step, before | after | drafted tokens kept | speed | equal answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for form, file in record.files.items():
        lines += [
            f"| {form} | {task.task} ({task.rows:,} questions) | {task.stock.tokens_per_step.value:.2f} | "
            f"{task.tuned.tokens_per_step.words} | {task.tuned.accepted.words} | {task.tuned.speed.words}× | "
            f"{task.equal:,} of {task.rows:,} |"
            for task in file.tasks
        ]
    lines.append("")
    for form, file in record.files.items():
        lines.append(f"- {form}: {'use it' if file.recommended else 'leave it off'}. {file.reason}")
    first = next((form for form in record.files if form in GGUF), None)
    if first:
        ahead = f"--model-draft {DRAFTER_SHELF}/{DRAFTER_GGUF} --spec-type draft-mtp --spec-draft-n-max {record.tokens}"
        lines += ["", f"```\nllama-server -m {GGUF[first].place} {ahead}\n```"]
    place = f"`{DRAFTER_SHELF}/{DRAFTER_WEIGHTS}`"
    lines += ["", f"For transformers (`assistant_model`) and vLLM (`--speculative-config`): {place}."]
    return ["## Drafter", "\n".join(lines)]
