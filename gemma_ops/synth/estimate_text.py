"""The plan of a synthesis as plain text: what there is, what would be asked, what it may cost, what stands in the way."""

from __future__ import annotations

from gemma_ops.synth.estimate import ROW, Estimate

_SHOWN = 12
"""Documents listed one by one; the rest are counted."""


def lines(made: Estimate) -> list[str]:
    """About 100 columns wide, without colours."""
    body = made.to_json()
    documents, sections = body["coverage"]["documents"], body["coverage"]["sections"]
    text = [f"teacher {made.teacher}", ""]
    if body["documents"]:
        text.append(
            f"{documents[1]:,} documents, {sections[1]:,} sections; asked about {documents[0]:,} documents and {sections[0]:,} sections"
        )
        width = max(len(item["name"]) for item in body["documents"][:_SHOWN])
        text += [
            f"  {item['name']:<{width}}  {item['sections']:>4} sections  {item['requests']:>4} requests  {item['privacy']}"
            for item in body["documents"][:_SHOWN]
        ]
        if len(body["documents"]) > _SHOWN:
            text.append(f"  … and {len(body['documents']) - _SHOWN:,} more")
    if body["seeds"]:
        text.append(f"{body['seeds']:,} seed rows")
    text += ["", f"{'method':<14}{'rows':>8}{'requests':>10}"]
    text += [f"{name:<14}{item['rows']:>8,}{item['requests']:>10,}" for name, item in made.by_method.items()]
    text += [
        f"{'':<14}{sum(item['rows'] for item in made.by_method.values()):>8,}{body['requests']:>10,}",
        "",
        f"reads   {made.prompt_tokens:,} tokens, {made.counted}; at most {made.worst_prompt_tokens:,} if every reply needs its repair",
        f"writes  about {made.expected_new_tokens:,} tokens at {ROW} a row; at most {made.worst_new_tokens:,}",
        *_cost(made),
    ]
    return [*text, *(f"note    {note}" for note in made.notes)]


def _cost(made: Estimate) -> list[str]:
    if made.worst_dollars is None:
        return ["costs   whatever the endpoint asks: its price is not known here"]
    if made.worst_dollars:
        text = [
            f"costs   about ${made.dollars:,.2f} on the {made.device} with {ROW} tokens of thought a row; at most ${made.worst_dollars:,.2f}"
        ]
        if made.budget is None:
            return [*text, "        no budget is set, so nothing would be sent: --set machine.gemini.budget_usd=…"]
        enough = "covers the worst case" if made.budget >= made.worst_dollars else "ends the run when it is used up"
        return [*text, f"        the budget of ${made.budget:,.2f} {enough}"]
    if made.seconds is None:
        return [f"takes   not known on {made.device or 'this machine'}; nothing is billed"]
    low, high = made.seconds
    return [f"takes   {_time(low)} to {_time(high)} on {made.device}, computed; nothing is billed"]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
