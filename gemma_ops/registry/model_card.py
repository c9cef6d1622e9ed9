"""The model card of a version, and the short text MLflow shows on its page.

Everything in it comes from the manifest and the evidence; what is unknown is said to be unknown.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.family.formats import QUANTIZED
from gemma_ops.gemini.notice import NOT_FOR
from gemma_ops.registry.card_drafter import drafter_section
from gemma_ops.registry.card_usage import loading
from gemma_ops.registry.evaluation_evidence import EvaluationEvidence, ReportedFigure
from gemma_ops.registry.staging import TOKENIZER

_LICENCE = (
    "The base model is Gemma 4, released by Google under the Apache License 2.0; these weights are a modification of "
    "it and carry the same licence. The training data has terms of its own."
)
_ELSEWHERE = (
    "Nothing is known about its answers elsewhere: fine-tuning on one domain can cost abilities in others, safety "
    "behaviour among them."
)
_CLASSES = {
    "local_only": "It learned from rows of class `local_only`: its answers can repeat them, so they may not leave the "
    "machine either.",
    "paid": "It learned from rows of class `paid`: its answers can repeat them, so they may go to services under paid "
    "terms only.",
    "any": "Every row that it is known to have learned from may go anywhere, and so may its answers.",
}
_WORDS = {
    "pass": "passed every gate",
    "fail": "failed a gate",
    "inconclusive": "is inconclusive: the evidence shows neither that it is good enough nor that it is not",
    "ungated": "was measured, but no gate was asked",
}


def write_card(manifest: dict[str, Any], found: EvaluationEvidence | None, description: str) -> str:
    """Return the card as Markdown with the YAML head that model hubs read."""
    subject = manifest["subject"]
    parts = [
        _head(subject),
        f"# {subject['name']}",
        introduction(subject, description),
        "## Verdict",
        card_headline(found),
        "## Evaluation",
        _figures(found),
        "## Training data",
        _data(subject["data"], subject["settings"].get("prepare") or {}),
        "## Who may see its answers",
        _seen(subject.get("privacy") or {}),
        "## How it was made",
        _making(manifest),
        "## Intended use and limits",
        _limits(subject, found),
        "## Loading and serving",
        loading(subject, carried_files(subject)),
        *drafter_section(subject),
        "## Files",
        _files(subject),
        "## Licence",
        _LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


def introduction(subject: dict[str, Any], description: str) -> str:
    """Return what the model is: the user's words, or what can be said without them."""
    base = subject["base"]
    return description or f"{base['id']} (Gemma 4{_size(base)}), adapted to one task with gemma-ops."


def card_headline(found: EvaluationEvidence | None) -> str:
    """Return the verdict in one plain line, the gates as a list, the primary figures as a table.

    MLflow shows the first line in the list of versions, unrendered, so it carries no markup.
    """
    if found is None:
        return "Not evaluated."
    lines = [f"{found.outcome.capitalize()}: this version {_WORDS.get(found.outcome, found.outcome)}."]
    if found.gates:
        lines += ["", *(f"- {gate.outcome}: {gate.words}" for gate in found.gates)]
    for name in found.tasks:
        primary = [figure for target in found.targets if (figure := found.primary(target, name))]
        if primary:
            first = primary[0]
            lines += [
                "",
                f"| {name}: {first.metric} | value [{found.confidence:.0%} interval] | n |",
                "|---|---|---|",
            ]
            lines += [f"| {figure.target} | {figure.text} | {figure.n:,} |" for figure in primary]
            lines += [
                f"| {figure.target} − {figure.versus} | {figure.text} | {figure.n:,} |"
                for figure in found.differences
                if (figure.task, figure.metric) == (first.task, first.metric)
            ]
    return "\n".join(lines)


