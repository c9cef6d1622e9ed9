"""The head of a report: the run, the model that was tuned, the targets, the date, the version."""

from __future__ import annotations

from markupsafe import Markup

from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.judging.report_judge import side_names
from gemma_ops.verdicts import Verdict

UNKNOWN = "not recorded"


def target_names(verdict: Verdict) -> list[str]:
    """Return every target that the page shows, in the order of the configuration, judged ones included."""
    judged = [name for body in verdict.judged for name in side_names(body)]
    return list(dict.fromkeys([*(item.target for item in verdict.results), *judged]))


def title(verdict: Verdict, outcome: str) -> str:
    """Return the page's title, as plain text: what a tab or a list of files shows."""
    parts = [str(verdict.run or "Evaluation"), tuned_model(verdict), f"evaluation of {', '.join(verdict.tasks)}"]
    date = verdict.date
    return " · ".join(part for part in [*parts, outcome, date[:10] if date else ""] if part)


def header(verdict: Verdict) -> Markup:
    """Return the heading and a list of facts."""
    facts = [
        ("Run", verdict.run or UNKNOWN),
        ("Tuned model", tuned_model(verdict) or UNKNOWN),
        ("Targets", REPORT.fill("header.html", "targets", names=target_names(verdict))),
        ("Tasks", ", ".join(verdict.tasks)),
        ("Evaluated", date(verdict)),
        ("Made by", verdict.made_by or UNKNOWN),
    ]
    return REPORT.fill("header.html", "header", run=verdict.run or "", facts=facts)


def tuned_model(verdict: Verdict) -> str:
    """Return id, size and revision of the model that was tuned, as far as the verdict knows them; else an empty
    text."""
    known = verdict.model
    size, revision = known.size, known.revision
    more = ", ".join([*([f"size {size}"] if size else []), *([f"revision {revision[:12]}"] if revision else [])])
    name = known.id or ""
    return f"{name} ({more})" if name and more else name or more


def date(verdict: Verdict) -> str:
    """Return when the first question was asked, to the minute in UTC."""
    found = verdict.date
    return f"{found[:10]} {found[11:16]} UTC" if found else UNKNOWN
