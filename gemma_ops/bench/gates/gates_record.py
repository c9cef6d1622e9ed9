"""The record of `gemma-ops bench gates`: every table, with the bounds it must keep, as one JSON document."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from gemma_ops import __version__
from gemma_ops.bench.gates import gates_tables
from gemma_ops.bench.gates.gates_cases import cases
from gemma_ops.bench.gates.gates_labels import label_cases, label_errors, label_power

ROWS = (20, 50, 200, 1000)
EFFECTS = ((0.01, 0.15), (0.02, 0.15), (0.04, 0.15), (0.02, 0.3))
LABEL_ROWS = (50, 200, 1000)
POWERS = ((3, 440), (10, 850))
"""Labels and rows at which a macro F1 of .9 passes a margin of .85 in four of five cases."""
SCHEMA = "gemma-ops/gates-bench@1"


def measure_gates(times: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure all tables with so many repetitions. The whole record takes minutes on one core at 4,000."""
    started = time.process_time()
    every = cases()
    errors = []
    for index, case in enumerate(every):
        tell(case.name)
        errors += [gates_tables.errors(case, n, times, seed + 100 * index + step) for step, n in enumerate(ROWS)]
    by_name = {case.name: case for case in every}
    scores, pairs = by_name["superior, normal differences"], by_name["superior, yes/no in pairs"]
    graded, zeros = by_name["at least, wrong, half right and right"], by_name["at least, 2% of scores are 0"]
    tell("verdicts of ten gates")
    verdicts = {
        case.name: gates_tables.verdict_of_gates(case, 200, 10, times // 2, seed + 1) for case in (scores, pairs)
    }
    tell("twenty looks")
    looks = {case.name: gates_tables.looks(case, 50, 25, 20, times // 4, seed + 2) for case in (scores, graded, pairs)}
    tell("rows that are told")
    told = [
        gates_tables.pilots(case, n, gap, max(20, times // 100), seed + 3)
        for case, n, gap in ((scores, 50, 0.04), (graded, 50, 0.08), (zeros, 50, 0.05), (pairs, 60, 0.08))
    ]
    few = max(100, times // 2)
    labels = []
    for index, one in enumerate(label_cases()):
        tell(one.name)
        labels += [label_errors(one, n, few, seed + 5000 + 100 * index + step) for step, n in enumerate(LABEL_ROWS)]
    passing = [label_power(count, 0.9, 0.85, n, few, seed + 4) for count, n in POWERS]
    prices = [gates_tables.rows_price(effect, deviation) for effect, deviation in EFFECTS]
    return {
        "schema": SCHEMA,
        "command": f"gemma-ops bench gates --times {times} --seed {seed}",
        "version": __version__,
        "level": 0.05,
        "bounds": {"error": round(0.05 + 3 * (0.05 * 0.95 / times) ** 0.5, 4), "coverage": 0.94, "ratio": 1.6},
        "seconds": round(time.process_time() - started),
        "errors": [_rounded(asdict(line)) for line in errors],
        "labels": [_rounded(asdict(line)) for line in labels],
        "label_power": [_rounded(asdict(line)) for line in passing],
        "verdicts": [
            {"case": name, "gates": 10, "n": 200, "times": times // 2, "any_pass": any_pass, "any_fail": any_fail}
            for name, (any_pass, any_fail) in verdicts.items()
        ],
        "looks": [
            {"case": name, "looks": 20, "first": 50, "more": 25, "times": times // 4, "pass": spent,
                "pass_at_whole_level": careless}
            for name, (spent, careless) in looks.items()
        ],
        "told": [_rounded(asdict(line)) for line in told],
        "rows": [_rounded(asdict(line) | {"ratio": line.ratio}) for line in prices],
    }  # fmt: skip


def record_lines(body: dict[str, Any]) -> list[str]:
    """Return the record as lines for a terminal."""
    bounds = body["bounds"]
    found = ["wrong pass  wrong fail  coverage      n  case"]
    found += [
        f"{line['false_pass']:10.4f}  {line['false_fail']:10.4f}  {line['coverage']:8.4f}  {line['n']:5,}  "
        f"{line['case']}"
        for line in body["errors"] + body["labels"]
    ]
    found += [
        f"macro F1 of {line['labels']} even labels at {line['value']:g} passes {line['margin']:g} on "
        f"{line['n']:,} rows: {line['passes']:.4f}, by bounds per label {line['per_label']:.4f}"
        for line in body["label_power"]
    ]
    found += [
        f"ten gates at their margins: any passes {line['any_pass']:.4f}, any fails {line['any_fail']:.4f} "
        f"({line['case']})"
        for line in body["verdicts"]
    ]
    found += [
        f"twenty looks: passes {line['pass']:.4f}, with the whole level at each {line['pass_at_whole_level']:.4f} "
        f"({line['case']})"
        for line in body["looks"]
    ]
    found += [
        f"rows told by {line['n']} rows: power {line['mean_power']:.3f}, {line['least_power']:.3f} at least; none in "
        f"{line['told_none']:.0%} ({line['case']})"
        for line in body["told"]
    ]
    found += [
        f"effect {line['effect']:g} at deviation {line['deviation']:g}: {line['rows']:,} rows, a t-test "
        f"{line['t_rows']:,} ({line['ratio']:.2f} times)"
        for line in body["rows"]
    ]
    worst = max(max(line["false_pass"], line["false_fail"]) for line in body["errors"] + body["labels"])
    least = min(line["coverage"] for line in body["errors"] + body["labels"])
    found.append(
        f"worst error {worst:.4f} (bound {bounds['error']:g}), least coverage {least:.4f} (bound "
        f"{bounds['coverage']:g}), {body['seconds']:,} s of one core"
    )
    return found


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}
