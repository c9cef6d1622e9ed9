"""Summary of a benchmark's raw repeats: medians, spreads, ratios, and the table. Arithmetic only, free of torch.

A ratio is that of two medians; its spread is that of the repeats taken pairwise, which ran next to each other.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from gemma_ops.bench.training import bench_rows as made_rows
from gemma_ops.bench.training import bench_shapes
from gemma_ops.bench.training.arms import REFERENCE
from gemma_ops.bench.training.bench_spec import BenchSpec, from_json, parameters
from gemma_ops.planning.devices import GIB

PACKED = "trl-packed"
"""Name of the packed arm, the second that ratios are quoted against."""


def clock(device: str) -> str:
    """Return which of the measured times counts: see `measure`."""
    return "user" if device == "cpu" else "wall"


def speed_text(result: dict[str, Any], tokens: float, device: str) -> float:
    """Return tokens of the data (padding does not count) per second, over the timed steps of one repeat."""
    spent: list[float] = result[clock(device)]
    return tokens * len(spent) / sum(spent)


def summary(body: dict[str, Any]) -> dict[str, Any]:
    """Return for each arm median and range of speed and memory, ratios to both stock arms, loss and gradient
    agreement."""
    spec = from_json(body["spec"])
    facts = made_rows.bench_facts(
        made_rows.draw_rows(spec, bench_shapes.text_config(spec.size)["vocab_size"]), spec.micro_batch
    )
    good: dict[str, list[dict[str, Any]]] = {}
    for result in body["results"]:
        if "error" not in result:
            good.setdefault(result["arm"], []).append(result)
    paces = {name: _by_repeat(results, facts["tokens"], spec.device) for name, results in good.items()}
    ceiling = body.get("rate")
    useful = useful_flops(spec, facts)
    arms: dict[str, Any] = {}
    for name, info in body["arms"].items():
        failed = next((r["error"] for r in body["results"] if r["arm"] == name and "error" in r), None)
        if name not in good:
            arms[name] = {"absent": info["absent"] or failed or "not measured"}
            continue
        results = good[name]
        values = list(paces[name].values())
        first = next((r for r in results if r["repeat"] == 0), results[0])
        agreement = first.get("agreement") or {}
        arms[name] = {
            "repeats": len(results),
            "tokens_per_second": median(values),
            "lowest": min(values),
            "highest": max(values),
            "peak_bytes": median(r["peak_bytes"] for r in results),
            "total_bytes": median(r["peak_bytes"] + r["loaded_bytes"] for r in results),
            "loss": first["losses"][0],
            "cosine": 1.0 if name == REFERENCE else agreement.get("cosine"),
            "kernels": first.get("kernels"),
            "settings": first.get("settings"),
            "ratios": {other: _ratio(paces[name], paces[other]) for other in (REFERENCE, PACKED) if other in paces},
        }
        if ceiling:
            arms[name]["roofline"] = arms[name]["tokens_per_second"] * useful / ceiling
        if REFERENCE in good:
            theirs = next((r for r in good[REFERENCE] if r["repeat"] == 0), good[REFERENCE][0])
            arms[name]["loss_difference"] = first["losses"][0] - theirs["losses"][0]
            arms[name]["peak_ratio"] = arms[name]["peak_bytes"] / max(
                1, median(r["peak_bytes"] for r in good[REFERENCE])
            )
    return {
        "facts": facts,
        "parameters": parameters(spec),
        "useful_flops_per_token": useful,
        "clock": clock(spec.device),
        "arms": arms,
    }


def useful_flops(spec: BenchSpec, facts: dict[str, float]) -> float:
    """Return the operations a token cannot do without: every product once forward and once for its input's gradient,
    nothing recomputed, attention within documents and windows, the head on scored tokens. The roofline's numerator."""
    from gemma_ops import family
    from gemma_ops.planning import speed as theory
    from gemma_ops.planning.training_step import PassShape

    shape = family.Shape.from_config(bench_shapes.text_config(spec.size, spec.layers))
    linears = tuple(family.lora_linears(shape))
    step = PassShape(spec.weights, spec.rank, linears, tokens=spec.row_length, length=int(facts["longest"]))
    return theory.token_work(shape, step, context=facts["context"], scored=facts["labelled"]).total


