"""Checkpoints of compressed-tensors in the step `quantize`: made, audited, read back and compared with bf16.

w4a16 is written here from our own codes, fitted to the rows where that is asked for, and read here: its engines
multiply with the decoded weights. The other formats, and w4a16 where GPTQ is asked for, are made in the tool
llm-compressor, and compared there by transformers with compressed-tensors, which computes what engines have kernels
for. vLLM itself is not run, and the report says so."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gemma_ops.config import MachineConfig, Privacy, QuantizeConfig
from gemma_ops.data.prompt_record import read_prompting, write_prompting
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.fidelity import Conversation, FileDivergence
from gemma_ops.export.file_fidelity import parity_weights
from gemma_ops.export.folder import check_room
from gemma_ops.export.gguf_audit import FileAudit
from gemma_ops.export.gguf_fit import RowFit, is_fitted
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.measured_files import MeasuredFile, check_general
from gemma_ops.export.packed_audit import audit_packed
from gemma_ops.export.packed_tool import compress_in_tool, diverge_in_tool
from gemma_ops.export.packed_writer import write_packed
from gemma_ops.export.tensor_bytes import TensorBytes
from gemma_ops.family.formats import GGUF, PACKED, Packed
from gemma_ops.modeling.load import load_model, pick_device
from gemma_ops.privacy.classes import record_learned
from gemma_ops.runs import journal
from gemma_ops.stats.divergence import position_divergences

_MIXTURE = "transformers does not read the experts of a compressed-tensors checkpoint back"
_NOT_RUN = "vLLM has not run here: whether it loads and says the same is for the machine that serves"


@dataclass(frozen=True)
class PackedWork:
    """What the checkpoints of one step are made from, and compared on."""

    out: Path
    scratch: Path
    """Folder of plain checkpoints and of jobs, gone at the end of the step."""
    source: MergedCheckpoint
    settings: QuantizeConfig
    machine: MachineConfig
    domain: Sequence[Conversation]
    general: Sequence[Conversation]
    rows: Sequence[Sequence[int]]
    """Token ids of rows for formats and methods that need some."""
    fit: RowFit | None
    fitted: Path
    """Folder that keeps what is fitted, by GGUF format: a file of the same lattice shares it."""

    @property
    def mixture(self) -> bool:
        """Return whether the model has experts."""
        return bool(self.source.text.get("enable_moe_block"))


@dataclass(frozen=True)
class PackedFile:
    """One checkpoint: what it holds, and what it says."""

    audit: FileAudit
    measured: MeasuredFile | None
    """Divergence from bf16; None where nothing here can run it."""
    made_by: dict[str, Any]
    fit: dict[str, Any] | None
    """What it was fitted to, and the gain; None for a plain one."""
    not_run: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        found = {"audit": self.audit.report(), "made_by": self.made_by, "not_run": self.not_run}
        if self.measured:
            found |= self.measured.report()
        return found | ({"fit": self.fit} if self.fit else {})

    def metrics(self) -> dict[str, float]:
        """Return the step's metrics."""
        found = {"mb": self.audit.file_bytes / 1e6, "quantized_share": self.audit.quantized_share}
        return found | (self.measured.metrics() if self.measured else {})


def make_packed_files(
    work: PackedWork, formats: Sequence[str], learned: Mapping[str, Privacy]
) -> dict[str, PackedFile]:
    """Make the checkpoints that `work.out` lacks, and audit and measure all.

    Raises MachineError where the tool is missing or the disk has no room, GateError where a checkpoint is not what was
    asked for, or a fit cost general ability.
    """
    made = {}
    for name in formats:
        form = PACKED[name]
        fitted = is_fitted(work.settings, name)
        how = _make(work, form, work.out / form.made, work.fit if fitted else None, learned[name])
        audit = audit_packed(work.out / form.made, work.source, form)
        journal.record(event="audit", format=name, bytes=audit.file_bytes, quantized_share=audit.quantized_share)
        plain = None
        if fitted:
            _make(work, form, work.scratch / form.made, None, learned[name])
            plain = _measure(work, form, work.scratch / form.made)
        measured = _measure(work, form, work.out / form.made, plain)
        if measured is not None:
            journal.record(event="fidelity", format=name, **measured.metrics())
            check_general(name, measured)
        gain = work.fit.report(measured.gain()) if work.fit and measured and fitted else None
        made[name] = PackedFile(audit, measured, how, gain, [_NOT_RUN, *([] if measured else [_MIXTURE])])
    return made


def _method(work: PackedWork, form: Packed) -> Literal["own", "gptq", "rtn"]:
    return work.settings.w4a16 if form.lattice else "rtn"


def _make(work: PackedWork, form: Packed, out: Path, fit: RowFit | None, learned: Privacy) -> dict[str, Any]:
    """Make one checkpoint unless it is there, and return by what; a folder that was cut short has another name."""
    method = _method(work, form)
    partial = out.with_name(f"{out.name}.partial")
    how: dict[str, Any] = {"writer": "gemma-ops", "method": work.settings.fit if fit else "search"}
    if method != "own":
        how = {"writer": "llm-compressor", "method": method}
    if out.is_dir():
        return how
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    size = sum(shard.stat().st_size for shard in work.source.shards)
    check_room(out.parent, int(size * (0.6 if form.bits < 8 else 1.1)))
    if method == "own":
        plan = plan_tensors(work.source, next(each.name for each in GGUF.values() if each.tensor == form.lattice))
        encoding = fit.encoding(plan, work.fitted / plan.format) if fit else TensorBytes()
        write_packed(work.source, plan, form, partial, encoding, redundant_kv=work.settings.redundant_kv)
    else:
        compress_in_tool(work.source, form, method, partial, work.settings, work.machine, work.rows, work.scratch)
    record_learned(partial, learned, [f"model: {learned}"])
    if prompting := read_prompting(work.source.folder):
        write_prompting(partial, prompting)
    partial.rename(out)
    return how


def _measure(work: PackedWork, form: Packed, folder: Path, plain: MeasuredFile | None = None) -> MeasuredFile | None:
    """Compare a checkpoint with bf16; None where nothing here reads it back."""
    chosen = [*work.domain, *work.general]
    if form.reads_as == "weights":
        found = weights_divergence(folder, work.source, chosen, work.machine)
    elif work.mixture:
        return None
    else:
        found = diverge_in_tool(work.source, form, folder, chosen, work.machine, work.scratch)
    return MeasuredFile(*found.split(len(work.domain)), plain)


def weights_divergence(
    folder: Path, source: MergedCheckpoint, chosen: Sequence[Conversation], machine: MachineConfig
) -> FileDivergence:
    """Compare a checkpoint whose weights alone are rounded with bf16, in transformers, on whole conversations."""
    weights = parity_weights(source)
    device = pick_device(machine.device, source.folder)
    reference = load_model(source.folder, weights=weights, device=device)
    model = load_model(folder, weights=weights, device=device, packed=True)
    kls: list[np.ndarray] = []
    hits: list[np.ndarray] = []
    with torch.inference_mode():
        for each in chosen:
            ids = torch.tensor([each.ids], device=device)
            logits = [one(input_ids=ids, use_cache=False).logits[0].float().cpu().numpy() for one in (reference, model)]
            kl, hit = position_divergences(logits[0], logits[1])
            kls.append(kl)
            hits.append(hit)
    return FileDivergence(chosen, kls, hits)