def card_tags(manifest: dict[str, Any], found: EvaluationEvidence | None) -> dict[str, str]:
    """Return what a reviewer sees next to a version on the Models page, in this order; short enough to stay on one
    line."""
    subject = manifest["subject"]
    shown = {"verdict": found.outcome if found else "not evaluated"}
    figure = best(found)
    if found and figure:
        shown[figure.metric] = figure.text
        rival = next((other for other in found.differences if _same(other, figure)), None)
        if rival:
            shown[f"vs {rival.versus}"] = rival.text
    revision = subject["base"]["revision"]
    return shown | {
        "base": subject["base"]["id"] + (f"@{revision[:8]}" if revision else ""),
        "answers": (subject.get("privacy") or {}).get("answers", "local_only"),
        "carries": ", ".join(carried_files(subject)),
        "adapter": subject["adapter"]["digest"][:12] if subject["adapter"] else "none",
        **({"tuned": subject["tuned"]["digest"][:12]} if subject.get("tuned") else {}),
        "data": subject["data"]["digest"][:12] if subject["data"] else "none",
        **({"thinking": subject["prompting"]["thinking"]} if subject.get("prompting") else {}),
        "gemma_ops.manifest": manifest["digest"],
    }


def carried_files(subject: dict[str, Any]) -> list[str]:
    """Return what the version holds, in the words of `register.artifacts`."""
    names: dict[str, None] = {}
    for path in subject["files"]:
        top, _, rest = path.partition("/")
        if top == "quantized":
            names[rest.partition("/")[0]] = None
        elif rest and top != TOKENIZER:
            names[top] = None
    return list(names)


def best(found: EvaluationEvidence | None) -> ReportedFigure | None:
    """Return the primary figure of the tuned model, else of the first target that isn't the base, on the first task."""
    if not found or not found.tasks:
        return None
    order = ("tuned", *(target for target in found.targets if target != "base"), *found.targets)
    return next((figure for target in order if (figure := found.primary(target, next(iter(found.tasks))))), None)


def _same(other: ReportedFigure, figure: ReportedFigure) -> bool:
    return (other.task, other.target, other.metric) == (figure.task, figure.target, figure.metric)


def _size(base: dict[str, Any]) -> str:
    return f" {base['size'].upper()}" if base["size"] else ""


def _head(subject: dict[str, Any]) -> str:
    base = subject["base"]
    lines = [
        "---",
        "license: apache-2.0",
        f"base_model: {base['id']}",
        "library_name: peft",
        "tags: [gemma4, gemma-ops]",
        "---",
    ]
    if not subject["adapter"]:
        lines.remove("library_name: peft")
    return "\n".join(lines)


def _figures(found: EvaluationEvidence | None) -> str:
    """Return for each task one table of metrics by target, and one of the paired differences."""
    if found is None:
        return "None."
    parts = [f"Intervals are {found.confidence:.0%}."]
    for name, task in found.tasks.items():
        rows = [figure for figure in found.figures if figure.task == name]
        targets = [target for target in found.targets if any(figure.target == target for figure in rows)]
        cells = {(figure.metric, figure.target): figure.text for figure in rows}
        lines = [f"### {name}: {task.rows:,} questions (`{task.digest[:12]}`)", ""]
        lines += [_row(["metric", *targets]), _row(["---"] * (len(targets) + 1))]
        for metric in dict.fromkeys(figure.metric for figure in rows):
            lines.append(_row([metric, *(cells.get((metric, target), "not scored") for target in targets)]))
        pairs = [figure for figure in found.differences if figure.task == name]
        if pairs:
            lines += ["", _row(["paired difference", pairs[0].metric, "n"]), _row(["---"] * 3)]
            lines += [_row([f"{pair.target} − {pair.versus}", pair.text, f"{pair.n:,}"]) for pair in pairs]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _data(data: dict[str, Any] | None, settings: dict[str, Any]) -> str:
    if data is None:
        return "None: the weights are those of the base."
    files = "; ".join(f"{name} {file['rows']:,} rows (`{file['sha256'][:12]}`)" for name, file in data["files"].items())
    privacy = ", ".join(f"{count:,} {label}" for label, count in sorted(data["privacy"].items()))
    sources = ", ".join(f"{name} ({count:,})" for name, count in data["sources"].items())
    text = f"{files}. Privacy classes: {privacy}. Sources: {sources}. Digest `{data['digest']}`."
    parts = {"prompt": "user turn", "completion": "answer", "system": "system turn"}
    if given := [f"{words} `{settings[key]}`" for key, words in parts.items() if settings.get(key)]:
        text += (
            f"\n\nTurns were made from columns: {', '.join(given)}."
            if settings.get("prompt")
            else f"\n\nPut before every row that had none: {given[0]}."
        )
    for teacher in data["teachers"]:
        text += (
            f"\n\n{teacher['rows']:,} rows were written by {teacher['name']} "
            f"({teacher['version'] or 'version not stated'})"
        )
        if teacher.get("rehearsal"):
            text += ". **An emulator stood in for it: a rehearsal, not for use.**"
            continue
        text += f" under the Gemini API terms of {teacher['terms']}: {NOT_FOR}." if teacher["terms"] else "."
    return text


