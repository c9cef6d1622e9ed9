"""The byte audit of a loaded model: what is in memory, by component and type, against what should be.

A 4-bit model that isn't is the usual silent failure with this family: experts left in bf16 (42.5 of 45 GiB of a "4-bit"
26B-A4B), routers and the tied head quantized. So what was loaded is counted parameter by parameter and compared, to the
byte, with what the shape in `config.json` says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemma_ops import family
from gemma_ops.errors import ModelError
from gemma_ops.family import Shape
from gemma_ops.modeling import host_ple, nf4

COMPONENTS = (
    ("audio", r"audio"),
    ("vision", r"vision"),
    ("per-layer table", r"embed_tokens_per_layer"),
    ("embedding", r"embed_tokens|lm_head"),
    ("experts", r"\.experts\."),
    ("router", r"\.router\."),
    ("norms", r"norm\w*\.weight$"),
    ("per-layer linears", r"\.per_layer_"),
    ("attention", r"\.self_attn\.[qkvo]_proj\."),
    ("mlp", r"\.mlp\.(gate|up|down)_proj\."),
)
"""Component of a parameter by the first pattern found in its name."""
QUANTIZED = ("attention", "mlp", "experts")
"""Components that are held in 4 bits when `weights` is nf4; everything else stays as it is."""
_WIDTHS = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class AuditLine:
    """One component of a model in one type."""

    component: str
    kind: str
    """`nf4`, `bf16`, `fp32`, or `host` for a table that lies in main memory."""
    parameters: int
    bytes: int


def audit_model(model: Any, shape: Shape, weights: str) -> tuple[AuditLine, ...]:
    """Count what `model` holds and compare it with what a model of that shape loaded as `weights` must hold.

    Towers are compared where the model has them. Raises ModelError naming the first module or component that differs.
    """
    _check_modules(model, weights)
    found, wanted = count_parameters(model), {line.component: line for line in expected(shape, weights)}
    components = [line.component for line in found]
    for line in found:
        plan = wanted.get(line.component)
        if (line != plan and not _on_host(line, plan)) or components.count(line.component) > 1:
            raise ModelError(
                f"{line.component} holds {line.parameters} parameters as {line.kind} in {line.bytes} bytes, and "
                f"should hold " + (f"{plan.parameters} as {plan.kind} in {plan.bytes}" if plan else "nothing"),
                "this combination of transformers and bitsandbytes is unknown to gemma-ops: see `gemma-ops doctor`",
            )
    lost = sorted(set(wanted) - set(components) - {"vision", "audio"})
    if lost:
        raise ModelError(f"the loaded model has no {lost[0]}", "config.json and the weights do not belong together")
    return found


def expected(shape: Shape, weights: str) -> Iterator[AuditLine]:
    """Yield what each component of a model of that shape takes, by counting; 4-bit tensors one by one, as their scales
    round up. The head is the embedding and counted once."""
    counts = shape.counts()
    plain = "fp32" if weights == "fp32" else "bf16"
    fields = {
        "attention": counts.attention,
        "mlp": counts.mlp,
        "experts": counts.experts,
        "embedding": counts.embedding,
        "per-layer table": counts.per_layer_table,
        "per-layer linears": counts.per_layer_linears,
        "router": counts.router,
        "norms": counts.norms,
        "vision": counts.vision,
        "audio": counts.audio,
    }
    packed = _packed(shape) if weights == "nf4" else {}
    for component, parameters in fields.items():
        if component in packed and parameters:
            yield AuditLine(component, "nf4", parameters, packed[component])
        elif parameters:
            yield AuditLine(component, plain, parameters, parameters * _WIDTHS[plain])


def _packed(shape: Shape) -> dict[str, int]:
    sizes = dict.fromkeys(QUANTIZED, 0)
    for linear in family.lora_linears(shape):
        sizes["mlp" if ".mlp." in linear.name else "attention"] += nf4.planned_size(linear.parameters)
    stack = shape.experts * shape.hidden * shape.expert_ffn
    sizes["experts"] = len(shape.layers) * (nf4.planned_size(2 * stack) + nf4.planned_size(stack))
    return sizes


def count_parameters(model: Any) -> tuple[AuditLine, ...]:
    """Return what a model holds, by component and type; adapters are left out."""
    parameters: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        four = nf4.is_4bit(parameter)
        kind = "nf4" if four else _name(parameter.dtype)
        place = component_of(name), kind
        parameters[place] += parameter.quant_state.shape.numel() if four else parameter.numel()
        sizes[place] += nf4.size(parameter) if four else parameter.numel() * parameter.element_size()
    table = host_ple.find_ple(model)
    if table is not None:
        place = "per-layer table", "host"
        parameters[place] += table.weight.numel()
        sizes[place] += table.weight.numel() * table.weight.element_size()
    return tuple(AuditLine(*place, number, sizes[place]) for place, number in sorted(parameters.items()))


def component_of(name: str) -> str:
    """Return the component a parameter belongs to. Raises ModelError for a name that no Gemma 4 has."""
    plain = name.replace(".base_layer", "")
    for component, pattern in COMPONENTS:
        if re.search(pattern, plain):
            return component
    raise ModelError(
        f"{name} is not a parameter of a Gemma 4", "see `gemma-ops doctor` for the versions this was made with"
    )


def wants_4bit(name: str) -> bool:
    """True if the linear of that name is held in 4 bits: attention and MLP of the language model."""
    return re.fullmatch(family.LORA_TARGETS, name) is not None


def _on_host(line: AuditLine, plan: AuditLine | None) -> bool:
    """True if the line is a table in main memory, which has the type it has in the file, whatever the rest is held
    in."""
    return line.kind == "host" and plan is not None and line.parameters == plan.parameters


def _check_modules(model: Any, weights: str) -> None:
    """Name the module that is on the wrong side, where there is one: more telling than a sum of bytes."""
    import torch

    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        is_4bit, should = nf4.is_4bit(module.weight), weights == "nf4" and wants_4bit(name)
        if is_4bit != should:
            raise ModelError(
                f"{name} is {'4-bit and must not be' if is_4bit else 'not 4-bit and should be'}",
                "this combination of transformers and bitsandbytes is unknown to gemma-ops: see `gemma-ops doctor`",
            )


def _name(dtype: Any) -> str:
    return {"bfloat16": "bf16", "float32": "fp32"}.get(str(dtype).removeprefix("torch."), str(dtype))
