"""The plan of a synthesis as plain text: what there is, what would be asked, what it may cost, what stands in the
way."""

from __future__ import annotations

from gemma_ops.gemini.prices import dollars, nanodollars
from gemma_ops.synth.estimate import Estimate
from gemma_ops.synth.grading_forecast import GRADE, ROW, Grading

_SHOWN = 12
"""Documents listed one by one; the rest are counted."""


def estimate_lines(made: Estimate) -> list[str]:
    """Return lines of about 100 columns, without colours."""
    body = made.to_json()
    documents, sections = body["coverage"]["documents"], body["coverage"]["sections"]
    text = [f"teacher {made.teacher}", ""]
    if body["documents"]:
        text.append(
            f"{documents[1]:,} documents, {sections[1]:,} sections; asked about {documents[0]:,} documents and "
            f"{sections[0]:,} sections"
        )
        width = max(len(item["name"]) for item in body["documents"][:_SHOWN])
        text += [
            f"  {item['name']:<{width}}  {item['sections']:>4} sections  {item['requests']:>4} requests  "
            f"{item['privacy']}"
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
        (
            f"reads   {made.prompt_tokens:,} tokens, {made.counted}; at most {made.worst_prompt_tokens:,} if "
            f"every reply needs its repair"
        ),
        f"writes  about {made.expected_new_tokens:,} tokens at {ROW} a row; at most {made.worst_new_tokens:,}",
        *_judge(made.judge),
        *_cost(made),
    ]
    return [*text, *(f"note    {note}" for note in made.notes)]


def _judge(judge: Grading | None) -> list[str]:
    if judge is None:
        return []
    text = [
        f"judge   {judge.judge} grades {judge.requests:,} rows one by one, fewer if filters drop some",
        (
            f"        it reads about {judge.prompt_tokens:,} tokens and writes about {judge.expected_new_tokens:,} at "
            f"{GRADE} a grade"
        ),
    ]
    if judge.worst_dollars is None:
        return text
    if not judge.worst_dollars:
        hosted = judge.judge.startswith("gemini:")
        return [*text, f"        {'free of charge' if hosted else 'on this machine: its time comes on top'}"]
    return [*text, f"        for about {_usd(judge.dollars)} on the {judge.tier}; at most {_usd(judge.worst_dollars)}"]


def _cost(made: Estimate) -> list[str]:
    text = _time_taken(made)
    asking = [name for name in (made.teacher, made.judge.judge if made.judge else "") if name.startswith("openai:")]
    if made.worst_dollars:
        who = _billed(made)
        tier = f" on the {made.device}" if who == "the teacher" else ""
        text += [
            (
                f"costs   about {_usd(made.dollars)} for {who}{tier}, with {ROW} tokens of thought a row; at most "
                f"{_usd(made.worst_dollars)}"
            ),
            (
                "        if every reply is as long as it may be and needs its repair; a request that is sent again "
                "because its"
            ),
            "        reply was lost is billed again",
        ]
        if made.budget is None:
            text.append("        no budget is set, so nothing would be sent: --set machine.gemini.budget_usd=…")
        else:
            enough = "covers the worst case" if made.budget >= made.worst_dollars else "ends the run when it is used up"
            text.append(f"        the budget of {_usd(made.budget)} {enough}")
    return text + [f"costs   whatever {name} asks: its price is not known here" for name in asking]


def _billed(made: Estimate) -> str:
    """Return whom the sum is for."""
    judged = made.judge is not None and bool(made.judge.worst_dollars)
    if not made.teacher.startswith("gemini:"):
        return "the judge"
    return "teacher and judge together" if judged else "the teacher"


def _usd(amount: float | None) -> str:
    return dollars(nanodollars(amount or 0.0))


def _time_taken(made: Estimate) -> list[str]:
    if made.teacher.startswith(("gemini:", "openai:")):
        return ["costs   nothing: this model is free of charge"] if made.worst_dollars == 0 else []
    billed = "the teacher bills nothing" if made.judge else "nothing is billed"
    if made.seconds is None:
        return [f"takes   not known on {made.device or 'this machine'}; {billed}"]
    low, high = made.seconds
    return [f"takes   {_time(low)} to {_time(high)} on {made.device}, computed; {billed}"]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
