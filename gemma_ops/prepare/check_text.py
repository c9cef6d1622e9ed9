"""The text that `gemma-ops data check` prints below the rows."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_ops.prepare.check_result import CheckResult


def check_lines(result: CheckResult) -> Iterator[str]:
    """Yield the summary as plain lines for a terminal."""
    some = "the first " if result.more else ""
    made = f", {result.examples:,} examples" if result.examples > result.checked else ""
    yield f"{some}{_rows(result.checked)}{made}, layout {result.layout}"
    yield from result.template
    yield ""
    yield f"{'tokens':<12}{'p50':>8}{'p95':>8}{'max':>8}"
    for part in ("prompt", "completion", "row"):
        values = result.lengths[part]
        yield f"{part:<12}" + "".join(f"{values[name]:>8,}" for name in ("p50", "p95", "max"))
    share = result.lengths["tokens_with_loss"] / max(1, result.lengths["tokens"])
    for kind, (count, least, most) in _shown(result).items():
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        yield f"{count:,} {kind} parts of {each} soft tokens each, between a begin and an end token"
    yield f"{result.lengths['tokens']:,} tokens, {result.lengths['tokens_with_loss']:,} ({share:.0%}) carry loss"
    if result.max_length is not None:
        yield f"longer than train.max_length ({result.max_length:,} tokens): {_rows(result.truncated)}"
    yield ""
    yield from result.thinned
    if not result.totals and not result.refusals and not result.thinned:
        yield "nothing to complain about"
    for code, count in result.totals.items():
        item = result.first[code]
        yield f"{item.level:<8} {code}: {_rows(count)}, first {item.where}"
        yield f"         {item.what}"
        if item.fix:
            yield f"         fix: {item.fix}"

    if result.refusals:
        yield ""
    for what, fix in result.refusals:
        yield f"the run would refuse: {what}"
        yield f"         fix: {fix}"


def _shown(result: CheckResult) -> dict[str, tuple[int, int, int]]:
    """Return by kind the number of images or sounds, and the fewest and most soft tokens of one."""
    return {kind: (sum(sizes.values()), min(sizes), max(sizes)) for kind, sizes in sorted(result.shown.items())}


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
