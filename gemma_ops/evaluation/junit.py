"""The file `junit.xml`: gates as test cases, so that any CI shows them. An undecided gate is a skipped test with its
reason."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

from gemma_ops.verdicts import Gate, Verdict

_OPEN = ("inconclusive", "report_only")
_CONTROL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Pattern of characters that XML 1.0 can't hold at all."""


def junit_xml(verdict: Verdict) -> str:
    """Return one suite with a case per gate; without gates one skipped case says so."""
    cases = [_case(gate) for gate in verdict.gates] or [
        '  <testcase classname="gates" name="none"><skipped message="ungated: no gate was configured"/></testcase>'
    ]
    failed = sum(gate.outcome == "fail" for gate in verdict.gates)
    skipped = sum(gate.outcome in _OPEN for gate in verdict.gates) or int(not verdict.gates)
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            (
                f'<testsuite name="gemma-ops evaluate" tests="{len(cases)}" failures="{failed}" errors="0" '
                f'skipped="{skipped}">'
            ),
            *cases,
            "</testsuite>",
            "",
        ]
    )


def _case(gate: Gate) -> str:
    versus = f" {gate.versus}" if gate.versus else ""
    name = f"{gate.target} {gate.test}{versus} {gate.metric} {gate.margin:g}"
    head = f"  <testcase classname={_quote(gate.task)} name={_quote(name)}>"
    inner = {
        "pass": f"<system-out>{escape(_clean(gate.words))}</system-out>",
        "fail": f"<failure message={_quote(gate.words)}/>",
        **{kind: f"<skipped message={_quote(kind + ': ' + gate.words)}/>" for kind in _OPEN},
    }
    return f"{head}{inner[gate.outcome]}</testcase>"


def _quote(text: str) -> str:
    return quoteattr(_clean(text))


def _clean(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
