"""The step `quantize`: GGUF files from a bf16 checkpoint, each audited, each measured against bf16 in llama.cpp.

Three things can go wrong and are told apart: the conversion (bf16 GGUF in llama.cpp against transformers on the same
tokens), the tokenizer (llama.cpp's own against the checkpoint's), and the quantization itself (each format against the
bf16 GGUF, in the engine that will serve it). The first two are gates; the third is reported, for the evaluation of the
quantized targets to judge. Where files are fitted to the rows, the plain file is made and measured too, and the gain is
reported with its interval.

A file is renamed into place when whole, so a killed step keeps the formats it had finished, and what was fitted so far.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from gemma_ops import family
from gemma_ops.config import MachineConfig, Privacy, QuantizeConfig
from gemma_ops.data.prompt_record import read_prompting, write_prompting
from gemma_ops.errors import GateError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.coarse_files import check_coarse
from gemma_ops.export.engine_formats import check_engine_formats, make_engine_formats
from gemma_ops.export.fidelity import Divergence, fidelity_conversations
from gemma_ops.export.file_fidelity import check_parity, parity_weights
from gemma_ops.export.folder import check_room
from gemma_ops.export.gguf_audit import Audit, audit_gguf
from gemma_ops.export.gguf_fit import RowFit, calibration_rows, is_calibrated, is_fitted, training_rows
from gemma_ops.export.gguf_tensors import GgufPlan, plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.export.lattice_probe import is_near_lattice, lattice_error
from gemma_ops.export.measured_files import MeasuredFile, measure_files
from gemma_ops.export.packed_files import PackedWork
from gemma_ops.export.projector_fidelity import make_projector, projector_metrics, projector_type
from gemma_ops.export.prompts import fidelity_prompts, general_rows, manner_of
from gemma_ops.export.tensor_bytes import TensorBytes
from gemma_ops.family.formats import GGUF as TYPES
from gemma_ops.family.formats import QAT_TYPE, REFERENCE, TABLE_TYPE, GgufName, TensorType
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.modeling.llamacpp import GGUF
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.privacy.classes import learned_class, record_learned, rows_class, stricter, strictest
from gemma_ops.runs import journal
from gemma_ops.runs.durable import write_json

_PLAIN, _FIT = "plain", "fit"
"""Folders of the plain files that fitted ones are compared with, and of what is fitted so far; gone at the end."""
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
    """Write `out/<format>/` for bf16 and the formats asked for, `out/mmproj` with the towers where they are wanted, and
    `out/report.json`.

    Raises ConfigError for a format that the model's size doesn't bear or a mix that does not fit its bytes, ModelError
    for a checkpoint that can't be converted, GateError when a file is not what was asked for, when llama.cpp disagrees
    with transformers or a fit cost general ability, MachineError when the disk has no room, or `xllamacpp` or a tool is
    missing, DataError when files are to be fitted or mixed and there are no training rows.
    """
    source = MergedCheckpoint(checkpoint(model))
    check_coarse(settings, family.identify(source.config))
    check_engine_formats(source, settings, machine)
    others = [form for form in settings.formats if form not in TYPES]
    formats = cast(
        "list[GgufName]", [REFERENCE, *(form for form in settings.formats if form not in (REFERENCE, *others))]
    )
    fitting = [form for form in (*formats, *others) if is_fitted(settings, form)]
    fitted = [form for form in formats if form in fitting]
    tokenizer = load_tokenizer(source.folder)
    prompting = read_prompting(source.folder)
    manner = manner_of(source.folder, prompting)
    fit = None
    mixed = [form for form in formats if TYPES[form].mixed]
    if fitting or mixed:
        rows = training_rows(data, tokenizer, manner, settings.fit_rows)
        fit = RowFit(source, settings, machine, parity_weights(source), rows)
    shown = [*fitting, *mixed, *(form for form in others if is_calibrated(settings, form))]
    learned = _classes(model, data, [*formats, *others], shown)
    threads = machine.workers or os.cpu_count() or 1
    tables = TYPES[settings.tables].tensor
    audits = write_formats(out, source, formats, threads, learned, fit, fitted, tables)
    with GGUF(_file(out, REFERENCE), threads=threads) as gguf:
        _check_tokenizer(gguf, tokenizer)
        domain, general = (
            fidelity_conversations(tokenizer, rows, manner=manner, reply=gguf.continuation)
            for rows in (fidelity_prompts(data, settings.fidelity_rows, text_only=True), general_rows())
        )
    parity = check_parity(source, domain, _file(out, REFERENCE), machine)
    towers: dict[str, Any] = {}
    if kind := projector_type(settings, source, data):
        towers = make_projector(
            out, source, kind, machine, reference=_file(out, REFERENCE), learned=learned_class(model)
        )
    measured = measure_files(
        partial(_file, out), partial(_file, out / _PLAIN), formats[1:], fitted, domain, general, threads
    )
    engines = make_engine_formats(
        PackedWork(
            out, out / _PLAIN, source, settings, machine, domain, general,
            calibration_rows(data, tokenizer, manner, settings) if others else (), fit, out / _FIT,
        ),
        others,
        learned,
    )  # fmt: skip
    body: dict[str, Any] = {
        "left_out": {reason: len(names) for reason, names in plan_tensors(source, REFERENCE).left_out.items()},
        "tokenizer": {"probes": len(_PROBES), "equal": True},
        "parity": {"transformers": parity_weights(source), **parity.report()},
        **({"mmproj": towers} if towers else {}),
        "formats": {form: {"audit": audit.report()} for form, audit in audits.items()},
    }
    for form, found in measured.items():
        body["formats"][form] |= found.report()
        if fit is not None and form in fitted:
            body["formats"][form]["fit"] = fit.report(found.gain())
        if fit is not None and fit.mix is not None and TYPES[form].mixed:
            body["formats"][form]["mix"] = fit.mix.report()
    body["formats"] |= {form: made.report() for form, made in engines.items()}
    write_json(out / "report.json", body, indent=2)
    whole = strictest(learned.values())
    record_learned(out, whole, [f"model: {whole}"])
    for folder in (_PLAIN, _FIT):
        shutil.rmtree(out / folder, ignore_errors=True)
    towers_metrics = projector_metrics(towers) if towers else {}
    made_metrics = {f"{form}/{key}": value for form, made in engines.items() for key, value in made.metrics().items()}
    told = {f"{form}/predicted_kl": fit.mix.predicted for form in mixed if fit is not None and fit.mix is not None}
    return {**_metrics(audits, parity, measured), **told, **towers_metrics, **made_metrics}


def _classes(model: Path, data: Path | None, formats: Sequence[str], shown: Sequence[str]) -> dict[str, Privacy]:
    """Return the class of each file: the model's, and of one that is shown rows also that of the rows."""
    own = learned_class(model)
    rows = rows_class([data / "train.jsonl"]) if shown and data and (data / "train.jsonl").exists() else own
    return {form: stricter(own, rows) if form in shown else own for form in formats}