def _seen(privacy: dict[str, Any]) -> str:
    learned = privacy.get("learned", "local_only")
    text = _CLASSES[learned]
    if release := privacy.get("release"):
        text += f"\n\n**Released to `{release['to']}`**: {release['reason']}"
    return text


def _making(manifest: dict[str, Any]) -> str:
    subject, made = manifest["subject"], manifest["made"]
    train = subject["settings"].get("train", {})
    lines = [
        (
            f"- Base: {subject['base']['id']}, revision "
            f"{subject['base']['revision'] or 'not versioned; see the file digests in manifest.json'}"
        )
    ]
    if subject["adapter"]:
        rate = train.get("learning_rate") or "the size's default"
        lines.append(
            f"- Adapter: LoRA rank {subject['adapter']['rank']}, alpha {subject['adapter']['alpha']}, base held in "
            f"{train.get('weights', 'unknown')}, learning rate {rate}, seed {subject['seed']}"
        )
    if tuned := subject.get("tuned"):
        rate = train.get("learning_rate") or "the size's default"
        lines.append(
            f"- All of the language model: {tuned['tensors']:,} tensors ({tuned['parameters']:,} parameters) changed, "
            f"held in {train.get('weights', 'unknown')}, learning rate {rate}, seed {subject['seed']}"
        )
    state = {True: " with uncommitted changes", False: "", None: ""}[made["dirty"]]
    packages = ", ".join(f"{name} {number}" for name, number in made["packages"].items())
    return "\n".join(
        [
            *lines,
            f"- Configuration digest: `{subject['config']}`",
            f"- Manifest digest: `{manifest['digest']}`",
            (
                f"- Code: gemma-ops {made['gemma_ops']}, commit {made['commit'] or 'unknown'}{state}; Python "
                f"{made['python']}, {packages}"
            ),
        ]
    )


def _limits(subject: dict[str, Any], found: EvaluationEvidence | None) -> str:
    asked = ", ".join(found.tasks) if found else ""
    lines = [f"Meant for the task it was tuned and evaluated on{f' ({asked})' if asked else ''}. {_ELSEWHERE}"]
    unmeasured = [name for name in carried_files(subject) if found and name in QUANTIZED and name not in found.targets]
    if unmeasured:
        lines.append(f"Not evaluated in the form that is served: {', '.join(unmeasured)}.")
    if subject["data"] and subject["data"]["privacy"].get("local_only"):
        lines.append(
            "Trained on rows that may not leave the machine: weights can repeat what they were trained on, so treat "
            "them alike."
        )
    return "\n\n".join(lines)


def _files(subject: dict[str, Any]) -> str:
    lines = ["| file | bytes | sha256 |", "|---|---|---|"]
    return "\n".join(
        lines + [f"| {name} | {file['bytes']:,} | `{file['sha256']}` |" for name, file in subject["files"].items()]
    )
