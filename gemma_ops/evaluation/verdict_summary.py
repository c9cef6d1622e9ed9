"""The summary of a verdict: plain lines for a terminal, and Markdown that fits a pull-request comment.

Neither holds a row's text: a comment may be public where the rows are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_ops.evaluation import report_header
from gemma_ops.evaluation.gate_figures import baseline, gated_metrics, load_of, measured, required
from gemma_ops.judging import judging_text
from gemma_ops.privacy.classes import HERE
from gemma_ops.tasks.conditions import load_words
from gemma_ops.verdicts import Figure, PairedDifference, RoutingLine, RoutingTable, TargetResult, TaskFacts, Verdict
from gemma_ops.verdicts.measurements import ValueSpan
from gemma_ops.words.figures import p_text, seconds, short_name, usd_text

MARK = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "ungated": "⚪", "report_only": "⚪"}


def summary_lines(verdict: Verdict, folder: Path | None = None) -> list[str]:
    """Return per task each target's primary metric with its interval, the paired differences, then gates and
    verdict."""
    found: list[str] = []
    for name, task in verdict.tasks.items():
        metric = task.primary
        results, pairs = verdict.results_of(name), verdict.differences_of(name)
        width = max(len(text) for text in [*(r.target for r in results), *(_pair(d) for d in pairs)])
        found.append(f"{name}: {metric} on {task.rows:,} rows ({verdict.confidence:.0%} intervals)")
        if task.copies:
            found.append(f"  {task.copies:,} rows repeat another question and count as one with it")
        found += [
            f"  {result.target:<{width}}   {_measured(result.metrics[metric])}{_ends(result)}" for result in results
        ]
        found += [
            f"  {_pair(item):<{width}}  {item.value:+.3f}  [{item.low:+.3f}, {item.high:+.3f}]  "
            f"better on {item.wins}, worse on {item.losses}"
            for item in pairs
        ]
        if any(result.cost.kind != "unknown" or result.place != HERE for result in results):
            for result in results:
                found.append(f"  {result.target:<{width}}   {_takes(result)}")
                found.append(f"  {'':<{width}}   timed with {load_words(verdict, name, result.target)}")
        found += [f"  {_route(table)}" for table in _tables(verdict, name)]
        found += [f"  {line}" for judged in verdict.judged_of(name) for line in judging_text.judging_lines(judged)]
    found.append(f"verdict: {verdict_headline(verdict)}")
    for gate in verdict.gates:
        found.append(f"  {gate.outcome:<12} {gate.words}")
        if load := load_of(gate, verdict):
            found.append(f"  {'':<12} timed with {load}")
    if champion := verdict.champion:
        found.append(f"  champion is version {champion.version} of {champion.name} ({champion.form})")
    look = verdict.look
    if look and look.number > 1:
        found.append(
            f"  look {look.number} at these models: decided at a level of {look.level:.3g}, since earlier ones "
            f"spent theirs"
        )
    if folder is not None:
        found.append(f"report: {folder / 'report.html'}")
    return found


def verdict_headline(verdict: Verdict) -> str:
    """Return the outcome in one sentence."""
    gates = [gate for gate in verdict.gates if gate.outcome != "report_only"]
    if verdict.gates and not gates:
        return "ungated: no gate could be decided, because no judge may decide it"
    if not gates:
        return "ungated: no gate was set, so nothing was decided"
    counts = {outcome: sum(gate.outcome == outcome for gate in gates) for outcome in ("pass", "fail", "inconclusive")}
    confidence = f"{verdict.confidence:.0%} confidence"
    if verdict.verdict == "pass":
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
    return f"{verdict.verdict}: of {len(gates)} gate{'s' * (len(gates) > 1)} {shown} at {confidence}"


def summary_markdown(verdict: Verdict) -> str:
    """Return `summary.md`: verdict, gates, one small table per task."""
    text = [f"## {MARK[verdict.verdict]} Evaluation: {verdict_headline(verdict)}", ""]
    text += [_about(verdict), ""]
    text += _gates(verdict)
    for name, task in verdict.tasks.items():
        results, pairs = verdict.results_of(name), verdict.differences_of(name)
        names = _columns(verdict, name, task)
        text += ["", f"### {name} ({task.rows:,} rows, version {task.version})", ""]
        head = ["target", *names, "$ per 1,000", "first token p50 / p95", "answer p50 / p95", "timed with", "questions"]
        text += [_line(head), _line(["---", *["---:"] * (len(head) - 3), "---", "---"])]
        for result in results:
            cells = [_figure(result.metrics[item].span) for item in names]
            text.append(
                _line(
                    [
                        f"`{result.target}`",
                        *cells,
                        *_running(result),
                        load_words(verdict, name, result.target),
                        result.place,
                    ]
                )
            )
        if pairs:
            text += [
                "",
                _line(["paired difference", task.primary, "better / worse", "p"]),
                _line(["---", "---:", "---:", "---:"]),
            ]
        text += [
            _line([f"`{_pair(item)}`", _figure(item.span, "+"), f"{item.wins} / {item.losses}", p_text(item.p)])
            for item in pairs
        ]
        text += [f"\n`{result.target}`:{_ends(result).replace('  ', ' ')}" for result in results if _ends(result)]
        text += [f"\n{judging_text.judging_markdown(judged)}" for judged in verdict.judged_of(name)]
        for table in _tables(verdict, name):
            text += [
                "",
                f"**{_route(table)}**",
                "",
                _line(["slice", "decision", "rows", "difference"]),
                _line(["---", "---", "---:", "---:"]),
            ]
            text += [
                _line([_slice(line), line.decision, f"{line.n:,}", _figure(line.span, "+")]) for line in table.lines
            ]
    text += [
        "",
        (
            f"<sub>{verdict.confidence:.0%} intervals; gates are one-sided tests under Holm's method. Details: "
            f"`report.html`.</sub>"
        ),
        "",
    ]
    return "\n".join(text)


def _about(verdict: Verdict) -> str:
    """Return run, model, date and version in one line."""
    parts = [f"run `{verdict.run}`"] if verdict.run else []
    parts += [f"tuned model `{found}`"] if (found := report_header.tuned_model(verdict)) else []
    parts += [f"evaluated {report_header.date(verdict)}" if verdict.date else "date not recorded"]
    return " · ".join([*parts, *([verdict.made_by] if verdict.made_by else [])])


def _gates(verdict: Verdict) -> list[str]:
    """Return every gate with its figures, as one table, then each in words."""
    if not verdict.gates:
        return []
    head = [
        "",
        "task",
        "target",
        "figure",
        "measured [bounds]",
        "must be",
        "baseline",
        "p (Holm)",
        "rows",
        "timed with",
    ]
    text = [_line(head), _line(["---"] * 4 + ["---:"] * 2 + ["---"] + ["---:"] * 2 + ["---"])]
    for gate in verdict.gates:
        outcome = f"{MARK[gate.outcome]} {gate.outcome.replace('_', ' ')}"
        who = [outcome, f"`{gate.task}`", f"`{gate.target}`", f"`{gate.metric}`"]
        holm = "–" if gate.p_holm is None else p_text(gate.p_holm)
        rows = "–" if gate.n is None else f"{gate.n:,}"
        figures = [measured(gate, verdict), required(gate), baseline(gate, verdict), holm, rows]
        text.append(_line([*who, *figures, load_of(gate, verdict) or "–"]))
    return [*text, "", *(f"- {MARK[gate.outcome]} `{gate.task}` {gate.words}" for gate in verdict.gates)]


def _columns(verdict: Verdict, name: str, task: TaskFacts) -> list[str]:
    """Return the primary metric, every metric that a gate asks for, and others up to three."""
    gated = [metric for metric in gated_metrics(verdict, name) if metric in task.metrics]
    chosen = list(dict.fromkeys([task.primary, *gated]))
    others = [metric for metric in task.metrics if metric not in chosen]
    return [*chosen, *others[: max(0, 3 - len(chosen))]]


def _measured(figure: Figure) -> str:
    if figure.span is None:
        return "no row could be scored"
    value, low, high = figure.span
    return f"{value:.3f}  [{low:.3f}, {high:.3f}]"


def _figure(found: ValueSpan | None, sign: str = "") -> str:
    if found is None:
        return "–"
    value, low, high = found
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _pair(item: PairedDifference) -> str:
    return f"{item.target} − {item.versus}"


def _takes(result: TargetResult) -> str:
    """Return dollars, seconds and place of one target."""
    dollars, first, whole = _running(result)
    parts = [f"{dollars} per 1,000" if dollars != "unknown" else "cost unknown"]
    parts += [f"first token {first}"] if first != "–" else []
    return ", ".join([*parts, f"answer {whole} (p50 / p95)", result.place])


def _running(result: TargetResult) -> list[str]:
    dollars, speed = result.cost.usd_per_1k, result.speed

    def pair(kind: str) -> str:
        half, most = speed.wait(f"{kind}_p50"), speed.wait(f"{kind}_p95")
        return "–" if half is None else f"{seconds(half)} / {seconds(most)}"

    return ["unknown" if dollars is None else usd_text(dollars), pair("first_seconds"), pair("seconds")]


def _tables(verdict: Verdict, task: str) -> Sequence[RoutingTable]:
    return verdict.routing.of_task(task) if verdict.routing else ()


def _route(table: RoutingTable) -> str:
    """Return `routing tuned or gemini-3.8-flash: of 7 slices keep 5, undecided 2`; without slices `the whole task
    undecided`."""
    slices = table.slice_lines
    kinds = ("keep", "send", "undecided")
    counts = [f"{kind} {count}" for kind in kinds if (count := sum(line.decision == kind for line in slices))]
    told = f"of {len(slices)} slices {', '.join(counts)}" if slices else f"the whole task {table.lines[0].decision}"
    return f"routing {short_name(table.local.name)} or {short_name(table.remote.name)}: {told}"


def _slice(line: RoutingLine) -> str:
    return "all" if line.slice is None else f"{line.slice}: {line.value}"


def _ends(result: TargetResult) -> str:
    """Return ends other than the normal one, which a reader must know of."""
    told = {"length": "cut at the token limit", "blocked": "refused", "error": "failed"}
    parts = [f"{result.ends[end]} {what}" for end, what in told.items() if result.ends.get(end)]
    parts += [f"{result.hidden} not shown to it"] if result.hidden else []
    return "  " + ", ".join(parts) if parts else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