def write_formats(
    out: Path,
    source: MergedCheckpoint,
    formats: Sequence[GgufName],
    threads: int,
    learned: Mapping[str, Privacy],
    fit: RowFit | None = None,
    fitted: Sequence[GgufName] = (),
    tables: TensorType = TABLE_TYPE,
) -> dict[str, Audit]:
    """Write the files of the formats that `out` lacks, their embedding tables in the type `tables`, each with its class
    in `learned`, and audit all; those `fitted` by `fit`, with the plain file next to them.

    Raises MachineError when the disk has no room, GateError when a file is not what was asked for.
    """
    plans = {form: plan_tensors(source, form, tables) for form in formats}
    parameters = sum(tensor.source.parameters for tensor in plans[REFERENCE].tensors if tensor.source)
    wanted = [
        (TYPES[form], folder) for form in formats for folder in (out, *([out / _PLAIN] if form in fitted else []))
    ]
    missing = [each for each, folder in wanted if not _file(folder, each.name).exists()]
    check_room(out, sum(int(parameters * each.most_bits / 8) for each in missing))
    audits: dict[str, Audit] = {}
    plain = _plain_encoding(source, plans)
    for form in formats:
        file = _file(out, form)
        if fit is not None and TYPES[form].mixed:
            overhead = audits[REFERENCE].file_bytes - sum(audits[REFERENCE].bytes.values())
            plans[form] = fit.mixed_plan(plans[form], overhead, out / _FIT / f"{form}.json")
        if fit is not None and form in fitted:
            if not (other := _file(out / _PLAIN, form)).exists():
                write_gguf(source, plans[form], other, threads=threads, learned=learned[form], encoding=plain)
            if not file.exists():
                encoding = fit.encoding(plans[form], out / _FIT / form)
                write_gguf(source, plans[form], file, threads=threads, learned=learned[form], encoding=encoding)
        elif not file.exists():
            write_gguf(source, plans[form], file, threads=threads, learned=learned[form], encoding=plain)
        record_learned(file.parent, learned[form], [f"model: {learned[form]}"])
        audits[form] = audit_gguf(file, plans[form])
        if prompting := read_prompting(source.folder):
            write_prompting(file.parent, prompting)
        journal.record(
            event="audit", format=form, bytes=audits[form].file_bytes, quantized_share=audits[form].quantized_share
        )
    return audits


def _plain_encoding(source: MergedCheckpoint, plans: Mapping[GgufName, GgufPlan]) -> TensorBytes:
    """Return how plain files are rounded: as llama.cpp does, or with the scales that the weights were trained with."""
    if not any(each.type == QAT_TYPE for plan in plans.values() for each in plan.tensors):
        return TensorBytes()
    error = lattice_error(source, plans[REFERENCE])
    journal.record(event="lattice", type=QAT_TYPE, error=error, near=is_near_lattice(error))
    return TensorBytes(searched=(QAT_TYPE,) if is_near_lattice(error) else ())


def _file(out: Path, form: str) -> Path:
    return out / TYPES[form].path


def _check_tokenizer(gguf: GGUF, tokenizer: Any) -> None:
    for probe in _PROBES:
        ours, theirs = tokenizer.encode(probe, add_special_tokens=False).ids, gguf.tokenize(probe)
        if ours != theirs:
            raise GateError(
                f"llama.cpp tokenizes {probe!r} as {theirs}, the checkpoint's tokenizer as {ours}",
                "export with the tokenizer the checkpoint was published with; engines that tokenize text would mislead "
                "the model",
            )


def _metrics(audits: dict[str, Audit], parity: Divergence, measured: dict[GgufName, MeasuredFile]) -> dict[str, float]:
    metrics = {f"parity/{name}": value for name, value in parity.metrics().items()}
    for form, audit in audits.items():
        metrics[f"{form}/mb"] = audit.file_bytes / 1e6
        metrics[f"{form}/quantized_share"] = audit.quantized_share
    for form, found in measured.items():
        metrics |= {f"{form}/{name}": value for name, value in found.metrics().items()}
    return metrics
