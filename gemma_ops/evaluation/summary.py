"""The verdict in few words: plain lines for a terminal, and Markdown that fits a pull-request comment.

Neither holds a row's text: a comment may be public where the rows are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARK = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "ungated": "⚪"}


def lines(verdict: dict[str, Any], folder: Path | None = None) -> list[str]:
    """Per task each target's primary metric with its interval, the paired differences, then gates and verdict."""
    found: list[str] = []
    for name, task in verdict["tasks"].items():
        metric = task["primary"]
        results = _results(verdict, name)
        pairs = _differences(verdict, name)
        width = max(len(text) for text in [*(r["target"] for r in results), *(_pair(d) for d in pairs)])
        found.append(f"{name}: {metric} on {task['rows']:,} rows ({verdict['confidence']:.0%} intervals)")
        for result in results:
            figure = result["metrics"][metric]
            found.append(
                f"  {result['target']:<{width}}   {figure['value']:.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]{_ends(result)}"
            )
        found += [
            f"  {_pair(item):<{width}}  {item['value']:+.3f}  [{item['low']:+.3f}, {item['high']:+.3f}]  "
            f"better on {item['wins']}, worse on {item['losses']}"
            for item in pairs
        ]
    found.append(f"verdict: {headline(verdict)}")
    found += [f"  {gate['outcome']:<12} {gate['words']}" for gate in verdict["gates"]]
    if folder is not None:
        found.append(f"report: {folder / 'report.html'}")
    return found


def headline(verdict: dict[str, Any]) -> str:
    """The outcome in one sentence."""
    gates = verdict["gates"]
    if not gates:
        return "ungated: nothing was asked of the models, so nothing was decided"
    counts = {
        outcome: sum(gate["outcome"] == outcome for gate in gates) for outcome in ("pass", "fail", "inconclusive")
    }
    confidence = f"{verdict['confidence']:.0%} confidence"
    if verdict["verdict"] == "pass":
        every = (
            "the gate holds"
            if len(gates) == 1
            else f"all {len(gates)} gates hold"
            if len(gates) > 2
            else "both gates hold"
        )
        return f"pass: {every} at {confidence}"
    parts = [f"{counts['pass']} hold", f"{counts['fail']} failed", f"{counts['inconclusive']} undecided"]
    shown = ", ".join(part for part in parts if not part.startswith("0 "))
    return f"{verdict['verdict']}: of {len(gates)} gate{'s' * (len(gates) > 1)} {shown} at {confidence}"


def render(verdict: dict[str, Any]) -> str:
    """`summary.md`: verdict, gates, one small table per task."""
    text = [f"## {MARK[verdict['verdict']]} Evaluation: {headline(verdict)}", ""]
    text += [f"- {MARK[gate['outcome']]} `{gate['task']}` {gate['words']}" for gate in verdict["gates"]]
    for name, task in verdict["tasks"].items():
        results, pairs = _results(verdict, name), _differences(verdict, name)
        names = [task["primary"], *[item for item in task["metrics"] if item != task["primary"]]][:4]
        text += ["", f"### {name} ({task['rows']:,} rows, version {task['version']})", ""]
        text += [_line(["target", *names, "p95 s", "tokens/s"]), _line(["---", *["---:"] * (len(names) + 2)])]
        for result in results:
            cells = [_figure(result["metrics"][item]) for item in names]
            speed = result["speed"]
            text.append(
                _line(
                    [
                        f"`{result['target']}`",
                        *cells,
                        f"{speed['seconds_p95']:.2f}",
                        f"{speed['new_tokens_per_second']:.0f}",
                    ]
                )
            )
        if pairs:
            text += [
                "",
                _line(["paired difference", task["primary"], "better / worse", "p"]),
                _line(["---", "---:", "---:", "---:"]),
            ]
        text += [
            _line([f"`{_pair(item)}`", _figure(item, "+"), f"{item['wins']} / {item['losses']}", p_text(item["p"])])
            for item in pairs
        ]
        text += [f"\n`{result['target']}`:{_ends(result).replace('  ', ' ')}" for result in results if _ends(result)]
    text += [
        "",
        f"<sub>{verdict['confidence']:.0%} intervals; gates are one-sided tests under Holm's method. Details: `report.html`.</sub>",
        "",
    ]
    return "\n".join(text)


def p_text(p: float) -> str:
    """A p-value as people read it."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def _figure(found: dict[str, Any], sign: str = "") -> str:
    if found["value"] is None:
        return "–"
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def _pair(item: dict[str, Any]) -> str:
    return f"{item['target']} − {item['versus']}"


def _ends(result: dict[str, Any]) -> str:
    """Ends other than the normal one, which a reader must know of."""
    told = {"length": "cut at the token limit", "blocked": "refused", "error": "failed"}
    parts = [f"{result['ends'][end]} {what}" for end, what in told.items() if result["ends"].get(end)]
    return "  " + ", ".join(parts) if parts else ""


def _results(verdict: dict[str, Any], task: str) -> list[dict[str, Any]]:
    return [item for item in verdict["results"] if item["task"] == task]


def _differences(verdict: dict[str, Any], task: str) -> list[dict[str, Any]]:
    return [item for item in verdict["differences"] if item["task"] == task]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
