"""What the step `quantize` takes from the training rows: fits of its files, and the types of a mixed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError, MachineError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import GgufPlan
from gemma_ops.export.mixed_types import MixedTypes, mixed_types
from gemma_ops.export.prompts import export_prompt_ids, general_rows
from gemma_ops.export.tensor_bytes import TensorBytes
from gemma_ops.family.formats import BITS, GGUF, PACKED, QUANTIZED
from gemma_ops.fitting.fit_file import FitTensor, column_importance, fit_file
from gemma_ops.fitting.fit_rows import FitRow, fit_rows
from gemma_ops.fitting.fitted_store import FittedStore
from gemma_ops.fitting.packed_rows import install_reading
from gemma_ops.fitting.scale_training import ScaleTraining
from gemma_ops.modeling.load import Weights, load_model, pick_device
from gemma_ops.runs.processes import free_memory

FITTED_BITS = 8
"""Formats of fewer bits are fitted: with 8 there is next to nothing to gain."""
_BATCH = 8
_RATE = 2e-3
_SEED = 1
_CODES = 2
"""Bytes of each weight's code while scales are trained: once to compute with, once to write."""
_ROOM = 3 << 30
"""Bytes for second moments and for what the layers keep of a pass, at most."""


class RowFit:
    """The rows of one step, and the model that files are fitted to and types are measured on."""

    def __init__(
        self,
        source: MergedCheckpoint,
        settings: QuantizeConfig,
        machine: MachineConfig,
        weights: Weights,
        rows: Sequence[FitRow],
    ) -> None:
        self._source = source
        self._settings = settings
        self._machine = machine
        self._weights = weights
        self.rows = rows
        self._importance: Mapping[str, torch.Tensor] | None = None
        self.mix: MixedTypes | None = None
        """Types of the mixed file, once they are chosen."""

    def mixed_plan(self, plan: GgufPlan, overhead: int, keep: Path) -> GgufPlan:
        """Return the plan of the file `mixed` with a type for each tensor; see `mixed_types`."""
        self.mix = mixed_types(plan, self._settings, self.rows, self._measured_model, overhead, keep)
        return plan.with_types(self.mix.types)

    def encoding(self, plan: GgufPlan, folder: Path) -> TensorBytes:
        """Return how the tensors of a file become bytes, fitted to the rows; `folder` keeps what is done of it."""
        tensors = fit_tensors(plan)
        if self._settings.fit == "importance":
            if self._importance is None:
                self._importance = column_importance(self._fitted_model(), tensors, self.rows)
            return TensorBytes(importance=self._importance)
        store = FittedStore(folder)
        training = None
        if self._settings.fit == "scales":
            training = ScaleTraining(self._settings.fit_steps, _BATCH, _RATE, _SEED)
        fit_file(self._fitted_model(), tensors, self.rows, store, training)
        return TensorBytes(fitted=store)

    def report(self, gain: dict[str, Any]) -> dict[str, Any]:
        """Return what a file was fitted to, and its `gain` over the plain one, for `report.json`."""
        tokens = sum(map(len, self.rows))
        return {"how": self._settings.fit, "rows": len(self.rows), "tokens": tokens, **gain}

    def _fitted_model(self) -> Any:
        """Load the checkpoint for a fit, which changes it, so each file has its own."""
        states = self._each * int(self._source.text["hidden_size"]) * sum(map(len, self.rows))
        needed = _CODES * self._parameters + states + min(_ROOM, 200 * self._parameters)
        said = f"the model, its codes and what it says to {len(self.rows):,} rows"
        return self._load(
            needed,
            f"quantize.fit={self._settings.fit} needs about {{}} of memory ({said})",
            "lower quantize.fit_rows, use a machine with a GPU, or set quantize.fit=none",
        )

    def _measured_model(self) -> Any:
        """Load the checkpoint to measure what types change."""
        tables = int(self._source.text["hidden_size"]) * int(self._source.text["vocab_size"])
        needed = min(2 * _ROOM, 10 * self._parameters) + 4 * tables
        return self._load(
            needed,
            "the file mixed needs about {} of memory (the model, and what types change of it)",
            "use a machine with a GPU, or take mixed out of quantize.formats",
        )

    @property
    def _each(self) -> int:
        return 4 if self._weights == "fp32" else 2

    @property
    def _parameters(self) -> int:
        return sum(entry.parameters for entry in self._source.entries.values())

    def _load(self, needed: float, what: str, fix: str) -> Any:
        """Load the checkpoint where main memory holds it and `needed` bytes more. Raises MachineError."""
        device = pick_device(self._machine.device, self._source.folder)
        total, free = self._each * self._parameters + needed, free_memory()
        if device == "cpu" and total > free:
            raise MachineError(
                f"{what.format(f'{total / 1e9:.1f} GB')}, and {free / 1e9:.1f} GB are free", f"free some memory, {fix}"
            )
        model = load_model(self._source.folder, weights=self._weights, device=device)
        install_reading(model, recompute=self._weights == "bf16")
        return model


def training_rows(data: Path | None, tokenizer: Any, manner: Manner, count: int) -> list[FitRow]:
    """Return the training rows of a `prepare` folder as token ids. Raises DataError when there are none."""
    file = data / "train.jsonl" if data else None
    if file is None or not file.exists():
        raise DataError(
            "quantize.fit and the file mixed need training rows, and this run has none",
            "set quantize.fit=none and take mixed out of quantize.formats",
        )
    return fit_rows(file, tokenizer, manner, count, _SEED)


def calibration_rows(data: Path | None, tokenizer: Any, manner: Manner, settings: QuantizeConfig) -> list[list[int]]:
    """Return the token ids of training rows, or of prompts of no domain where there are none, on which scales are
    measured that are fitted to nothing."""
    if data is not None and (data / "train.jsonl").exists():
        return [row.ids for row in training_rows(data, tokenizer, manner, settings.fit_rows)]
    return [export_prompt_ids(tokenizer, row, manner) for row in general_rows()]


def is_calibrated(settings: QuantizeConfig, form: str) -> bool:
    """True for a format whose scales, or codes, are measured on training rows without being fitted to them."""
    if form not in PACKED:
        return False
    return PACKED[form].calibrated or (PACKED[form].lattice is not None and settings.w4a16 == "gptq")


def is_fitted(settings: QuantizeConfig, form: str) -> bool:
    """True for a format that is fitted to the rows."""
    packed = form in PACKED and PACKED[form].lattice is not None and settings.w4a16 == "own"
    return settings.fit != "none" and QUANTIZED[form].bits < FITTED_BITS and (form in GGUF or packed)


def fit_tensors(plan: GgufPlan) -> list[FitTensor]:
    """Return the tensors of a file that are fitted: attention, MLP and experts below 8 bits, and the layers' norms."""
    found = []
    for tensor in plan.tensors:
        norm = tensor.type == "F32" and tensor.kind.endswith("norm.weight")
        layer = tensor.source is not None and tensor.name.startswith("blk.")
        if tensor.source is not None and layer and (norm or BITS[tensor.type] < FITTED_BITS):
            found.append(FitTensor(tensor.source.name, tensor.name, tensor.type))
    return found
