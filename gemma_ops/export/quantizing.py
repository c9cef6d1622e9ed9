"""The step `quantize`: GGUF files from a bf16 checkpoint, each audited, each measured against bf16 in llama.cpp.

Three things can go wrong and are told apart: the conversion (bf16 GGUF in llama.cpp against transformers on the same
tokens), the tokenizer (llama.cpp's own against the checkpoint's), and the quantization itself (each format against the
bf16 GGUF, in the engine that will serve it). The first two are gates; the third is reported, for the evaluation of the
quantized targets to judge.

A file is renamed into place when whole, so a killed step keeps the formats it had finished.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gemma_ops.config import MachineConfig, Privacy, QuantizeConfig
from gemma_ops.data.prompt_record import read_prompting, write_prompting
from gemma_ops.errors import GateError
from gemma_ops.export import fidelity
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.fidelity import Conversation, Fidelity
from gemma_ops.export.folder import check_room
from gemma_ops.export.gguf_audit import Audit, audit_gguf
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.export.prompts import fidelity_prompts, manner_of
from gemma_ops.family.formats import GGUF as TYPES
from gemma_ops.family.formats import REFERENCE, GgufName
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.modeling.llamacpp import GGUF, Distributions
from gemma_ops.modeling.load import Weights, load_model, load_tokenizer, pick_device
from gemma_ops.privacy.classes import learned_class, record_learned
from gemma_ops.runs import journal
from gemma_ops.runs.durable import write_json

_FP32_BYTES = 8 << 30  # checkpoints up to this size are compared with transformers in fp32, larger ones in bf16
# Mean KL and top-1 that a right conversion stays within. bf16 activations of transformers alone make 0.003 on badly
# conditioned (random) models, so against bf16 the bounds are wider; wrong names or settings are off by far more.
_PARITY = {"fp32": (0.01, 0.95), "bf16": (0.05, 0.9)}
_PROBES = (
    "Hello, world!",
    "  two  spaces,\ttab\nand\n\n\nlines \n ",
    "Äußerst naïve façade — “quotes” … £€¥",
    "日本語のテキスト、한국어, العربية, हिन्दी",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b \ufeff",
    "3.14159 1,000,000 0x1F v2.0-rc1",
    '{"key": ["value", 1, null]}\n```python\ndef f(x):\n    return x\n```',
    "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>ok<turn|>\n",
    '<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|><|tool_response>response:f{}<tool_response|><eos>',
    "half <|turn and <b>html</b> ▁ underscore \x07",
)


def quantize(
    out: Path, settings: QuantizeConfig, machine: MachineConfig, *, model: Path, data: Path | None = None
) -> dict[str, float]:
    """Write `out/<format>/model.gguf` for bf16 and the formats asked for, and `out/report.json`.

    Raises ModelError for a checkpoint that can't be converted, GateError when a file is not what was asked for or
    llama.cpp disagrees with transformers, MachineError when the disk has no room or `xllamacpp` is missing.
    """
    source = MergedCheckpoint(checkpoint(model))
    learned = learned_class(model)
    formats: list[GgufName] = [REFERENCE, *(form for form in settings.formats if form != REFERENCE)]
    threads = machine.workers or os.cpu_count() or 1
    audits = _write_all(out, source, formats, threads, learned)
    tokenizer = load_tokenizer(source.folder)
    prompting = read_prompting(source.folder)
    vocabulary = int(source.text["vocab_size"])
    top = vocabulary if vocabulary <= fidelity.EXACT_VOCABULARY else fidelity.TOP
    with GGUF(_file(out, REFERENCE), threads=threads) as gguf:
        _check_tokenizer(gguf, tokenizer)
        chosen = fidelity.fidelity_conversations(
            tokenizer,
            fidelity_prompts(data, settings.fidelity_rows, text_only=True),
            manner=manner_of(source.folder, prompting),
            reply=gguf.continuation,
        )
        reference = _distributions(gguf, chosen, top, REFERENCE)
    weights, parity = _parity(source, chosen, reference, top, machine)
    measured: dict[str, Fidelity] = {}
    for form in formats[1:]:
        with GGUF(_file(out, form), threads=threads) as gguf:
            measured[form] = fidelity.compare_logits(reference, _distributions(gguf, chosen, top, form), vocabulary)
        journal.record(event="fidelity", format=form, **measured[form].metrics())
    write_json(
        out / "report.json",
        {
            "left_out": {reason: len(names) for reason, names in plan_tensors(source, REFERENCE).left_out.items()},
            "tokenizer": {"probes": len(_PROBES), "equal": True},
            "parity": {"transformers": weights, **parity.report()},
            "formats": {
                form: {"audit": audits[form].report()}
                | ({"fidelity": measured[form].report()} if form in measured else {})
                for form in formats
            },
        },
        indent=2,
    )
    record_learned(out, learned, [f"model: {learned}"])
    return _metrics(audits, parity, measured)


def _write_all(
    out: Path, source: MergedCheckpoint, formats: list[GgufName], threads: int, learned: Privacy
) -> dict[str, Audit]:
    plans = {form: plan_tensors(source, form) for form in formats}
    parameters = sum(tensor.source.parameters for tensor in plans[REFERENCE].tensors if tensor.source)
    missing = [TYPES[form] for form in formats if not _file(out, form).exists()]
    check_room(out, sum(int(parameters * each.most_bits / 8) for each in missing))
    audits: dict[str, Audit] = {}
    for form in formats:
        file = _file(out, form)
        if not file.exists():
            write_gguf(source, plans[form], file, threads=threads, learned=learned)
        record_learned(file.parent, learned, [f"model: {learned}"])
        audits[form] = audit_gguf(file, plans[form])
        if prompting := read_prompting(source.folder):
            write_prompting(file.parent, prompting)
        journal.record(
            event="audit", format=form, bytes=audits[form].file_bytes, quantized_share=audits[form].quantized_share
        )
    return audits


def _file(out: Path, form: str) -> Path:
    return out / TYPES[form].path


def _distributions(gguf: GGUF, chosen: list[Conversation], top: int, form: str) -> list[Distributions]:
    found = []
    for number, conversation in enumerate(chosen, 1):
        found.append(gguf.logprobs(conversation.ids, conversation.positions, top))
        journal.record(event="fidelity", format=form, done=number, rows=len(chosen))
    return found


def _check_tokenizer(gguf: GGUF, tokenizer: Any) -> None:
    for probe in _PROBES:
        ours, theirs = tokenizer.encode(probe, add_special_tokens=False).ids, gguf.tokenize(probe)
        if ours != theirs:
            raise GateError(
                f"llama.cpp tokenizes {probe!r} as {theirs}, the checkpoint's tokenizer as {ours}",
                "export with the tokenizer the checkpoint was published with; engines that tokenize text would mislead "
                "the model",
            )


def _parity(
    source: MergedCheckpoint,
    chosen: list[Conversation],
    reference: list[Distributions],
    top: int,
    machine: MachineConfig,
) -> tuple[str, Fidelity]:
    """Compare the bf16 file in llama.cpp with the checkpoint in transformers; raises GateError when they disagree."""
    size = sum(entry.stop - entry.start for entry in source.entries.values())
    weights: Weights = "fp32" if size <= _FP32_BYTES else "bf16"
    model = load_model(source.folder, weights=weights, device=pick_device(machine.device, source.folder))
    theirs = []
    with torch.inference_mode():
        for conversation in chosen:
            logits = model(
                input_ids=torch.tensor([conversation.ids], device=model.device),
                logits_to_keep=torch.tensor(conversation.positions, device=model.device),
                use_cache=False,
            ).logits[0]
            theirs.append(fidelity.from_logits(logits.float().cpu().numpy(), top))
    found = fidelity.compare_logits(theirs, reference, int(source.text["vocab_size"]))
    journal.record(event="parity", transformers=weights, **found.metrics())
    worst_kl, worst_top1 = _PARITY[weights]
    if found.kl > worst_kl or found.top1 < worst_top1:
        raise GateError(
            f"llama.cpp and transformers disagree on the same tokens before any quantization: "
            f"{found.name} {found.kl:.4f} (at most {worst_kl}), top-1 agreement {found.top1:.3f} (at least "
            f"{worst_top1})",
            "this checkpoint does not convert correctly with these versions: see `gemma-ops doctor`",
        )
    return weights, found


def _metrics(audits: dict[str, Audit], parity: Fidelity, measured: dict[str, Fidelity]) -> dict[str, float]:
    metrics = {f"parity/{name}": value for name, value in parity.metrics().items()}
    for form, found in audits.items():
        metrics[f"{form}/mb"] = found.file_bytes / 1e6
        metrics[f"{form}/quantized_share"] = found.quantized_share
    for form, fidelity_ in measured.items():
        metrics |= {f"{form}/{name}": value for name, value in fidelity_.metrics().items()}
    return metrics