def _by_repeat(results: list[dict[str, Any]], tokens: float, device: str) -> dict[int, float]:
    return {result["repeat"]: speed_text(result, tokens, device) for result in results}


def _ratio(mine: dict[int, float], theirs: dict[int, float]) -> dict[str, float]:
    pairs = [mine[repeat] / theirs[repeat] for repeat in mine.keys() & theirs.keys()]
    middle = median(mine.values()) / median(theirs.values())
    return {"median": middle, "lowest": min([middle, *pairs]), "highest": max([middle, *pairs])}


HEAD = ("arm", "tokens/s", "vs trl", "vs trl-packed", "peak above model", "step-0 loss", "gradient cosine")
GPU_HEAD = (*HEAD[:4], "of roofline", "peak in all", *HEAD[5:])


def report_head(body: dict[str, Any]) -> tuple[str, ...]:
    """Return the table's head: on a GPU with the share of its roofline, and memory with the model in it."""
    return GPU_HEAD if body.get("rate") else HEAD


def report_table(body: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return rows for `head`, one an arm."""
    made = body["summary"]
    out = []
    for name, arm in made["arms"].items():
        if "absent" in arm:
            out.append((name, arm["absent"], *[""] * (len(report_head(body)) - 2)))
            continue
        spread = f" ({_number(arm['lowest'])}–{_number(arm['highest'])})" if arm["repeats"] > 1 else ""
        peak = f"{arm['peak_bytes'] / GIB:.2f} GiB" + (f" ({arm['peak_ratio']:.2f}x)" if "peak_ratio" in arm else "")
        cosine = "reference" if name == REFERENCE else f"{arm['cosine']:.5f}" if arm["cosine"] is not None else "–"
        out.append(
            (
                name,
                _number(arm["tokens_per_second"]) + spread,
                *(
                    f"{arm['ratios'][other]['median']:.2f}x" if other in arm["ratios"] else "–"
                    for other in (REFERENCE, PACKED)
                ),
                *((f"{arm['roofline']:.0%}", f"{arm['total_bytes'] / GIB:.1f} GiB") if body.get("rate") else (peak,)),
                f"{arm['loss']:.4f}",
                cosine,
            )
        )
    return out


def opening(body: dict[str, Any]) -> list[str]:
    """Return what was measured, on what, in two lines."""
    spec: BenchSpec = from_json(body["spec"])
    made, place = body["summary"], body["machine"]
    facts = made["facts"]
    cut = f", {spec.layers} layers" if spec.layers else ""
    where = place.get("gpu") or f"{place['cpu']}, {spec.threads} thread{'s' if spec.threads > 1 else ''}"
    per = "user-CPU second" if made["clock"] == "user" else "second"
    first = (
        f"{spec.size}{cut}: {made['parameters'] / 1e6:,.0f} M parameters in {spec.weights}, "
        f"LoRA rank {spec.rank}; {where}"
    )
    second = (
        f"{spec.batch} rows a step, {facts['tokens']:,.0f} tokens (longest {facts['longest']:,.0f}), "
        f"{facts['labelled']:.0%} with loss; "
        f"tokens per {per}, median of {spec.repeats} x {spec.steps} step{'s' if spec.steps > 1 else ''}"
    )
    return [first, second]


def closing(body: dict[str, Any]) -> list[str]:
    """Return the gate's result, and what padding cost."""
    facts, gate = body["summary"]["facts"], body.get("gate", {})
    worst = max((result["error"] for result in gate.values() if "error" in result), default=None)
    lines = [f"padded rows take {facts['slots_per_token_padded']:.2f} slots a token"]
    if worst is not None:
        lines.append(f"float32 gradients of all exact arms agree with stock TRL's to {worst:.0e} on the small shape")
    return lines


def progress_line(result: dict[str, Any], spec: BenchSpec, body: dict[str, Any]) -> str:
    """Return one repeat as a line of progress."""
    if "error" in result:
        return str(result["error"])
    pace = speed_text(result, body["summary"]["facts"]["tokens"], spec.device)
    return f"{_number(pace)} tokens/s  {result['peak_bytes'] / GIB:.2f} GiB  loss {result['losses'][0]:.4f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
