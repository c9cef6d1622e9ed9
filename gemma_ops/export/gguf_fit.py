"""Fitting the files of the step `quantize` to the training rows: which tensors, from what, and what comes of it."""

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
    """The rows of one step, and the model that files are fitted to."""

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

    def encoding(self, plan: GgufPlan, folder: Path) -> TensorBytes:
        """Return how the tensors of a file become bytes, fitted to the rows; `folder` keeps what is done of it."""
        tensors = fit_tensors(plan)
        if self._settings.fit == "importance":
            if self._importance is None:
                self._importance = column_importance(self._model(), tensors, self.rows)
            return TensorBytes(importance=self._importance)
        store = FittedStore(folder)
        training = None
        if self._settings.fit == "scales":
            training = ScaleTraining(self._settings.fit_steps, _BATCH, _RATE, _SEED)
        fit_file(self._model(), tensors, self.rows, store, training)
        return TensorBytes(fitted=store)

    def report(self, gain: dict[str, Any]) -> dict[str, Any]:
        """Return what a file was fitted to, and its `gain` over the plain one, for `report.json`."""
        tokens = sum(map(len, self.rows))
        return {"how": self._settings.fit, "rows": len(self.rows), "tokens": tokens, **gain}

    def _model(self) -> Any:
        """Load the checkpoint: a fit changes the model, so each file has its own."""
        device = pick_device(self._machine.device, self._source.folder)
        if device == "cpu":
            self._check_memory(free_memory())
        model = load_model(self._source.folder, weights=self._weights, device=device)
        install_reading(model, recompute=self._weights == "bf16")
        return model

    def _check_memory(self, free: float) -> None:
        """Refuse a fit that main memory can't hold. Raises MachineError."""
        each = 4 if self._weights == "fp32" else 2
        parameters = sum(entry.parameters for entry in self._source.entries.values())
        states = each * int(self._source.text["hidden_size"]) * sum(map(len, self.rows))
        needed = (each + _CODES) * parameters + states + min(_ROOM, 200 * parameters)
        if needed > free:
            raise MachineError(
                f"quantize.fit={self._settings.fit} needs about {needed / 1e9:.1f} GB of memory (the model, its codes "
                f"and what it says to {len(self.rows):,} rows), and {free / 1e9:.1f} GB are free",
                "free some memory, lower quantize.fit_rows, use a machine with a GPU, or set quantize.fit=none",
            )


def training_rows(data: Path | None, tokenizer: Any, manner: Manner, count: int) -> list[FitRow]:
    """Return the training rows of a `prepare` folder as token ids. Raises DataError when there are none."""
    file = data / "train.jsonl" if data else None
    if file is None or not file.exists():
        raise DataError("quantize.fit needs training rows, and this run has none", "set quantize.fit=none")
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
